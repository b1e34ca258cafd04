"""The published runs beside each other and beside any run: what they printed, recomputed, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

# metric -> (label, unit): what a published run and a run of this workbook have in common
SHARED_METRICS = {
    "gen_tokens_per_s": ("Gen throughput", "tokens/s"),
    "embed_sequences_per_s": ("Embed throughput", "sequences/s"),
    "gen_kept": ("Gen kept fraction", ""),
    "embed_kept": ("Embed kept fraction", ""),
    "aggregate": ("Aggregate (gen + embed kept)", ""),
    "utilization": ("Device utilisation", "%"),
    "memory_utilization": ("Memory-bandwidth utilisation", "%"),
    "sm_clock_mhz": ("SM clock", "MHz"),
    "power_w": ("Power", "W"),
    "temperature_c": ("Temperature", "°C"),
}
STEPS = ("step1", "step2", "step3", "step4")
POINT_COLUMNS = ["run", "step", "metric", "low", "mean", "high", "starts"]
CONDITIONS = {
    "gpu": "Device",
    "gen_model": "Model of gen",
    "embed_model": "Model of embed",
    "weights": "Weights",
    "gen_quantization": "Quantisation of gen",
    "gen_concurrency": "Requests in flight",
    "gen_prompt_tokens": "Prompt, tokens",
    "gen_output_tokens": "Output, tokens",
    "embed_batch_size": "Embed batch, sequences",
    "embed_sequence_tokens": "Embed sequence, tokens",
    "gen_enforce_eager": "Eager (no CUDA graphs)",
    "step2_mechanism": "Mechanism of step 2",
    "vllm": "vLLM version",
    "driver": "Driver",
}
UNTOLD = "not told"


def figure(figures: pd.DataFrame, run: str, metric: str, step: str, item: str = "") -> tuple[float, float]:
    """(low, high) of a printed figure of a run's own tables; (nan, nan) where it printed none."""
    mine = figures[(figures["run"] == run) & (figures["metric"] == metric) & (figures["step"] == step)]
    mine = mine[(mine["table"] != "comparison") & (mine["item"] == item)]
    return (np.nan, np.nan) if mine.empty else (float(mine["low"].iloc[0]), float(mine["high"].iloc[0]))


def recomputed(figures: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Every printed change beside the one that the printed figures give; `agrees` to the rounding printed.

    Columns: run, where, metric, printed, low, high (recomputed, in the unit printed), agrees.
    """
    rows = []
    for row in changes.itertuples():
        mine = figure(figures, row.run, row.metric, row.step)
        base = figure(figures, row.run, row.metric, row.against)
        alone = figure(figures, row.run, row.metric, "step1")[0]
        low, high = (_change(row.kind, *pair, alone) for pair in zip(mine, base, strict=True))
        agrees = _rounds_to(low, row.low, row.digits) and _rounds_to(high, row.high, row.digits)
        rows.append((row.run, row.where, row.metric, row.printed, low, high, agrees))
    return pd.DataFrame(rows, columns=["run", "where", "metric", "printed", "low", "high", "agrees"])


def _change(kind: str, value: float, base: float, alone: float) -> float:
    """change: % of the base gained or lost; kept: % of it left; times: the ratio; points: in % of the rate alone."""
    if kind == "points":
        return (value - base) / alone * 100
    return {"change": value / base * 100 - 100, "kept": value / base * 100, "times": value / base}[kind]


def identities(figures: pd.DataFrame) -> pd.DataFrame:
    """Figures that follow from others of the same table: run, what, printed, recomputed, agrees (to its rounding)."""
    found = [*_trace_identities(figures), *_overlap_identities(figures)]
    rows = [
        (run, what, printed, value, _rounds_to(value, printed, digits)) for run, what, printed, value, digits in found
    ]
    return pd.DataFrame(rows, columns=["run", "what", "printed", "recomputed", "agrees"])


def _trace_identities(figures: pd.DataFrame) -> list[tuple[str, str, float, float, int]]:
    def told(metric: str, item: str = "") -> float:
        return figure(figures, "trace", metric, "step1", item)[0]

    kernels, busy_ms, span_ms = told("gen_kernels"), told("kernel_time_ms"), told("trace_span_ms")
    rows = [
        ("trace", "mean kernel duration, us", told("gen_kernel_mean_us"), busy_ms * 1e3 / kernels, 1),
        ("trace", "GPU idle fraction, %", told("gpu_idle"), (1 - busy_ms / span_ms) * 100, 1),
        ("trace", "mean gap, us", told("mean_gap_us"), (span_ms - busy_ms) * 1e3 / kernels, 1),
    ]
    mine = figures[(figures["run"] == "trace") & (figures["table"] == "categories")]
    names = list(dict.fromkeys(mine["item"]))
    rows.append(("trace", "kernels of all categories", kernels, sum(told("gen_kernels", name) for name in names), 0))
    for name in names:
        share = told("kernel_time_ms", name) / busy_ms * 100
        rows.append(("trace", f"share of kernel time, %: {name}", told("kernel_time_share", name), share, 1))
    return rows


def _overlap_identities(figures: pd.DataFrame) -> list[tuple[str, str, float, float, int]]:
    rows = []
    for step in ("step2", "step3"):
        busy_ms = figure(figures, "run2", "gen_kernels", step)[0] / 1e3
        busy_ms *= figure(figures, "run2", "gen_kernel_mean_us", step)[0]
        found = figure(figures, "run2", "kernel_overlap_ms", step)[0] / busy_ms * 100
        rows.append(("run2", f"{step}: overlap, % of gen's kernel time",
                     figure(figures, "run2", "kernel_overlap_of_gen", step)[0], found, 1))  # fmt: skip
    return rows


def _rounds_to(value: float, printed: float, digits: int) -> bool:
    """Whether `value` is what was printed to `digits` decimals (a half may have been rounded either way)."""
    return bool(abs(value - printed) <= 0.5 * 10.0**-digits + 1e-9)


def points(figures: pd.DataFrame, run: str) -> pd.DataFrame:
    """A published run on `SHARED_METRICS`, with kept fractions from its printed rates: `POINT_COLUMNS`.

    Its ranges are spreads of readings, not intervals. Without step 4 embed's kept fraction and aggregate are absent.
    """
    rows = []
    for metric in SHARED_METRICS:
        for step in STEPS:
            low, high = figure(figures, run, metric, step)
            if np.isfinite(low):
                rows.append((run, step, metric, low, (low + high) / 2, high, np.nan))
    for step in ("step2", "step3"):
        kept = {}
        for name, metric, base in (("gen_kept", "gen_tokens_per_s", "step1"),
                                   ("embed_kept", "embed_sequences_per_s", "step4")):  # fmt: skip
            alone = figure(figures, run, metric, base)[0]
            low, high = figure(figures, run, metric, step)
            if np.isfinite([alone, low]).all():
                kept[name] = (low / alone, high / alone)
        if len(kept) == 2:
            kept["aggregate"] = (kept["gen_kept"][0] + kept["embed_kept"][0],
                                 kept["gen_kept"][1] + kept["embed_kept"][1])  # fmt: skip
        rows += [(run, step, name, low, (low + high) / 2, high, np.nan) for name, (low, high) in kept.items()]
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def own_points(run_id: str, rates: pd.DataFrame, kept: pd.DataFrame, telemetry: pd.DataFrame) -> pd.DataFrame:
    """A run of this workbook on the same metrics; low and high are its 95 % interval, or null.

    `rates`: `steps_table` rows of throughput; `kept`: `kept_fractions`; `telemetry`: `telemetry.summary`.
    """
    rows = []
    labels = {label: metric for metric, (label, _) in SHARED_METRICS.items()}
    for row in rates[rates["row"].isin(labels) & rates["step"].isin(STEPS)].itertuples():
        if row.row.endswith("throughput"):
            rows.append((run_id, row.step, labels[row.row], row.low, row.mean, row.high, row.starts))
    names = {"gen": "gen_kept", "embed": "embed_kept", "aggregate": "aggregate"}
    for row in kept[kept["step"].isin(STEPS) & kept["quantity"].isin(names)].itertuples():
        rows.append((run_id, row.step, names[row.quantity], row.low, row.mean, row.high, row.starts))
    devices = telemetry[(telemetry["scope"] == "device") & telemetry["metric"].isin(SHARED_METRICS)]
    for (step, metric), group in devices[devices["step"].isin(STEPS)].groupby(["step", "metric"], sort=False):
        rows.append((run_id, step, metric, np.nan, float(group["mean"].mean()), np.nan, np.nan))
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def all_points(
    figures: pd.DataFrame, run_id: str, rates: pd.DataFrame, kept: pd.DataFrame, telemetry: pd.DataFrame
) -> pd.DataFrame:
    """The three published runs and one's own: `points` and `own_points` in one frame."""
    theirs = [points(figures, run) for run in ("run1", "run2", "run3")]
    return pd.concat([*theirs, own_points(run_id, rates, kept, telemetry)], ignore_index=True)


def conditions_of(manifest: Mapping[str, Any], trials: pd.DataFrame) -> dict[str, Any]:
    """A run's conditions under the names of `CONDITIONS`, out of its manifest and its trials."""
    params, machine, models = manifest["params"], manifest["machine"], manifest["models"]
    found = {name: params[name] for name in CONDITIONS if name in params}
    found |= {f"{name}_model": models.get(name, {}).get("name") for name in ("gen", "embed")}
    found |= {"gpu": machine.get("device_name"), "driver": machine.get("driver")}
    found["weights"] = models.get("gen", {}).get("weights", found.get("weights"))
    found["step2_mechanism"] = dict(zip(trials["step"], trials["mechanism"], strict=True)).get("step2")
    return found | {"vllm": (machine.get("versions") or {}).get("vllm")}


def differences(published: Mapping[str, Mapping[str, Any]], mine: Mapping[str, Any]) -> pd.DataFrame:
    """A row a condition of `CONDITIONS`: label, a column a published run, `this run`, and the runs that differ.

    What one side did not tell counts as different: alike is only what is known to be alike.
    """
    rows = []
    for name, label in CONDITIONS.items():
        told = {run: _condition(facts, name) for run, facts in published.items()}
        own = _condition(mine, name)
        unlike = [run for run, value in told.items() if value != own or value == UNTOLD]
        rows.append({"condition": label, **told, "this run": own, "differs from": ", ".join(unlike) or "none"})
    return pd.DataFrame(rows)


def _condition(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get("mechanisms", {}).get("step2") if name == "step2_mechanism" else None
    value = facts.get(name) if value is None else value
    if value is None or (value == "" and name != "gen_quantization"):
        return UNTOLD
    return "none" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)
