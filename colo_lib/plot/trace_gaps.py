"""Idle gaps of the device: how many of which size, what they add up to, and where in the window they fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOTH_COLOUR, WIDTH_IN, apply_style


def gaps(classes: Sequence[Mapping[str, Any]], over_time: Mapping[str, Any]) -> Figure:
    """`classes`: `analyse.gaps.by_class`; `over_time`: `analyse.gaps.over_time`."""
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    names = [row["class"] for row in classes]
    colours = [colormaps["cividis"](0.95 - 0.9 * place / max(len(names) - 1, 1)) for place in range(len(names))]
    counts, shares = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _bars(counts, names, [row["count"] for row in classes], colours, "Number of gaps", "gaps (count)", "{:,.0f}")
    totals = [row["fraction"] * 100 for row in classes]
    _bars(shares, names, totals, colours, "Time in gaps of that size", "share of the window (%)", "{:.1f} %")
    shares.set_yticklabels([])
    _where(figure.add_subplot(grid[1, :]), over_time, names, colours)
    return figure


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[Any], title: str, label: str, form: str
) -> None:
    bars = axes.barh(range(len(names)), values, color=colours, edgecolor=BOTH_COLOUR, linewidth=0.5)
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel=label, xlim=(0, max([*values, 0.001]) * 1.3))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _where(axes: Axes, over_time: Mapping[str, Any], names: Sequence[str], colours: Sequence[Any]) -> None:
    edges_ms = over_time["edges_s"] * 1e3
    floor = 0
    for name, colour in zip(names, colours, strict=True):
        top = floor + over_time["classes"][name] * 100
        axes.stairs(top, edges_ms, baseline=floor, fill=True, color=colour, label=name)
        floor = top
    axes.set(xlim=(edges_ms[0], edges_ms[-1]), ylim=(0, 104), ylabel="idle (%)")
    axes.set_title("Where they fall: idle share of the device over the window")
    axes.set_xlabel("time since the window's start (ms)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="gaps of")
