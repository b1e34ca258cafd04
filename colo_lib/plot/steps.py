"""Kept fractions and aggregates by step, with intervals and each block as a dot."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    MECHANISM_HATCHES,
    MECHANISM_MARKERS,
    WIDTH_IN,
    WORKLOAD_COLOURS,
    apply_style,
)
from colo_lib.schema import CO_LOCATED

BAR_WIDTH = 0.36


def kept_fractions(kept: pd.DataFrame, ratios: pd.DataFrame, bounds: dict[str, float] | None = None) -> Figure:
    """What each workload keeps in each shared step (left), and the work done per device (right).

    `kept`: `analyse.kept.kept_fractions`; `ratios`: `block_ratios`; `bounds`: workload -> least kept fraction.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    steps = [step for step in ("mps-alone", *CO_LOCATED) if step in set(kept["step"])]
    offsets = {"gen": -BAR_WIDTH / 2, "embed": BAR_WIDTH / 2}
    for workload, offset in offsets.items():
        _bars(left, kept, ratios, steps, workload, offset, WORKLOAD_COLOURS[workload])
    for workload, bound in (bounds or {}).items():
        left.axhline(bound, color=WORKLOAD_COLOURS[workload], linestyle=":", linewidth=1.3)
    left.set(title="Kept of each workload's own rate", ylabel="kept fraction (alone = 1)")
    _bars(right, kept, ratios, steps, "aggregate_per_device", 0.0, BOTH_COLOUR)
    right.axhline(1.0, color=BOUND_COLOUR, linestyle="--", linewidth=1.3)
    right.set(title="Work per device", ylabel="devices' worth (dedicated = 1)")
    for axes in (left, right):
        _finish(axes, kept, steps)
    figure.legend(handles=_legend(kept, steps, bool(bounds)), loc="outside lower center", ncols=4)
    return figure


def _bars(
    axes: Axes, kept: pd.DataFrame, ratios: pd.DataFrame, steps: list[str], quantity: str, offset: float, colour: str
) -> None:
    for place, step in enumerate(steps):
        mine = kept[(kept["step"] == step) & (kept["quantity"] == quantity)]
        if mine.empty:
            continue
        item = mine.iloc[0]
        hatch, marker = MECHANISM_HATCHES.get(item["mechanism"], ""), MECHANISM_MARKERS.get(item["mechanism"], "o")
        where = place + offset
        axes.bar(
            where,
            item["mean"],
            BAR_WIDTH,
            facecolor=colour,
            alpha=0.35,
            edgecolor=colour,
            hatch=hatch,
            linewidth=1.2,
            gid=f"{step}-{quantity}",
        )
        if np.isfinite([item["low"], item["high"]]).all():
            reach = [[max(0.0, item["mean"] - item["low"])], [max(0.0, item["high"] - item["mean"])]]
            axes.errorbar(where - 0.05, item["mean"], yerr=reach, color="black", capsize=4, linewidth=1.4)
        dots = ratios[(ratios["step"] == step) & (ratios["quantity"] == quantity)]["ratio"]
        axes.scatter(
            np.full(len(dots), where + 0.09),
            dots,
            s=22,
            marker=marker,
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
        )


def _finish(axes: Axes, kept: pd.DataFrame, steps: list[str]) -> None:
    labels = []
    for step in steps:
        mine = kept[kept["step"] == step]
        blocks, starts = int(mine["blocks"].max()), int(mine["starts"].min())
        labels.append(f"{step}\nn={blocks} blocks\n{starts} start{'s' if starts > 1 else ''}")
    axes.set_xticks(range(len(steps)), labels)
    axes.set_xlim(-0.6, max(len(steps) - 0.4, 0.6))
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    if not steps:
        axes.text(0.5, 0.5, "no shared step with a baseline\nin the same block", transform=axes.transAxes, ha="center")


def _legend(kept: pd.DataFrame, steps: list[str], with_bounds: bool) -> list[object]:
    handles: list[object] = [
        Patch(facecolor=colour, alpha=0.5, edgecolor=colour, label=workload)
        for workload, colour in WORKLOAD_COLOURS.items()
    ]
    handles.append(Patch(facecolor=BOTH_COLOUR, alpha=0.5, edgecolor=BOTH_COLOUR, label="gen + embed"))
    for name in dict.fromkeys(kept.loc[kept["step"].isin(steps), "mechanism"]):
        handles.append(Patch(facecolor="white", edgecolor="black", hatch=MECHANISM_HATCHES.get(name, ""), label=name))
    handles.append(Line2D([], [], color="black", marker="|", linewidth=1.4, label="95 % interval"))
    handles.append(Line2D([], [], color="#777777", marker="o", linestyle="", markersize=5, label="one block"))
    if with_bounds:
        handles.append(Line2D([], [], color="black", linestyle=":", label="least kept (verdict)"))
    handles.append(Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="dedicated devices"))
    return handles
