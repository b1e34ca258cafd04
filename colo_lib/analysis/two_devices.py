"""What two devices are best used for: what sharding gains, what MPS and neighbours take, and the work per device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.capacity import Unit
from colo_lib.analysis.statistics import LEAST_STARTS, RATES, by_block, rate, ratio, sides_of_one, within_starts
from colo_lib.analysis.trace.token_time import TOKEN_PARTS
from colo_lib.steps import CO_LOCATED, STEPS, TWO_DEVICES, mechanisms_in, names_of, wanted_in_words, with_id

GEN = RATES["gen"]
# what -> (its step, the step it is measured against): a chain from one device to both shared, by gen's rate.
CHAIN: Mapping[str, tuple[str, str]] = {
    "sharding over two devices gains": ("tp2-alone", "configA"),
    "MPS itself leaves of that": ("tp2-mps-alone", "tp2-alone"),
    "the embedder on one device leaves of that": ("configB-one", "tp2-mps-alone"),
    "the embedder on both devices leaves of that": ("configB", "tp2-mps-alone"),
    "in all: sharded and co-located against dedicated": ("configB", "configA"),
    "the embedder in time slices on both devices leaves of sharding": ("configB-sliced", "tp2-alone"),
    "in all: sharded and time-sliced against dedicated": ("configB-sliced", "configA"),
    "the embedder in the process of each rank leaves of sharding": ("configB-inproc", "tp2-alone"),
    "in all: sharded, both in one process a device, against dedicated": ("configB-inproc", "configA"),
}

# Both at work over two devices.
SHARED = tuple(name for name in CO_LOCATED if STEPS[name].needs_two)

# From one device to both shared; a step that is no link of the chain stands at the end.
ORDER = tuple(dict.fromkeys(("configA", *(step for step, _ in CHAIN.values()), *TWO_DEVICES)))

NEAR_LINEAR = 1.8  # of two devices: nine tenths of what perfect scaling would give


def chain(counted: pd.DataFrame) -> pd.DataFrame:
    """what, step, baseline, ratio, low, high, blocks, starts: gen's rate in one step over another's, by block."""
    rows = []
    for what, (step, baseline) in CHAIN.items():
        change = ratio(counted, step, baseline, GEN)
        if change.blocks:
            rows.append((what, step, baseline, change.mean, change.low, change.high, change.blocks, change.starts))
    return pd.DataFrame(rows, columns=["what", "step", "baseline", "ratio", "low", "high", "blocks", "starts"])


def over_config_a(counted: pd.DataFrame) -> pd.DataFrame:
    """step, ratio, low, high, starts: gen's rate over config A's, by block; config A itself is 1 by definition."""
    rows = [("configA", 1.0, 1.0, 1.0, LEAST_STARTS)] if len(by_block(counted, "configA", GEN)) else []
    for step in ORDER[1:]:
        share = ratio(counted, step, "configA", GEN)
        if share.blocks:
            rows.append((step, share.mean, share.low, share.high, share.starts))
    return pd.DataFrame(rows, columns=["step", "ratio", "low", "high", "starts"])


def all_over_config_a(counted: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """`over_config_a` of every concurrency, with a column concurrency."""
    parts = [over_config_a(trials).assign(concurrency=key) for key, trials in counted.items()]
    return pd.concat(parts, ignore_index=True)


def mechanisms(counted: Mapping[int, pd.DataFrame]) -> dict[str, str]:
    """step -> its mechanism."""
    return {
        step: name
        for trials in counted.values()
        for step, name in zip(trials["step"], trials["mechanism"], strict=True)
    }


def activity(summary: pd.DataFrame) -> pd.DataFrame:
    """step, mechanism, device, and the means of SM activity, DRAM, tensor cores, NVLink and power: a row a step and
    device.

    `summary`: `telemetry_summary`; a metric that was not sampled is null.
    """
    metrics = ["sm_active", "dram_active", "tensor_active", "nvlink_gib_s", "power_w"]
    mine = summary[(summary["scope"] == "device") & summary["metric"].isin(metrics)]
    table = mine.pivot_table(index=["step", "name"], columns="metric", values="mean").reindex(columns=metrics)
    table = table.reset_index().rename(columns={"name": "device"})
    return table.assign(mechanism=table["step"].map(mechanisms_in(summary)))


def prediction(predicted: Unit | None, counted: pd.DataFrame) -> pd.DataFrame:
    """workload, predicted, low, high, starts, measured, measured_low, measured_high, measured_starts, error.

    Of config B, in rates.
    `predicted`: the unit that `capacity.units` made of a single-GPU run; error = measured / predicted - 1.
    """
    rows = []
    for workload, column in RATES.items():
        measured = rate(counted, "configB", column)
        if predicted is None or not measured.blocks:
            continue
        expected = getattr(predicted, workload)
        rows.append((workload, expected.mean, expected.low, expected.high, expected.starts, measured.mean,
                     measured.low, measured.high, measured.starts, measured.mean / expected.mean - 1))  # fmt: skip
    columns = ["workload", "predicted", "low", "high", "starts", "measured", "measured_low", "measured_high",
               "measured_starts", "error"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def other_loads(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Parameters of the load in which two runs differ, in words: a prediction across them compares two things."""
    names = ("gen_model", "embed_model", "weights", "gen_concurrency", "gen_prompt_tokens", "gen_output_tokens",
             "gen_quantization", "gen_enforce_eager", "embed_batch_size", "embed_sequence_tokens", "embed_engine",
             "embed_concurrency", "embed_pacing", "embed_micro_batch_size", "mps_embed_thread_percentage")  # fmt: skip
    return [f"{name} {left.get(name)} against {right.get(name)}" for name in names if left.get(name) != right.get(name)]


def outcomes(
    chained: pd.DataFrame, per_device: Mapping[int, pd.DataFrame], met: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """The brief's expected outcomes, a sentence each, with what was measured; what was not is said.

    `chained`: `chain`; `per_device`: concurrency -> `kept_fractions`; `met`: step -> `collective_summary` and, where
    known, the means of `token_time.rank_times` over the ranks.
    """
    ratios = {row.what: row for row in chained.itertuples()}
    return [_work(per_device), _scaling(ratios), _exchange(met), _neighbours(ratios), _beside(met)]


def _scaling(ratios: Mapping[str, Any]) -> str:
    row = ratios.get("sharding over two devices gains")
    if row is None:
        needed = wanted_in_words("configA", "tp2-alone")
        return f"Does sharding scale nearly linearly? Not measured: it needs the steps {needed}."
    answer = "Yes" if row.low >= NEAR_LINEAR else "No" if row.high < NEAR_LINEAR else "Open"
    answer = answer if row.starts >= LEAST_STARTS else "Open"
    sentence = (
        f"Does sharding scale nearly linearly ({NEAR_LINEAR:g} of 2)? {answer}: {_told(row)} times one device's rate"
    )
    mps = ratios.get("MPS itself leaves of that")
    return sentence + (f", of which MPS with idle neighbours leaves {_told(mps)}." if mps is not None else ".")


def _exchange(met: Mapping[str, Mapping[str, float]]) -> str:
    alone = met.get("tp2-alone") or met.get("tp2-mps-alone")
    if not alone:
        return (
            "What do the collectives cost? Not measured: it needs a capture of "
            f"{with_id('tp2-alone')} or {with_id('tp2-mps-alone')}."
        )
    sentence = (
        f"What do the collectives cost? {alone['collectives_per_token']:.0f} a token, {alone['exchange_p50_us']:.1f} "
        f"us each once both ranks are there: {alone['exchange_us_per_token'] / 1e3:.2f} ms a token; the ranks arrive "
        f"{alone['skew_p50_us']:.1f} us apart (median)"
    )
    beside = met.get("configB")
    return sentence + (f", with the embedder on both {beside['skew_p50_us']:.1f} us." if beside else ".")


def _neighbours(ratios: Mapping[str, Any]) -> str:
    row = ratios.get("the embedder on both devices leaves of that")
    if row is None:
        needed = wanted_in_words("configB", "tp2-mps-alone")
        return f"Is headroom left for the embedder? Not measured: it needs the steps {needed}."
    on_first = ratios.get("the embedder on one device leaves of that")
    beside = f"; the embedder on one device alone leaves {_told(on_first)}" if on_first is not None else ""
    return (
        f"Is headroom left for the embedder? Beside it on both devices the LLM keeps {_told(row)} of its sharded "
        f"rate{beside}."
    )


def _beside(met: Mapping[str, Mapping[str, float]]) -> str:
    asked = "Where does a token's time go beside the embedder?"
    alone = next((met[step] for step in ("tp2-mps-alone", "tp2-alone") if "own_ms" in met.get(step, {})), None)
    step = next((step for step in SHARED if "own_ms" in met.get(step, {})), None)
    if alone is None or step is None:
        return f"{asked} Not measured: it needs captures of the LLM sharded without and with the embedder."
    changes = [f"{words} {alone[name]:.2f} to {met[step][name]:.2f}" for name, words in TOKEN_PARTS.items()]
    return f"{asked} From an idle embedder to '{STEPS[step].name}', means of the two ranks: {', '.join(changes)} ms."


def _work(per_device: Mapping[int, pd.DataFrame]) -> str:
    asked = "More work per device than dedicated ones, which is 1?"
    asked_rows = [
        (concurrency, row)
        for concurrency, kept in per_device.items()
        for row in kept[kept["quantity"] == "aggregate_per_device"].itertuples()
        if row.step in SHARED
    ]
    # All at once: one of six that are equal to 1 would look settled in a quarter of sweeps.
    sides = sides_of_one([row.doubt_more for _, row in asked_rows], [row.doubt_less for _, row in asked_rows])
    by_step: dict[str, list[str]] = {}
    for (concurrency, row), answer in zip(asked_rows, sides, strict=True):
        by_step.setdefault(row.step, []).append(
            f"{_with_interval(row.mean, row)} at {concurrency} in flight ({answer})"
        )
    names = names_of((row.step, row.mechanism) for _, row in asked_rows)
    words = "; ".join(f"{names[step]} {', '.join(values)}" for step, values in by_step.items())
    return f"{asked} {words or 'Not measured'}."


def _told(row: Any) -> str:
    return _with_interval(row.ratio, row)


def _with_interval(mean: float, row: Any) -> str:
    """'1.04 [1.03, 1.05]', or that one block has no interval."""
    if np.isnan(row.low) or np.isnan(row.high):
        return f"{mean:.2f} (one block: no interval)"
    return f"{mean:.2f} [{row.low:.2f}, {row.high:.2f}{within_starts(row.starts)}]"
