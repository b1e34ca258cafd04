"""Two rows of kernels, gen above embed, and how busy both are over the whole window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from colo_lib.plot.style import BOTH_COLOUR, WIDTH_IN, WORKLOAD_COLOURS, apply_style

ROW_HEIGHT = 0.72
BOTH_SHADE = "#F0E442"
FEW = 250  # kernels of a row up to which each gets an outline


def timeline(drawn: Mapping[str, Any], stretch: tuple[int, int], over_time: Mapping[str, Any], zero_ns: int) -> Figure:
    """Above: `analyse.timeline.rectangles` of `stretch`; below: each workload's busy share over the window.

    `over_time`: `analyse.occupancy.over_time`. Times are drawn from `zero_ns`, the window's start.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[1.25, 1.0])
    _rows(upper, drawn, stretch, zero_ns)
    _busy(lower, over_time, stretch, zero_ns)
    return figure


def _rows(axes: Axes, drawn: Mapping[str, Any], stretch: tuple[int, int], zero_ns: int) -> None:
    to_ms = lambda times: (np.asarray(times) - zero_ns) / 1e6  # noqa: E731
    for start, end in zip(*drawn["both"], strict=True):
        axes.axvspan(float(to_ms(start)), float(to_ms(end)), color=BOTH_SHADE, alpha=0.45, linewidth=0)
    names = list(drawn["rows"])
    for place, name in enumerate(names):
        start, end = drawn["rows"][name]
        bars = np.stack([to_ms(start), (end - start) / 1e6], axis=1)
        edge = "white" if len(start) <= FEW else "none"
        where = (len(names) - 1 - place - ROW_HEIGHT / 2, ROW_HEIGHT)
        axes.broken_barh(
            bars.tolist(), where, facecolor=WORKLOAD_COLOURS[name], edgecolor=edge, linewidth=0.4, gid=f"row-{name}"
        )
    axes.set(xlim=(float(to_ms(stretch[0])), float(to_ms(stretch[1]))), ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(range(len(names)), names[::-1])
    axes.set_title(f"Kernels on the GPU, {(stretch[1] - stretch[0]) / 1e6:.3g} ms of the window")
    axes.set_xlabel("time since the window's start (ms)")
    axes.grid(visible=False)
    handles = [Patch(color=WORKLOAD_COLOURS[name], label=name) for name in names]
    if len(drawn["both"][0]):
        handles.append(Patch(color=BOTH_SHADE, alpha=0.45, label="both at once"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _busy(axes: Axes, over_time: Mapping[str, Any], stretch: tuple[int, int], zero_ns: int) -> None:
    edges_ms = over_time["edges_s"] * 1e3
    for name, shares in over_time["workloads"].items():
        axes.stairs(
            shares["busy"] * 100, edges_ms, color=WORKLOAD_COLOURS[name], label=name, linewidth=1.2, baseline=None
        )
    axes.axvspan(
        (stretch[0] - zero_ns) / 1e6, (stretch[1] - zero_ns) / 1e6, color=BOTH_COLOUR, alpha=0.25, linewidth=0,
        label="shown above",
    )  # fmt: skip
    axes.set(ylim=(0, 104), xlim=(edges_ms[0], edges_ms[-1]))
    axes.set_title("Share of time in which each had a kernel running")
    axes.set_xlabel("time since the window's start (ms)")
    axes.set_ylabel("busy (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
