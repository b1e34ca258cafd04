"""Published runs and one's own on the same metric: kept fractions of both workloads, run by run."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from colo_lib.plot.style import MECHANISM_MARKERS, WIDTH_IN, WORKLOAD_COLOURS, apply_style

LABEL_CHARACTERS = 16  # of a line of a run's name
OFFSETS = {"step2": -0.14, "step3": 0.14}


def kept_by_run(
    points: pd.DataFrame, mechanisms: dict[tuple[str, str], str], reach: str = "range as printed, or 95 % interval"
) -> Figure:
    """A row a run, gen's kept fraction left and embed's right; `reach` says what the bars are.

    `points`: `analyse.published.POINT_COLUMNS`; `mechanisms`: (run, step) -> mechanism.
    """
    apply_style()
    runs = list(dict.fromkeys(points["run"]))
    figure = Figure(figsize=(WIDTH_IN, 1.9 + 0.55 * len(runs)), layout="constrained")
    for axes, workload in zip(figure.subplots(1, 2, sharey=True), WORKLOAD_COLOURS, strict=True):
        _panel(axes, points[points["metric"] == f"{workload}_kept"], runs, workload, mechanisms)
    used = dict.fromkeys(mechanisms[key] for key in mechanisms if key[1] in OFFSETS)
    handles = [
        Line2D([], [], marker=MECHANISM_MARKERS.get(name, "o"), color="black", linestyle="", label=name)
        for name in used
    ]
    handles.append(Line2D([], [], color="black", marker="|", label=reach))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _panel(
    axes: Axes, points: pd.DataFrame, runs: list[str], workload: str, mechanisms: dict[tuple[str, str], str]
) -> None:
    for row in points.itertuples():
        place = runs.index(row.run) + OFFSETS.get(row.step, 0.0)
        colour = WORKLOAD_COLOURS[workload]
        if np.isfinite([row.low, row.high]).all() and row.high > row.low:
            axes.plot([row.low, row.high], [place, place], color="black", linewidth=1.3, marker="|")
        marker = MECHANISM_MARKERS.get(mechanisms.get((row.run, row.step), ""), "o")
        axes.plot(row.mean, place, marker=marker, color=colour, markersize=7, linestyle="")
    for place, run in enumerate(runs):
        if run not in set(points["run"]):
            axes.annotate("not measured", (0.02, place), va="center", color="#666666", fontsize=9)
    axes.axvline(1.0, color="#999999", linewidth=0.9, linestyle="--")
    # A run's name is shown as it is, never taken for a formula.
    names = [textwrap.fill(run, LABEL_CHARACTERS, max_lines=3, placeholder="…") for run in runs]
    axes.set_yticks(range(len(runs)), [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(0, max(1.1, float(points["high"].max() if len(points) else 0.0) * 1.05))
    axes.grid(axis="y", visible=False)
    axes.set(title=f"{workload}: kept", xlabel="kept fraction (alone = 1)")
