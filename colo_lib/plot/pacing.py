"""The controller that paces embed, at work: gen's gaps against their SLO, and the duty that it asked for."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOUND_COLOUR, EMBED_COLOUR, GEN_COLOUR, WIDTH_IN, apply_style

MOST_TRIALS = 4


def over_time(ticks: pd.DataFrame, slo_gap_ms: float) -> Figure:
    """Two panels a trial (the first four): gaps of gen in ms and duty of embed in %, over the trial's seconds.

    `ticks`: `analyse.pacing.series`. The window is shaded; before it lies the warm-up.
    """
    apply_style()
    trials = list(ticks.groupby(["step", "trial"], sort=False))[:MOST_TRIALS] if len(ticks) else []
    figure = Figure(figsize=(WIDTH_IN, 0.6 + 3.6 * max(len(trials), 1)), layout="constrained")
    panels = figure.subplots(2 * max(len(trials), 1), 1, squeeze=False)[:, 0]
    if not trials:
        panels[0].text(0.5, 0.5, "no trial was paced by gen's gaps", transform=panels[0].transAxes, ha="center")
        return figure
    for number, ((step, trial), own) in enumerate(trials):
        upper, lower = panels[2 * number], panels[2 * number + 1]
        _gaps(upper, own, slo_gap_ms)
        upper.set_title(f"{step}, trial {trial}: gen's gaps between tokens")
        _duty(lower, own)
        for axes in (upper, lower):
            axes.axvspan(*_window(own), color="#F0E442", alpha=0.22, linewidth=0)
            axes.set_xlim(own["trial_s"].min(), own["trial_s"].max())
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[-1].set_xlabel("time since the window began (s); shaded: the window")
    return figure


def _window(own: pd.DataFrame) -> tuple[float, float]:
    inside = own.loc[own["in_window"], "trial_s"]
    return (float(inside.min()), float(inside.max())) if len(inside) else (0.0, 0.0)


def _gaps(axes: Axes, own: pd.DataFrame, slo_gap_ms: float) -> None:
    seconds = own["trial_s"]
    axes.plot(seconds, own["gap_max_ms"], ".", color=GEN_COLOUR, alpha=0.35, markersize=3, label="longest of a tick")
    axes.plot(seconds, own["gap_p99_ms"], color=GEN_COLOUR, label="p99 of 2 s", gid="gap-p99")
    axes.axhline(slo_gap_ms, color=BOUND_COLOUR, linestyle="--", label=f"SLO, {slo_gap_ms:g} ms", gid="slo")
    axes.set(ylabel="ms", yscale="log")


def _duty(axes: Axes, own: pd.DataFrame) -> None:
    axes.plot(own["trial_s"], own["duty"] * 100, color=EMBED_COLOUR, drawstyle="steps-post", label="asked", gid="duty")
    axes.plot(own["trial_s"], own["embed_duty"] * 100, color=EMBED_COLOUR, linestyle=":", label="worked", gid="worked")
    axes.set(title="embed's duty", ylabel="% of the time", ylim=(0, 105))
