"""Telemetry over a run: means inside the windows and a run-long series; what a device does not offer stays null.

Memory is the budget of the run against what its trials used, in GiB. Pacing is what the controller saw and asked for,
over the trials that have its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from colo_lib.analysis.trial_metrics import inside
from colo_lib.frames import NS_PER_S
from colo_lib.records import BudgetRow
from colo_lib.steps import STEP_IDS, mechanisms_in

GetFrame = Callable[[str, int, str], pd.DataFrame | None]
# column -> (label, unit, factor from the frame's unit to the shown one)
METRICS = {
    "utilization": ("Device utilisation", "%", 100.0),
    "memory_utilization": ("Memory-bandwidth utilisation", "%", 100.0),
    "sm_active": ("SM activity", "%", 100.0),
    "sm_occupancy": ("SM occupancy, measured", "%", 100.0),
    "tensor_active": ("Tensor-core activity", "%", 100.0),
    "dram_active": ("DRAM bandwidth in use", "%", 100.0),
    "nvlink_gib_s": ("NVLink traffic", "GiB/s", 1.0),
    "sm_clock_mhz": ("SM (or core) clock", "MHz", 1.0),
    "memory_clock_mhz": ("Memory clock", "MHz", 1.0),
    "power_w": ("Power", "W", 1.0),
    "temperature_c": ("Temperature", "°C", 1.0),
    "memory_used_gib": ("Memory used", "GiB", 1.0),
    "cpu_cores": ("CPU in use", "cores", 1.0),
}


def telemetry_series(trials: pd.DataFrame, get_frame: GetFrame) -> pd.DataFrame:
    """Every sample of every measured trial: `frames.TELEMETRY` and step, mechanism, trial, status, in_window, run_s.

    run_s: seconds since the first sample of the run.
    """
    parts = []
    for trial in trials.to_dict("records"):
        frame = get_frame(trial["step"], trial["trial"], "telemetry")
        if frame is None or frame.empty or pd.isna(trial["window_start_ns"]) or pd.isna(trial["window_end_ns"]):
            continue
        samples = frame.assign(**{name: trial.get(name) for name in ("step", "mechanism", "trial", "status")})
        samples["in_window"] = inside(samples["t_ns"], int(trial["window_start_ns"]), int(trial["window_end_ns"]))
        parts.append(samples)
    if not parts:
        return pd.DataFrame()
    joined = pd.concat(parts, ignore_index=True)
    joined["run_s"] = (joined["t_ns"] - joined["t_ns"].min()) / NS_PER_S
    return joined


def telemetry_summary(samples: pd.DataFrame) -> pd.DataFrame:
    """Means by step, scope and name inside the windows that count: a row each metric of `METRICS` that was sampled.

    Columns: step, scope, name, metric, label, unit, mean, low (5th percentile), high (95th), samples, mechanism.
    """
    columns = ["step", "scope", "name", "metric", "label", "unit", "mean", "low", "high", "samples"]
    if samples.empty:
        return pd.DataFrame(columns=[*columns, "mechanism"])
    counted = samples[samples["in_window"] & (samples["status"] == "done")]
    rows = []
    for (step, scope, name), group in counted.groupby(["step", "scope", "name"], sort=False):
        for metric, (label, unit, factor) in METRICS.items():
            values = group[metric].dropna() * factor
            if len(values):
                low, high = values.quantile([0.05, 0.95])
                rows.append((step, scope, name, metric, label, unit, values.mean(), low, high, len(values)))
    return _with_mechanism(pd.DataFrame(rows, columns=columns), samples)


def _with_mechanism(frame: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(mechanism=frame["step"].map(mechanisms_in(source)))


def absent(samples: pd.DataFrame) -> list[str]:
    """Labels of the metrics that no device and no workload of this run offered."""
    return [label for metric, (label, _, _) in METRICS.items() if samples.empty or samples[metric].isna().all()]


def reasons(trials: pd.DataFrame) -> pd.DataFrame:
    """Why a field has no value, as the driver said it: device, field, reason, trials (how many said so)."""
    rows = [
        (str(device), str(field), str(reason))
        for absent_fields in trials.get("telemetry_absent", [])
        if isinstance(absent_fields, dict)
        for device, fields in absent_fields.items()
        for field, reason in fields.items()
    ]
    frame = pd.DataFrame(rows, columns=["device", "field", "reason"])
    return frame.groupby(["device", "field", "reason"], sort=False).size().reset_index(name="trials")


def cost_sentence(trials: pd.DataFrame) -> str:
    """What the sampling itself cost, and where it has gaps."""
    cost = trials["telemetry_cpu_fraction"].dropna()
    gaps = [gap for listed in trials["telemetry_gaps"] if isinstance(listed, list) for gap in listed]
    sentence = (
        f"Sampling took {cost.mean():.1%} of one core (at most {cost.max():.1%})" if len(cost) else "Cost not recorded"
    )
    if not gaps:
        return sentence + "; no gaps."
    return f"{sentence}; {len(gaps)} gaps, the first because {gaps[0].get('reason')}."


PARTS = ["gen weights", "gen KV cache", "gen activations", "embed weights", "embed activations", "reserve"]


def budget_frame(budget: Sequence[BudgetRow]) -> pd.DataFrame:
    """device, part, gib, available_gib: a row a part of the manifest's budget, known parts first."""
    rows = []
    for entry in budget:
        parts = entry.parts
        order = [part for part in PARTS if part in parts] + [part for part in parts if part not in PARTS]
        available = float(entry.available_gib or float("nan"))
        rows += [(entry.device, part, float(parts[part] or 0.0), available) for part in order]
    return pd.DataFrame(rows, columns=["device", "part", "gib", "available_gib"])


def parts_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """step, workload, part, gib, mechanism: the median over the trials that count of what the engines themselves told.

    `rest` is what NVML counts beyond those parts: activations and context of gen, the context of embed. Empty where
    nothing was told (cores that stand in for GPUs, runs of an earlier version).
    """
    counted, rows = trials[trials["status"] == "done"], []
    columns = [name for name in trials.columns if name.endswith("_memory_gib") and name.count("_") > 2]
    for step, group in counted.groupby("step", sort=False):
        for name in columns:
            workload, _, part = name.removesuffix("_memory_gib").partition("_")
            if group[name].notna().any():
                rows.append((str(step), workload, part.replace("_", " "), float(group[name].median())))
    return _with_mechanism(pd.DataFrame(rows, columns=["step", "workload", "part", "gib"]), trials)


def measured_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """step, gen_gib, embed_gib, free_gib, trials, mechanism: the most of each (the least of free) over the trials that
    count.
    """
    counted = trials[trials["status"] == "done"]
    grouped = counted.groupby("step", sort=False)
    frame = pd.DataFrame(
        {
            "gen_gib": grouped["gen_memory_gib"].max(),
            "embed_gib": grouped["embed_memory_gib"].max(),
            "free_gib": grouped["free_memory_gib"].min(),
            "trials": grouped.size(),
        }
    )
    frame = _with_mechanism(frame.reset_index(), trials)
    return frame.sort_values("step", key=lambda steps: steps.map(STEP_IDS.index), ignore_index=True)


@dataclass(frozen=True)
class Memory:
    """GiB: `budget` (`budget_frame`), `used` (`measured_frame`), `parts` of what each process used (`parts_frame`)."""

    budget: pd.DataFrame
    used: pd.DataFrame
    parts: pd.DataFrame


def memory_of(budget: Sequence[BudgetRow], trials: pd.DataFrame) -> Memory:
    """The manifest's budget against what the trials that count used."""
    return Memory(budget_frame(budget), measured_frame(trials), parts_frame(trials))


def pacing_series(trials: pd.DataFrame, get_frame: GetFrame) -> pd.DataFrame:
    """Every tick of every trial that was paced by gen's gaps: `frames.PACING` and the trial's place.

    That is: step, mechanism, trial, in_window, trial_s.
    trial_s: seconds since the trial's window began (negative: warm-up). Empty where nothing was paced so.
    """
    parts = []
    for trial in trials.to_dict("records"):
        frame = get_frame(trial["step"], trial["trial"], "pacing")
        if frame is None or frame.empty or pd.isna(trial["window_start_ns"]) or pd.isna(trial["window_end_ns"]):
            continue
        start_ns, end_ns = int(trial["window_start_ns"]), int(trial["window_end_ns"])
        ticks = frame.assign(**{name: trial.get(name) for name in ("step", "mechanism", "trial")})
        ticks["in_window"] = inside(ticks["t_ns"], start_ns, end_ns)
        ticks["trial_s"] = (ticks["t_ns"] - start_ns) / NS_PER_S
        parts.append(ticks)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def pacing_summary(ticks: pd.DataFrame) -> pd.DataFrame:
    """By step and trial, inside the windows: gaps, late_fraction, duty (mean asked), embed_duty (mean worked).

    And mechanism.
    """
    columns = ["step", "trial", "gaps", "late_fraction", "duty", "embed_duty"]
    if ticks.empty:
        return pd.DataFrame(columns=[*columns, "mechanism"])
    grouped = ticks[ticks["in_window"]].groupby(["step", "trial"], sort=False)
    sums = grouped[["gaps", "late"]].sum()
    means = grouped[["duty", "embed_duty"]].mean()
    frame = means.assign(gaps=sums["gaps"], late_fraction=sums["late"] / sums["gaps"].where(sums["gaps"] > 0))
    return _with_mechanism(frame.reset_index()[columns], ticks)
