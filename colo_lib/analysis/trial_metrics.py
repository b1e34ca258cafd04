"""What one trial's frames say inside its window: rates, latencies, silences and power; one row of measures each.

Latencies are inter-token gaps, times to first token and embedding batch times, ms, and kept as samples too. Starvation
is the longest time without progress, and the share of work within its bounds. Power is that of the trial's devices, W:
from the energy counter where there is one, else mean power.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.thresholds import Thresholds
from colo_lib.frames import NS_PER_S, age_spread, sequence_work, share_met, token_work
from colo_lib.steps import mechanisms_in


def inside(times_ns: pd.Series, start_ns: int, end_ns: int) -> pd.Series:
    """A boolean mask of the times in [start_ns, end_ns)."""
    return (times_ns >= start_ns) & (times_ns < end_ns)


NS_PER_MS = 1_000_000
ENOUGH_FOR_P99 = 1000  # fewer events leave under ten beyond the 99th percentile


def inter_token_gaps_ms(gen: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from each request's token to its next, ms; a gap belongs to the window in which its later token arrived."""
    ordered = gen.sort_values(["request_id", "sequence_number"], kind="stable")
    gaps_ns = ordered.groupby("request_id", sort=False)["arrival_ns"].diff()
    counted = gaps_ns.notna() & inside(ordered["arrival_ns"], start_ns, end_ns)
    return gaps_ns[counted].to_numpy(dtype="float64") / NS_PER_MS


def first_token_ms(requests: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from submission to the first token, ms, of requests without error whose first token came in the window."""
    came = requests[requests["first_token_ns"].notna() & requests["error"].isna()]
    first_ns = came["first_token_ns"].astype("int64")
    waits_ns = (first_ns - came["submitted_ns"])[inside(first_ns, start_ns, end_ns)]
    return waits_ns.to_numpy(dtype="float64") / NS_PER_MS


def batch_ms(embed: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from start to end, ms, of embedding batches that ended in the window."""
    took_ns = (embed["done_ns"] - embed["started_ns"])[inside(embed["done_ns"], start_ns, end_ns)]
    return took_ns.to_numpy(dtype="float64") / NS_PER_MS


def describe_ms(values_ms: np.ndarray) -> dict[str, float]:
    """count, p50_ms, p99_ms and max_ms; null without events. Whoever shows p99_ms shows the count."""
    values = np.asarray(values_ms, dtype="float64")
    if not len(values):
        return {"count": 0, "p50_ms": np.nan, "p99_ms": np.nan, "max_ms": np.nan}
    p50, p99 = np.percentile(values, [50, 99])
    return {"count": len(values), "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(values.max())}


def by_step(samples: pd.DataFrame) -> pd.DataFrame:
    """A row a step and kind: count, p50_ms, p99_ms, max_ms, mechanism, pooled over trials; `samples` of `Measured`."""
    rows = [
        {"step": step, "kind": kind, **describe_ms(group["ms"].to_numpy())}
        for (step, kind), group in samples.groupby(["step", "kind"], sort=False)
    ]
    frame = pd.DataFrame(rows, columns=["step", "kind", "count", "p50_ms", "p99_ms", "max_ms"])
    return frame.assign(mechanism=frame["step"].map(mechanisms_in(samples)))


def longest_silence_ms(events_ns: pd.Series, start_ns: int, end_ns: int) -> float:
    """Longest time without an event in [start_ns, end_ns), ms; the window's own edges count as events.

    A window without any event is one silence as long as itself.
    """
    events = np.sort(events_ns[inside(events_ns, start_ns, end_ns)].to_numpy(dtype="int64"))
    edges = np.concatenate([[start_ns], events, [end_ns]])
    return float(np.diff(edges).max()) / NS_PER_MS


def requests_within(
    requests: pd.DataFrame, gen: pd.DataFrame, start_ns: int, end_ns: int, ttft_ms: float, stall_ms: float
) -> tuple[int, int]:
    """(requests within both bounds, requests alive in the window).

    A request is within when its first token came within `ttft_ms` and no later one took longer than `stall_ms`.
    One that failed is not within; for one still going at the window's end the wait so far counts. Waits that were
    over before the window began belong to the warm-up.
    """
    alive = requests[(requests["submitted_ns"] < end_ns) & (requests["done_ns"].fillna(end_ns) >= start_ns)]
    tokens = gen[gen["arrival_ns"] < end_ns].sort_values(["request_id", "arrival_ns"])
    last_ns = tokens.groupby("request_id")["arrival_ns"].max()
    gaps_ns = tokens.groupby("request_id")["arrival_ns"].diff()[tokens["arrival_ns"] >= start_ns]
    gap_ns = gaps_ns.groupby(tokens["request_id"]).max()
    first_ns = alive["first_token_ns"].astype("Int64")
    first_ns = first_ns.where(first_ns < end_ns).fillna(end_ns).astype("int64")
    waited = (first_ns - alive["submitted_ns"]).clip(lower=0).where(first_ns >= start_ns, 0)
    going = ~(alive["done_ns"].astype("Int64") < end_ns).fillna(False).astype(bool)
    ids = alive["request_id"]
    open_ns = (end_ns - ids.map(last_ns)).where(going, 0).fillna(0)
    longest_ns = np.maximum(ids.map(gap_ns).fillna(0), open_ns)
    within = (waited <= ttft_ms * NS_PER_MS) & (longest_ns <= stall_ms * NS_PER_MS) & alive["error"].isna()
    return int(within.sum()), len(alive)


def share_within(values_ms: np.ndarray, bound_ms: float) -> float:
    """Fraction of `values_ms` at or under `bound_ms`; null without values."""
    values = np.asarray(values_ms, dtype="float64")
    return float((values <= bound_ms).mean()) if len(values) else float("nan")


WATTS = "device_power_w"


def with_power(counted: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """`counted` with a column `WATTS`: the sum over the trial's devices, null where no device offers it.

    `samples`: `telemetry_series`. The counter's rise over the samples' span is exact where sampled power is not.
    """
    if samples.empty:
        return counted.assign(**{WATTS: np.nan})
    mine = samples[samples["in_window"] & (samples["scope"] == "device")]
    watts = {
        (str(step), int(trial)): sum(_watts(device) for _, device in group.groupby("name"))
        for (step, trial), group in mine.groupby(["step", "trial"])
    }
    keys = zip(counted["step"], counted["trial"], strict=True)
    return counted.assign(**{WATTS: [watts.get((str(step), int(trial)), np.nan) for step, trial in keys]})


def _watts(device: pd.DataFrame) -> float:
    counter = device[["t_ns", "energy_mj"]].dropna()
    span_s = (counter["t_ns"].max() - counter["t_ns"].min()) / NS_PER_S if len(counter) > 1 else 0.0
    if span_s > 0:
        return float(counter["energy_mj"].max() - counter["energy_mj"].min()) / 1e3 / span_s
    return float(device["power_w"].mean())


GetFrame = Callable[[str, int, str], pd.DataFrame | None]
NUMBERS = [
    "gen_tokens",
    "gen_tokens_per_s",
    "embed_sequences",
    "embed_sequences_per_s",
    "gap_count",
    "gap_p50_ms",
    "gap_p99_ms",
    "gap_max_ms",
    "ttft_count",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "ttft_max_ms",
    "batch_count",
    "batch_p50_ms",
    "batch_p99_ms",
    "batch_max_ms",
    "gen_stall_ms",
    "embed_stall_ms",
    "requests",
    "requests_within",
    "requests_failed",
    "batches_within",
    "gen_age_spread",
    "gen_demand_met",
    "embed_demand_met",
]


@dataclass(frozen=True)
class Measured:
    """`trials`: the run's trials with the columns of `NUMBERS` added, null where a trial has none or failed.

    `samples`: step, mechanism, trial, kind (gap, ttft, batch), ms; a row an event of a trial that counts.
    """

    trials: pd.DataFrame
    samples: pd.DataFrame

    @property
    def counted(self) -> pd.DataFrame:
        """The trials that count: every estimate is made from these alone."""
        return self.trials[self.trials["status"] == "done"]


def measure_trials(trials: pd.DataFrame, get_frame: GetFrame, slos: Thresholds) -> Measured:
    """Measure every trial that has a window; `get_frame(step, trial, name)` gives a frame or None."""
    rows, samples = [], []
    for trial in trials.to_dict("records"):
        measured, events = _measure_trial(trial, get_frame, slos)
        rows.append(measured)
        if trial["status"] == "done":
            samples += events
    numbers = pd.DataFrame(rows, columns=NUMBERS, index=trials.index).astype("float64")
    empty = pd.DataFrame({"step": [], "mechanism": [], "trial": [], "kind": [], "ms": np.array([], dtype="float64")})
    return Measured(trials.join(numbers), pd.concat(samples, ignore_index=True) if samples else empty)


def _measure_trial(
    trial: dict[str, Any], get_frame: GetFrame, slos: Thresholds
) -> tuple[dict[str, float], list[pd.DataFrame]]:
    start_ns, end_ns = trial["window_start_ns"], trial["window_end_ns"]
    if pd.isna(start_ns) or pd.isna(end_ns) or end_ns <= start_ns or trial["status"] == "failed":
        return {}, []
    window = (int(start_ns), int(end_ns))
    gen, requests, embed = (get_frame(trial["step"], trial["trial"], name) for name in ("gen", "requests", "embed"))
    measured: dict[str, float] = {}
    kinds: dict[str, np.ndarray] = {}
    if gen is not None:
        measured |= _measure_gen(gen, requests, window, slos)
        kinds["gap"] = inter_token_gaps_ms(gen, *window)
    measured |= _demand_met(trial, requests, embed, window, slos)
    if requests is not None:
        kinds["ttft"] = first_token_ms(requests, *window)
    if embed is not None:
        kinds["batch"] = batch_ms(embed, *window)
        work = sequence_work(embed)
        measured |= {"embed_sequences": work.ended(*window), "embed_sequences_per_s": work.rate(*window)}
        measured["embed_stall_ms"] = longest_silence_ms(embed["done_ns"], *window)
        measured["batches_within"] = share_within(kinds["batch"], slos.slo_embed_batch_ms)
    for kind, values in kinds.items():
        measured |= {f"{kind}_{name}": value for name, value in describe_ms(values).items()}
    place = {name: trial.get(name) for name in ("step", "mechanism", "trial")}
    return measured, [pd.DataFrame({**place, "kind": kind, "ms": values}) for kind, values in kinds.items()]


def _demand_met(
    trial: dict[str, Any],
    requests: pd.DataFrame | None,
    embed: pd.DataFrame | None,
    window: tuple[int, int],
    slos: Thresholds,
) -> dict[str, float]:
    """gen_demand_met, embed_demand_met: part of what was due that was served within its SLO, where there is a demand.

    Of gen: its first token came. Of embed: it was done. Each counts from when it was due, not from when it was sent.
    """
    met: dict[str, float | None] = {}
    if requests is not None and not pd.isna(trial.get("gen_due")):
        came = requests[requests["first_token_ns"].notna() & requests["error"].isna()]
        due_ns, first_ns = (came[name].to_numpy(dtype="int64") for name in ("submitted_ns", "first_token_ns"))
        met["gen_demand_met"] = share_met(due_ns, first_ns, int(trial["gen_due"]), window, slos.slo_gen_ttft_ms)
    if embed is not None and not pd.isna(trial.get("embed_due")):
        due_ns, done_ns = (embed[name].to_numpy(dtype="int64") for name in ("started_ns", "done_ns"))
        met["embed_demand_met"] = share_met(due_ns, done_ns, int(trial["embed_due"]), window, slos.slo_embed_batch_ms)
    return {name: np.nan if share is None else share for name, share in met.items()}


def _measure_gen(
    gen: pd.DataFrame, requests: pd.DataFrame | None, window: tuple[int, int], slos: Thresholds
) -> dict[str, float]:
    work = token_work(gen, requests)
    measured: dict[str, float] = {"gen_tokens": work.ended(*window), "gen_tokens_per_s": work.rate(*window)}
    measured["gen_stall_ms"] = longest_silence_ms(gen["arrival_ns"], *window)
    if requests is not None:
        bounds = (slos.slo_gen_ttft_ms, slos.slo_gen_stall_ms)
        within, alive = requests_within(requests, gen, *window, *bounds)
        spread = age_spread(gen, requests, *window)
        measured["gen_age_spread"] = np.nan if spread is None else spread
        measured |= {"requests": alive, "requests_within": within / alive if alive else np.nan}
        measured["requests_failed"] = int((requests["error"].notna() & (requests["submitted_ns"] < window[1])).sum())
    return measured
