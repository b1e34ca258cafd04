"""A run's figures by step: kept fractions with each block as a dot, latency distributions, stalls against bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    GROUND,
    MECHANISM_HATCHES,
    MECHANISM_MARKERS,
    WIDTH_IN,
    WORKLOAD_COLOURS,
    apply_style,
    wrapped,
)
from colo_lib.steps import KEPT_AGAINST_OTHERS, STEPS, WORKLOADS, mechanism_in_words, names_in, names_of
from colo_lib.trace import Floats, Ints

BAR_WIDTH = 0.36

BESIDE = 4  # steps up to which both panels stand side by side

LINE_CHARACTERS = 44  # of a line of names below half a figure


def kept_fractions(kept: pd.DataFrame, ratios: pd.DataFrame, bounds: dict[str, float] | None = None) -> Figure:
    """What each workload keeps in each shared step (left), and the work done per device (right).

    `kept`: `statistics.kept_fractions`; `ratios`: `block_ratios`; `bounds`: workload -> least kept fraction.
    """
    apply_style()
    steps = [step for step in KEPT_AGAINST_OTHERS if step in set(kept["step"])]
    # Where a demand is given there is no sum of work.
    summed = kept.empty or bool((kept["quantity"] == "aggregate_per_device").any())
    many = len(steps) > BESIDE
    figure = Figure(figsize=(WIDTH_IN, 7.6 if many and summed else 4.3), layout="constrained")
    if summed:
        left, right = figure.subplots(2, 1) if many else figure.subplots(1, 2, width_ratios=[1.5, 1])
        _work_per_device(right, kept, ratios, steps, many)
    else:
        left = figure.subplots()
    offsets = {"gen": -BAR_WIDTH / 2, "embed": BAR_WIDTH / 2}
    for workload, offset in offsets.items():
        _bars(left, kept, ratios, steps, workload, offset, WORKLOAD_COLOURS[workload])
    for workload, bound in (bounds or {}).items():
        left.axhline(bound, color=WORKLOAD_COLOURS[workload], linestyle=":", linewidth=1.3)
    left.set(title="Kept of each workload's own rate", ylabel="kept fraction (alone = 1)")
    _finish(left, kept, steps, LINE_CHARACTERS * (2 if many else 1))
    figure.legend(handles=_legend(kept, steps, bool(bounds), summed), loc="outside lower center", ncols=4)
    return figure


def _work_per_device(axes: Axes, kept: pd.DataFrame, ratios: pd.DataFrame, steps: list[str], many: bool) -> None:
    both = [step for step in steps if STEPS[step].runs_both]
    _bars(axes, kept, ratios, both, "aggregate_per_device", 0.0, BOTH_COLOUR)
    axes.axhline(1.0, color=BOUND_COLOUR, linestyle="--", linewidth=1.3)
    axes.set(title="Work per device", ylabel="devices' worth (dedicated = 1)")
    _finish(axes, kept, both, LINE_CHARACTERS * (2 if many else 1))


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


def _finish(axes: Axes, kept: pd.DataFrame, steps: list[str], characters: int) -> None:
    labels, names = [], names_in(kept)
    for step in steps:
        mine = kept[kept["step"] == step]
        blocks, starts = int(mine["blocks"].max()), int(mine["starts"].min())
        name = wrapped(names[step], max(10, characters // len(steps)))
        labels.append(f"{name}\nn={blocks} block{'s' if blocks > 1 else ''}\n{starts} start{'s' if starts > 1 else ''}")
    axes.set_xticks(range(len(steps)), labels)
    axes.set_xlim(-0.6, max(len(steps) - 0.4, 0.6))
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    if not steps:
        axes.text(0.5, 0.5, "no shared step with a baseline\nin the same block", transform=axes.transAxes, ha="center")


def _legend(kept: pd.DataFrame, steps: list[str], with_bounds: bool, summed: bool) -> list[object]:
    handles: list[object] = [
        Patch(facecolor=colour, alpha=0.5, edgecolor=colour, label=WORKLOADS[workload])
        for workload, colour in WORKLOAD_COLOURS.items()
    ]
    if summed:
        handles.append(Patch(facecolor=BOTH_COLOUR, alpha=0.5, edgecolor=BOTH_COLOUR, label="both"))
    for name in dict.fromkeys(kept.loc[kept["step"].isin(steps), "mechanism"]):
        handles.append(Patch(facecolor="white", edgecolor="black", hatch=MECHANISM_HATCHES.get(name, ""),
                             label=mechanism_in_words(name)))  # fmt: skip
    handles.append(Line2D([], [], color="black", marker="|", linewidth=1.4, label="95 % interval"))
    handles.append(Line2D([], [], color="#777777", marker="o", linestyle="", markersize=5, label="one block"))
    if with_bounds:
        handles.append(Line2D([], [], color="black", linestyle=":", label="least kept (verdict)"))
    if summed:
        handles.append(Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="dedicated devices"))
    return handles


MOST_POINTS = 2000  # of one curve, which keep its shape; and each of a quarter as many of the slowest events


def distributions(samples: pd.DataFrame) -> Figure:
    """Inter-token gaps (left) and embedding batches (right), a curve a step: the share of events at or under each time,
    and below it the share above, on an axis on which the slowest one in thousands can be seen.

    `samples`: step, kind ('gap', 'batch'), ms; pooled over the trials that count.
    """
    apply_style()
    names = names_in(samples)
    figure = Figure(figsize=(WIDTH_IN, 5.4 + 0.2 * len(names)), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", height_ratios=[1.25, 1])
    _curves(panels[:, 0], samples[samples["kind"] == "gap"], names, "LLM: gap between tokens", "inter-token gap (ms)")
    _curves(panels[:, 1], samples[samples["kind"] == "batch"], names, "embedder: time of a batch", "batch time (ms)")
    return figure


def _curves(panels: Sequence[Axes], samples: pd.DataFrame, names: dict[str, str], title: str, label: str) -> None:
    upper, lower = panels
    for step in [step for step in STEPS if step in set(samples["step"])]:
        # A burst brings tokens in one chunk, gap 0: a log axis starts at a microsecond.
        ordered = np.sort(np.maximum(samples.loc[samples["step"] == step, "ms"].to_numpy(), 1e-3))
        times, events = _thinned(ordered)
        look = {"weights": events, "stat": "percent", "color": STEPS[step].colour, "linestyle": STEPS[step].line}
        seaborn.ecdfplot(x=times, ax=upper, gid=step, label=f"{names[step]} (n={len(ordered):,})", **look)
        seaborn.ecdfplot(x=times, ax=lower, gid=step, complementary=True, **look)
    upper.set(title=title, ylabel="events at or under (%)", ylim=(0, 101))
    lower.set(xlabel=label, ylabel="events above (%)")
    if samples.empty:
        upper.text(0.5, 0.5, "no events in a window that counts", transform=upper.transAxes, ha="center")
        return
    lower.set(yscale="log", ylim=(None, 101))
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if samples["ms"].max() > 10 * max(samples["ms"].min(), 1e-3):
        # Tokens that came in one chunk would stretch the axis over decades in which nothing happens.
        low = min(np.quantile(group["ms"], 0.02) for _, group in samples.groupby("step"))
        _log_axis(upper, max(float(low) / 2, 1e-3), None)
    for axes, percentile in ((upper, 99), (lower, 1)):
        axes.axhline(percentile, color="#999999", linewidth=0.8, linestyle=":")
    lower.legend(*upper.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=1)


def _thinned(ordered: Floats) -> tuple[Floats, Ints]:
    """Times on the curve of all of them, and how many events each stands for: even ranks, and each of the slowest."""
    count = len(ordered)
    slowest = np.arange(max(1, count - MOST_POINTS // 4), count + 1)
    ranks = np.union1d(np.linspace(1, count, min(count, MOST_POINTS)).astype(np.int64), slowest)
    return ordered[ranks - 1], np.diff(ranks, prepend=0)


def stalls(bounds: pd.DataFrame, mechanisms: dict[str, str]) -> Figure:
    """The longest stall of each workload by step, against its bound.

    `bounds`: `thresholds.against_bounds`; `mechanisms`: step -> mechanism.
    """
    apply_style()
    shown = bounds[bounds["what"].str.contains("without")]
    steps = [step for step in STEPS if step in set(shown["step"])]
    names = names_of((step, mechanisms.get(step)) for step in steps)
    figure = Figure(figsize=(WIDTH_IN, 1.4 + 0.6 * max(len(steps), 2)), layout="constrained")
    for axes, workload in zip(figure.subplots(1, 2, sharey=True), WORKLOAD_COLOURS, strict=True):
        mine = shown[shown["what"].str.startswith(WORKLOADS[workload])]
        for row in mine.itertuples():
            place, colour = steps.index(row.step), WORKLOAD_COLOURS[workload]
            hatch = MECHANISM_HATCHES.get(mechanisms.get(row.step, ""), "")
            axes.barh(place, row.worst, 0.6, facecolor=colour, alpha=0.4, edgecolor=colour, hatch=hatch)
            axes.annotate(
                f"{row.worst:,.0f} ms", (row.worst, place), xytext=(4, 0), textcoords="offset points", va="center",
                bbox=GROUND,
            )  # fmt: skip
        what = "token" if workload == "gen" else "finished batch"
        axes.set(title=f"{WORKLOADS[workload]}: longest stall", xlabel=f"time without a {what} (ms)")
        if len(mine):
            axes.axvline(
                mine["bound"].iloc[0],
                color=BOUND_COLOUR,
                linestyle="--",
                label=f"bound: {mine['bound'].iloc[0]:,.0f} ms",
            )
            _log_axis(axes, mine["worst"].min() / 3, max(mine["worst"].max(), mine["bound"].max()) * 4)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / figure.get_figheight()))
        axes.set_yticks(
            range(len(steps)), [f"{wrapped(names[step], 20)}\nn={_count(shown, step)} trials" for step in steps]
        )
        axes.set_ylim(len(steps) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
    return figure


def _count(shown: pd.DataFrame, step: str) -> int:
    return int(shown.loc[shown["step"] == step, "trials"].max())


def _log_axis(axes: Axes, left: float, right: float | None) -> None:
    """A logarithmic x axis from `left` to `right` (None: as drawn), with plain numbers that have room."""
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value / 1000:g}k")
    axes.xaxis.set_minor_formatter(NullFormatter())
