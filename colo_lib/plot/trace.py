"""A capture's figures: timeline, occupancy, idle gaps, kernel durations, categories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from colo_lib.analysis.trace.downsample import BusyOverTime, Rectangles
from colo_lib.analysis.trace.kernels import DurationShifts
from colo_lib.analysis.trace.occupancy import FilledOverTime, GapClass, IdleOverTime, OccupancyClasses
from colo_lib.plot.style import BOTH_COLOUR, BOUND_COLOUR, WIDTH_IN, WORKLOAD_COLOURS, apply_style
from colo_lib.steps import WORKLOADS

ROW_HEIGHT = 0.72
BOTH_SHADE = "#F0E442"
FEW = 250  # kernels of a row up to which each gets an outline


def timeline(drawn: Rectangles, stretch: tuple[int, int], over_time: BusyOverTime, zero_ns: int) -> Figure:
    """Above: `downsample.rectangles` of `stretch`; below: each workload's busy share over the window.

    `over_time`: `downsample.busy_over_time`. Times are drawn from `zero_ns`, the window's start.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[1.25, 1.0])
    _rows(upper, drawn, stretch, zero_ns)
    _busy(lower, over_time, stretch, zero_ns)
    return figure


def _rows(axes: Axes, drawn: Rectangles, stretch: tuple[int, int], zero_ns: int) -> None:
    to_ms = lambda times: (np.asarray(times) - zero_ns) / 1e6  # noqa: E731
    for start, end in zip(*drawn.both, strict=True):
        axes.axvspan(float(to_ms(start)), float(to_ms(end)), color=BOTH_SHADE, alpha=0.45, linewidth=0)
    names = list(drawn.rows)
    for place, name in enumerate(names):
        start, end = drawn.rows[name]
        bars = np.stack([to_ms(start), (end - start) / 1e6], axis=1)
        edge = "white" if len(start) <= FEW else "none"
        where = (len(names) - 1 - place - ROW_HEIGHT / 2, ROW_HEIGHT)
        axes.broken_barh(
            bars.tolist(), where, facecolor=WORKLOAD_COLOURS[name], edgecolor=edge, linewidth=0.4, gid=f"row-{name}"
        )
    axes.set(xlim=(float(to_ms(stretch[0])), float(to_ms(stretch[1]))), ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(range(len(names)), [WORKLOADS[name] for name in names[::-1]])
    axes.set_title(f"Kernels on the GPU, {(stretch[1] - stretch[0]) / 1e6:.3g} ms of the window")
    axes.set_xlabel("time since the window's start (ms)")
    axes.grid(visible=False)
    handles = [Patch(color=WORKLOAD_COLOURS[name], label=WORKLOADS[name]) for name in names]
    if len(drawn.both[0]):
        handles.append(Patch(color=BOTH_SHADE, alpha=0.45, label="both at once"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _busy(axes: Axes, over_time: BusyOverTime, stretch: tuple[int, int], zero_ns: int) -> None:
    edges_ms = over_time.edges_s * 1e3
    for name, busy in over_time.busy.items():
        axes.stairs(
            busy * 100, edges_ms, color=WORKLOAD_COLOURS[name], label=WORKLOADS[name], linewidth=1.2,
            baseline=None,
        )  # fmt: skip
    axes.axvspan(
        (stretch[0] - zero_ns) / 1e6, (stretch[1] - zero_ns) / 1e6, color=BOTH_COLOUR, alpha=0.25, linewidth=0,
        label="shown above",
    )  # fmt: skip
    axes.set(ylim=(0, 104), xlim=(edges_ms[0], edges_ms[-1]))
    axes.set_title("Share of time in which each had a kernel running")
    axes.set_xlabel("time since the window's start (ms)")
    axes.set_ylabel("busy (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def occupancy(over_time: FilledOverTime, classes: Mapping[str, OccupancyClasses | None]) -> Figure:
    """Above: what launch shapes could fill over time; below: the distribution over classes of occupancy.

    `over_time`: `occupancy_over_time`; `classes`: workload -> `occupancy.distribution`.
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


def _over_time(axes: Axes, over_time: FilledOverTime) -> None:
    edges_ms = over_time.edges_s * 1e3
    for name, busy in over_time.busy.items():
        colour, filled = WORKLOAD_COLOURS[name], over_time.filled[name]
        if np.isfinite(filled).any():
            label = f"{WORKLOADS[name]}, SMs filled"
            axes.stairs(filled * 100, edges_ms, color=colour, label=label, baseline=None)
        label = f"{WORKLOADS[name]}, busy"
        axes.stairs(busy * 100, edges_ms, color=colour, alpha=0.6, linestyle=":", label=label, baseline=None)
    axes.set(ylim=(0, 104), xlim=(edges_ms[0], edges_ms[-1]), ylabel="share (%)")
    axes.set_title("Over the window: time busy, and SMs that the launches could fill")
    axes.set_xlabel("time since the window's start (ms)")
    if over_time.busy:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _classes(axes: Axes, classes: Mapping[str, OccupancyClasses | None], key: str, title: str) -> None:
    known = {name: distribution for name, distribution in classes.items() if distribution}
    axes.set_title(title)
    if not known:
        axes.text(0.5, 0.5, "no launch shape known", transform=axes.transAxes, ha="center", color=BOTH_COLOUR)
        axes.set_ylabel("share (%)")
        return
    edges = next(iter(known.values())).edges
    labels = [f"{low:.0%}–{high:.0%}" for low, high in pairwise(edges)] + ["all"]
    width = 0.8 / len(known)
    for place, (name, distribution) in enumerate(known.items()):
        where, colour = np.arange(len(labels)) - 0.4 + width * (place + 0.5), WORKLOAD_COLOURS[name]
        heights = getattr(distribution, key) * 100
        axes.bar(where, heights, width, color=colour, label=WORKLOADS[name], gid=f"{key}-{name}")
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(ylim=(0, 104), ylabel="share (%)")
    axes.set_xlabel("SMs that a launch could fill")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center")


def gaps(classes: Sequence[GapClass], over_time: IdleOverTime) -> Figure:
    """`classes`: `occupancy.by_class`; `over_time`: `occupancy.idle_over_time`."""
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    names = [row.name for row in classes]
    colours = [colormaps["cividis"](0.95 - 0.9 * place / max(len(names) - 1, 1)) for place in range(len(names))]
    counts, shares = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _bars(counts, names, [row.count for row in classes], colours, "Number of gaps", "gaps (count)", "{:,.0f}")
    totals = [row.fraction * 100 for row in classes]
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


def _where(axes: Axes, over_time: IdleOverTime, names: Sequence[str], colours: Sequence[Any]) -> None:
    edges_ms = over_time.edges_s * 1e3
    floor = np.zeros(len(edges_ms) - 1)
    for name, colour in zip(names, colours, strict=True):
        top = floor + over_time.classes[name] * 100
        axes.stairs(top, edges_ms, baseline=floor, fill=True, color=colour, label=name)
        floor = top
    axes.set(xlim=(edges_ms[0], edges_ms[-1]), ylim=(0, 104), ylabel="idle (%)")
    axes.set_title("Where they fall: idle share of the device over the window")
    axes.set_xlabel("time since the window's start (ms)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="gaps of")


NAME_WIDTH = 40
GENERIC = {"device_kernel", "kernel", "reduce_kernel", "elementwise_kernel", "vectorized_elementwise_kernel",
           "unrolled_elementwise_kernel"}  # fmt: skip
SAYS_NOTHING = {
    "int", "unsigned", "long", "char", "bool", "float", "double", "void", "at", "native", "anon", "c10", "std", "cute",
    "cutlass", "flash", "vllm", "array", "enable_sm90_or_later", "BFloat16", "Half",
}  # fmt: skip
SHOWN = 8


def shifts(durations: Sequence[DurationShifts]) -> Figure:
    """A panel a workload: each kernel's mean alone (hollow) and shared (filled), most time first.

    `durations`: results of `kernels.duration_shifts`; names are shortened by `short_name`.
    """
    apply_style()
    shown = [item for item in durations if item.kernels]
    rows = [min(len(item.kernels), SHOWN) for item in shown] or [1]
    figure = Figure(figsize=(WIDTH_IN, 1.3 + sum(0.34 * count + 0.75 for count in rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[count + 0.8 for count in rows])[:, 0]
    if not shown:
        panels[0].text(0.5, 0.5, "no kernel ran both alone and shared", transform=panels[0].transAxes, ha="center")
        panels[0].set_xlabel("mean duration (us)")
        return figure
    for axes, item in zip(panels, shown, strict=True):
        _shift(axes, item)
    handles = [
        Line2D([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor=BOTH_COLOUR, label="alone"),
        Line2D([], [], marker="o", linestyle="", color=BOTH_COLOUR, label="shared"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _shift(axes: Axes, item: DurationShifts) -> None:
    rows, colour = item.kernels[:SHOWN], WORKLOAD_COLOURS[item.workload]
    for place, row in enumerate(rows):
        axes.plot([row.alone_us, row.shared_us], [place, place], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(row.alone_us, place, "o", markerfacecolor="white", markeredgecolor=colour, markersize=6)
        axes.plot(row.shared_us, place, "o", color=colour, markersize=6, gid=f"shared-{item.workload}-{place}")
        words = "" if row.shift is None else signed(row.shift)
        right = max(row.alone_us, row.shared_us)
        axes.annotate(words, (right, place), (8, 0), textcoords="offset points", va="center", fontsize=9)
    total = "—" if item.total_shift is None else f"{item.total_shift:+.1%}"
    axes.set_title(f"{WORKLOADS[item.workload]}: {total} in all, weighted by time alone")
    axes.set_yticks(range(len(rows)), [short_name(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    most = max(max(row.alone_us, row.shared_us) for row in rows)
    axes.set_xlim(right=most * 1.9)
    axes.set_xlabel("mean duration (us)")


def categories(times: Mapping[str, Sequence[Mapping[str, Any]]], order: Sequence[str]) -> Figure:
    """Share of each workload's kernel time by category, in the table's order.

    `times`: workload -> `kernels.category_times`.
    """
    apply_style()
    present = {row["category"] for rows in times.values() for row in rows}
    names = [name for name in order if name in present] + sorted(present - set(order))
    figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.42 * max(len(names), 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(len(times), 1)
    for place, (workload, rows) in enumerate(times.items()):
        shares = {row["category"]: 100 * (row["fraction"] or 0) for row in rows}
        where = np.arange(len(names)) - 0.4 + height * (place + 0.5)
        values = [shares.get(name, 0.0) for name in names]
        bars = axes.barh(where, values, height, color=WORKLOAD_COLOURS[workload], gid=f"categories-{workload}")
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("share of the workload's summed kernel time (%)")
    axes.set_title("What the kernels are, by name")
    axes.grid(axis="y", visible=False)
    if names:
        handles = [Patch(color=WORKLOAD_COLOURS[workload], label=WORKLOADS[workload]) for workload in times]
        axes.legend(handles=handles, loc="lower right")
    else:
        axes.text(0.5, 0.5, "graph launches alone: no kernel names", transform=axes.transAxes, ha="center",
                  color=BOUND_COLOUR)  # fmt: skip
    return figure


def short_name(name: str, most: int = NAME_WIDTH) -> str:
    """The function's own name: return type, template arguments, parameters and outer namespaces left out.

    A function that only runs what its template names (`device_kernel`, `reduce_kernel`) is shown with that.
    `$` would start mathematics in matplotlib.
    """
    plain = "".join(char if char.isprintable() else "?" for char in name).replace("$", "?")
    plain = plain.replace("(anonymous namespace)", "anon").replace("<unnamed>", "anon")
    head = _without_brackets(plain).split("(")[0].strip().split(" ")[-1] or plain[:most]
    parts = head.split("::")
    shown = "::".join(parts[-2:]) if len(parts) > 1 and parts[-2] not in ("anon", "native") else parts[-1]
    if parts[-1] in GENERIC and "<" in plain:
        words = re.findall(r"[A-Za-z_]\w*", plain.split("<", 1)[1])
        shown = next((f"{parts[-1]}<{word}>" for word in words if word not in SAYS_NOTHING), shown)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def signed(shift: float) -> str:
    """A shift in percent, without a minus before zero."""
    return f"{round(shift, 2) + 0.0:+.0%}"


def _without_brackets(text: str) -> str:
    depth, kept = 0, []
    for char in text:
        depth += char == "<"
        if not depth:
            kept.append(char)
        depth -= char == ">" and depth > 0
    return "".join(kept)
