"""Telemetry: means inside the windows, and a run-long series; what a device does not offer stays null."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from colo_lib.analyse.throughput import NS_PER_S, inside

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


def series(trials: pd.DataFrame, get_frame: GetFrame) -> pd.DataFrame:
    """Every sample of every measured trial: `schema.TELEMETRY` and step, trial, status, in_window, run_s.

    run_s: seconds since the first sample of the run.
    """
    parts = []
    for trial in trials.to_dict("records"):
        frame = get_frame(trial["step"], trial["trial"], "telemetry")
        if frame is None or frame.empty or pd.isna(trial["window_start_ns"]) or pd.isna(trial["window_end_ns"]):
            continue
        own = frame.assign(step=trial["step"], trial=trial["trial"], status=trial["status"])
        own["in_window"] = inside(own["t_ns"], int(trial["window_start_ns"]), int(trial["window_end_ns"]))
        parts.append(own)
    if not parts:
        return pd.DataFrame()
    joined = pd.concat(parts, ignore_index=True)
    joined["run_s"] = (joined["t_ns"] - joined["t_ns"].min()) / NS_PER_S
    return joined


def summary(samples: pd.DataFrame) -> pd.DataFrame:
    """Means by step, scope and name inside the windows that count: a row each metric of `METRICS` that was sampled.

    Columns: step, scope, name, metric, label, unit, mean, low (5th percentile), high (95th), samples.
    """
    columns = ["step", "scope", "name", "metric", "label", "unit", "mean", "low", "high", "samples"]
    if samples.empty:
        return pd.DataFrame(columns=columns)
    counted = samples[samples["in_window"] & (samples["status"] == "done")]
    rows = []
    for (step, scope, name), group in counted.groupby(["step", "scope", "name"], sort=False):
        for metric, (label, unit, factor) in METRICS.items():
            values = group[metric].dropna() * factor
            if len(values):
                low, high = values.quantile([0.05, 0.95])
                rows.append((step, scope, name, metric, label, unit, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=columns)


def absent(samples: pd.DataFrame) -> list[str]:
    """Labels of the metrics that no device and no workload of this run offered."""
    return [label for metric, (label, _, _) in METRICS.items() if samples.empty or samples[metric].isna().all()]


def reasons(trials: pd.DataFrame) -> pd.DataFrame:
    """Why a field has no value, as the driver said it: device, field, reason, trials (how many said so)."""
    rows = [
        (str(device), str(field), str(reason))
        for told in trials.get("telemetry_absent", [])
        if isinstance(told, dict)
        for device, fields in told.items()
        for field, reason in fields.items()
    ]
    frame = pd.DataFrame(rows, columns=["device", "field", "reason"])
    return frame.groupby(["device", "field", "reason"], sort=False).size().reset_index(name="trials")


def cost_sentence(trials: pd.DataFrame) -> str:
    """What the sampling itself cost, and where it has gaps."""
    cost = trials["telemetry_cpu_fraction"].dropna()
    gaps = [gap for told in trials["telemetry_gaps"] if isinstance(told, list) for gap in told]
    told = (
        f"Sampling took {cost.mean():.1%} of one core (at most {cost.max():.1%})" if len(cost) else "Cost not recorded"
    )
    if not gaps:
        return told + "; no gaps."
    return f"{told}; {len(gaps)} gaps, the first because {gaps[0].get('reason')}."
