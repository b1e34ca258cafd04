"""SM occupancy by launch shape: over the window, and which share of kernels and of their time fills how much."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOTH_COLOUR, WIDTH_IN, WORKLOAD_COLOURS, apply_style


def occupancy(over_time: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any] | None]) -> Figure:
    """Above: what launch shapes could fill over time; below: the distribution over classes of occupancy.

    `over_time`: `analyse.occupancy.over_time`; `classes`: workload -> `analyse.occupancy.distribution`.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    _over_time(figure.add_subplot(grid[0, :]), over_time)
    axes = None
    for place, (key, title) in enumerate((("by_count", "Share of kernels"), ("by_time", "Share of kernel time"))):
        axes = figure.add_subplot(grid[1, place], sharey=axes)
        _classes(axes, classes, key, title)
    return figure


def _over_time(axes: Axes, over_time: Mapping[str, Any]) -> None:
    edges_ms = over_time["edges_s"] * 1e3
    for name, shares in over_time["workloads"].items():
        colour = WORKLOAD_COLOURS[name]
        if np.isfinite(shares["filled"]).any():
            axes.stairs(shares["filled"] * 100, edges_ms, color=colour, label=f"{name}, SMs filled", baseline=None)
        axes.stairs(
            shares["busy"] * 100, edges_ms, color=colour, alpha=0.6, linestyle=":", label=f"{name}, busy", baseline=None
        )
    axes.set(ylim=(0, 104), xlim=(edges_ms[0], edges_ms[-1]), ylabel="share (%)")
    axes.set_title("Over the window: time busy, and SMs that the launches could fill")
    axes.set_xlabel("time since the window's start (ms)")
    if over_time["workloads"]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _classes(axes: Axes, classes: Mapping[str, Mapping[str, Any] | None], key: str, title: str) -> None:
    known = {name: found for name, found in classes.items() if found}
    axes.set_title(title)
    if not known:
        axes.text(0.5, 0.5, "no launch shape known", transform=axes.transAxes, ha="center", color=BOTH_COLOUR)
        axes.set_ylabel("share (%)")
        return
    edges = next(iter(known.values()))["edges"]
    labels = [f"{low:.0%}–{high:.0%}" for low, high in pairwise(edges)] + ["all"]
    width = 0.8 / len(known)
    for place, (name, found) in enumerate(known.items()):
        where = np.arange(len(labels)) - 0.4 + width * (place + 0.5)
        axes.bar(where, found[key] * 100, width, color=WORKLOAD_COLOURS[name], label=name, gid=f"{key}-{name}")
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(ylim=(0, 104), ylabel="share (%)")
    axes.set_xlabel("SMs that a launch could fill")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center")
