"""How embed was paced: what the controller saw and asked for, over the trials that have its trace."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from colo_lib.analyse.throughput import NS_PER_S, inside

GetFrame = Callable[[str, int, str], pd.DataFrame | None]


def series(trials: pd.DataFrame, get_frame: GetFrame) -> pd.DataFrame:
    """Every tick of every trial that was paced by gen's gaps: `schema.PACING` and step, trial, in_window, trial_s.

    trial_s: seconds since the trial's window began (negative: warm-up). Empty where nothing was paced so.
    """
    parts = []
    for trial in trials.to_dict("records"):
        frame = get_frame(trial["step"], trial["trial"], "pacing")
        if frame is None or frame.empty or pd.isna(trial["window_start_ns"]) or pd.isna(trial["window_end_ns"]):
            continue
        start_ns, end_ns = int(trial["window_start_ns"]), int(trial["window_end_ns"])
        own = frame.assign(step=trial["step"], trial=trial["trial"])
        own["in_window"] = inside(own["t_ns"], start_ns, end_ns)
        own["trial_s"] = (own["t_ns"] - start_ns) / NS_PER_S
        parts.append(own)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summary(ticks: pd.DataFrame) -> pd.DataFrame:
    """By step and trial, inside the windows: gaps, late_fraction, duty (mean asked), embed_duty (mean worked)."""
    columns = ["step", "trial", "gaps", "late_fraction", "duty", "embed_duty"]
    if ticks.empty:
        return pd.DataFrame(columns=columns)
    grouped = ticks[ticks["in_window"]].groupby(["step", "trial"], sort=False)
    sums = grouped[["gaps", "late"]].sum()
    means = grouped[["duty", "embed_duty"]].mean()
    frame = means.assign(gaps=sums["gaps"], late_fraction=sums["late"] / sums["gaps"].where(sums["gaps"] > 0))
    return frame.reset_index()[columns]
