"""Capacity: GPUs that each layout needs for what is wanted, and what the GPUs at hand can give."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOUND_COLOUR, GROUND, WIDTH_IN, apply_style

LAYOUT_COLOURS = {
    "dedicated": "#4D4D4D",
    "step2": "#E69F00",
    "step3": "#009E73",
    "mig": "#CC79A7",
    "sm-partition": "#56B4E9",
    "configB": "#0072B2",
}


def plan(layouts: pd.DataFrame, reach: pd.DataFrame, gpus: int, wanted: tuple[float, float]) -> Figure:
    """Left: GPUs needed, a bar a layout with its range; right: the pairs of rates that `gpus` GPUs give.

    `layouts`: `analyse.capacity.plan`; `reach`: `reachable`; `wanted`: (tokens/s, sequences/s).
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, max(3.6, 1.8 + 0.5 * len(layouts))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _needed(left, layouts, gpus)
    for layout, rows in reach.groupby("layout", sort=False):
        colour = LAYOUT_COLOURS.get(str(layout), "#999999")
        predicted = bool(layouts.set_index("layout")["predicted"].get(layout, False))
        line, label = "--" if predicted else "-", _name(str(layout), predicted)
        right.plot(rows["tokens_per_s"], rows["sequences_per_s"], color=colour, marker=".", ls=line, label=label)
    right.plot(*wanted, marker="*", markersize=13, color=BOUND_COLOUR, linestyle="", label="wanted")
    right.set(title=f"What {gpus} GPUs give", xlabel="gen (tokens/s)", ylabel="embed (sequences/s)")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _needed(axes: Axes, layouts: pd.DataFrame, gpus: int) -> None:
    for place, row in enumerate(layouts.itertuples()):
        if not np.isfinite(row.gpus):
            axes.annotate("no rate to plan with", (0.2, place), va="center", fontsize=9)
            continue
        colour = LAYOUT_COLOURS.get(row.layout, "#999999")
        hatch = "//" if row.predicted else ""
        axes.barh(place, row.gpus, 0.6, facecolor=colour, alpha=0.45, edgecolor=colour, hatch=hatch)
        ends = np.array([[row.gpus - row.gpus_best], [row.gpus_worst - row.gpus]])
        if np.isfinite(ends).all():
            axes.errorbar(row.gpus, place, xerr=ends.clip(min=0), color="black", capsize=4)
        axes.annotate(
            f"{row.gpus:.0f}", (0, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9,
            bbox=GROUND,
        )  # fmt: skip
    axes.axvline(gpus, color=BOUND_COLOUR, linestyle="--")
    axes.annotate(f"{gpus} at hand", (gpus, 0), xytext=(-3, 22), textcoords="offset points", ha="right",
                  color=BOUND_COLOUR, fontsize=9)  # fmt: skip
    names = [
        _name(row.layout, row.predicted) + "\nbreaks its bounds" * bool(row.breaks) for row in layouts.itertuples()
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.9)
    axes.set(title="GPUs needed", xlabel="GPUs (range: interval ends)")
    axes.grid(axis="y", visible=False)


def _name(layout: str, predicted: bool) -> str:
    return f"{layout}\n(prediction)" if predicted else layout
