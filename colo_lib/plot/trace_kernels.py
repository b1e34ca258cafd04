"""Kernels by name: their durations alone against shared, and the categories that their time goes to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from colo_lib.plot.style import BOTH_COLOUR, BOUND_COLOUR, WIDTH_IN, WORKLOAD_COLOURS, apply_style

NAME_WIDTH = 40
GENERIC = {"device_kernel", "kernel", "reduce_kernel", "elementwise_kernel", "vectorized_elementwise_kernel",
           "unrolled_elementwise_kernel"}  # fmt: skip
SAYS_NOTHING = {
    "int", "unsigned", "long", "char", "bool", "float", "double", "void", "at", "native", "anon", "c10", "std", "cute",
    "cutlass", "flash", "vllm", "array", "enable_sm90_or_later", "BFloat16", "Half",
}  # fmt: skip
SHOWN = 8


def shifts(found: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a workload: each kernel's mean alone (hollow) and shared (filled), most time first.

    `found`: results of `analyse.shift.summarise`; names are shortened by `short_name`.
    """
    apply_style()
    shown = [item for item in found if item["kernels"]]
    rows = [min(len(item["kernels"]), SHOWN) for item in shown] or [1]
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


def _shift(axes: Axes, item: Mapping[str, Any]) -> None:
    rows, colour = item["kernels"][:SHOWN], WORKLOAD_COLOURS[item["workload"]]
    for place, row in enumerate(rows):
        axes.plot([row["alone_us"], row["shared_us"]], [place, place], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(row["alone_us"], place, "o", markerfacecolor="white", markeredgecolor=colour, markersize=6)
        axes.plot(row["shared_us"], place, "o", color=colour, markersize=6, gid=f"shared-{item['workload']}-{place}")
        words = "" if row["shift"] is None else signed(row["shift"])
        right = max(row["alone_us"], row["shared_us"])
        axes.annotate(words, (right, place), (8, 0), textcoords="offset points", va="center", fontsize=9)
    total = "—" if item["total_shift"] is None else f"{item['total_shift']:+.1%}"
    axes.set_title(f"{item['workload']}: {total} in all, weighted by time alone")
    axes.set_yticks(range(len(rows)), [short_name(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    most = max(max(row["alone_us"], row["shared_us"]) for row in rows)
    axes.set_xlim(right=most * 1.9)
    axes.set_xlabel("mean duration (us)")


def categories(found: Mapping[str, Sequence[Mapping[str, Any]]], order: Sequence[str]) -> Figure:
    """Share of each workload's kernel time by category, in the table's order.

    `found`: workload -> `analyse.categories.summarise`.
    """
    apply_style()
    present = {row["category"] for rows in found.values() for row in rows}
    names = [name for name in order if name in present] + sorted(present - set(order))
    figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.42 * max(len(names), 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(len(found), 1)
    for place, (workload, rows) in enumerate(found.items()):
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
        handles = [Patch(color=WORKLOAD_COLOURS[workload], label=workload) for workload in found]
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
