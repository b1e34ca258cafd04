"""Figures to decide by: the LLM's loss, capacity, settings of the levers, published runs, two devices."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from colo_lib.analysis.loss import LABELS, Loss, waterfall
from colo_lib.analysis.two_devices import ORDER
from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    GEN_COLOUR,
    GROUND,
    MECHANISM_HATCHES,
    MECHANISM_MARKERS,
    WIDTH_IN,
    WORKLOAD_COLOURS,
    apply_style,
    wrapped,
)
from colo_lib.steps import STEPS as STEPS_BY_ID
from colo_lib.steps import WORKLOADS, mechanism_in_words, names_of

CAUSE_COLOURS = {"clock": "#E69F00", "contention": "#CC79A7", "waiting": "#56B4E9", "host": "#009E73"}
MERGED_COLOUR = "#9A9A9A"


def waterfalls(losses: Mapping[str, Loss]) -> Figure:
    """A panel an entry (its title -> its loss): time alone, a bar a part, time shared; us per token.

    A part that holds several causes is grey and hatched: the data do not tell them apart.
    """
    apply_style()
    heights = [2 + len(loss.parts) for loss in losses.values()] or [2]
    figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.4 * sum(heights) + 0.4 * len(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, loss) in zip(panels, losses.items(), strict=False):
        _loss_panel(axes, title, loss)
    panels[-1].set_xlabel("device time per token (us)")
    if not losses:
        panels[0].text(0.5, 0.5, "no shared step with its baseline", transform=panels[0].transAxes, ha="center")
        panels[0].set_axis_off()
    figure.legend(handles=_cause_legend(losses), loc="outside lower center", ncols=3)
    return figure


def _loss_panel(axes: Axes, title: str, loss: Loss) -> None:
    frame = waterfall(loss)
    alone_us, shared_us = loss.alone.total_ns / 1e3, loss.shared.total_ns / 1e3
    widest = max([alone_us, shared_us, *frame["end_us"], *frame["start_us"]])
    bars = [("alone", 0.0, alone_us, GEN_COLOUR, "", f"{alone_us:,.0f}")]
    for row in frame.itertuples():
        causes = row.part.split("+")
        colour = CAUSE_COLOURS[causes[0]] if len(causes) == 1 else MERGED_COLOUR
        share = f" ({row.share:.0%})" if row.share == row.share else ""
        bars.append((" or ".join(causes), row.start_us, row.us, colour, "" if len(causes) == 1 else "///",
                     f"{row.us:+,.0f}{share}"))  # fmt: skip
    bars.append(("shared", 0.0, shared_us, GEN_COLOUR, "", f"{shared_us:,.0f}"))
    for place, (_, start, width, colour, hatch, text) in enumerate(bars):
        axes.barh(place, width, 0.62, left=start, facecolor=colour, alpha=0.75, edgecolor="white", hatch=hatch)
        axes.annotate(text, (max(start, start + width), place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", visible=False)
    axes.set_title(title)


def _cause_legend(losses: Mapping[str, Loss]) -> list[Patch]:
    shown = {cause for loss in losses.values() for causes in loss.parts if len(causes) == 1 for cause in causes}
    handles = [Patch(facecolor=CAUSE_COLOURS[name], alpha=0.75, label=LABELS[name]) for name in LABELS if name in shown]
    if any(loss.merged for loss in losses.values()):
        label = "not told apart by these data"
        handles.append(Patch(facecolor=MERGED_COLOUR, alpha=0.75, hatch="///", edgecolor="white", label=label))
    return handles


DEDICATED_COLOUR = "#4D4D4D"  # a layout without shared units


def _layout_colour(layout: str) -> str:
    return STEPS_BY_ID[layout].colour if layout in STEPS_BY_ID else DEDICATED_COLOUR


def plan(layouts: pd.DataFrame, reach: pd.DataFrame, gpus: int, wanted: tuple[float, float]) -> Figure:
    """Left: GPUs needed, a bar a layout with its range; right: the pairs of rates that `gpus` GPUs give.

    `layouts`: `capacity.plan`; `reach`: `reachable`; `wanted`: (tokens/s, sequences/s).
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, max(3.6, 2.2 + 0.55 * len(layouts))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _needed(left, layouts, gpus)
    for layout, rows in reach.groupby("layout", sort=False):
        colour, row = _layout_colour(str(layout)), layouts.set_index("layout").loc[str(layout)]
        line, label = "--" if row["predicted"] else "-", _name(row["title"], row["predicted"])
        right.plot(rows["tokens_per_s"], rows["sequences_per_s"], color=colour, marker=".", ls=line, label=label)
    right.plot(*wanted, marker="*", markersize=13, color=BOUND_COLOUR, linestyle="", label="wanted")
    right.set(title=f"What {gpus} GPUs give", xlabel="LLM (tokens/s)", ylabel="embedder (sequences/s)")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _needed(axes: Axes, layouts: pd.DataFrame, gpus: int) -> None:
    for place, row in enumerate(layouts.itertuples()):
        if not np.isfinite(row.gpus):
            axes.annotate("no rate to plan with", (0.2, place), va="center", fontsize=9)
            continue
        colour = _layout_colour(row.layout)
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
    names = [_name(row.title, row.predicted) + "\nbreaks its bounds" * bool(row.breaks) for row in layouts.itertuples()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.9)
    axes.set(title="GPUs needed", xlabel="GPUs (range: interval ends)")
    axes.grid(axis="y", visible=False)


def _name(title: str, predicted: bool) -> str:
    return wrapped(title, 20) + "\n(prediction)" * bool(predicted)


SETTING_SHADES = ("#4D4D4D", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")

BEST_LINE = (0, (5, 1, 1, 1))
EQUAL_WORK = (1.0, 1.35, 1.7)
# Places of a number around its point.
REACH_PX, TURNS = 13.0, np.arange(0, 2 * np.pi, np.pi / 8)


def operating_points(
    settings: pd.DataFrame, min_gen_kept: float, frontiers: Mapping[int, Sequence[tuple[float, float]]] | None = None
) -> Figure:
    """Embed's kept fraction against gen's, a numbered point a setting with its 95 % interval; up and right is better.

    `settings`: `operating_point.settings`. Filled: no other setting of its concurrency keeps more of both. Dotted
    from below: what gen keeps with embed idle. `frontiers`: requests in flight -> what both could at best keep
    (`bound.frontier`), drawn as a line.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 5.0), layout="constrained")
    axes = figure.subplots()
    concurrencies = sorted(settings["concurrency"].unique())
    colours = dict(zip(concurrencies, SETTING_SHADES * len(concurrencies), strict=False))
    _equal_work(axes)
    axes.axvline(min_gen_kept, color=BOUND_COLOUR, linestyle="--", linewidth=1.2)
    best = {count: corners for count, corners in (frontiers or {}).items() if count in colours}
    for count, corners in best.items():
        axes.plot(*zip(*corners, (corners[-1][0], 0.0), strict=True), color=colours[count], linewidth=1.2, alpha=0.8,
                  linestyle=BEST_LINE, zorder=1)  # fmt: skip
    for row in settings.itertuples():
        _point(axes, row, colours[row.concurrency])
    for concurrency, group in settings.groupby("concurrency"):
        idle = group["idle_neighbour"].dropna()
        if len(idle):
            axes.plot([idle.iloc[0]] * 2, [0, 0.06], color=colours[concurrency], linestyle=":", linewidth=2)
    axes.set(title="What each setting leaves to both", xlabel="LLM: kept fraction of tokens/s",
             ylabel="embedder: kept fraction of sequences/s", xlim=(0, 1.05), ylim=(0, 1.05))  # fmt: skip
    figure.legend(handles=_setting_legend(settings, colours, bool(best)), loc="outside lower center", ncols=3)
    figure.canvas.draw()  # the layout is settled by drawing: numbers are placed on it
    _numbers(axes, settings)
    return figure


def _equal_work(axes: Axes) -> None:
    for total in EQUAL_WORK:
        ends = np.array([max(0.0, total - 1.05), min(1.05, total)])
        axes.plot(ends, total - ends, color="#BBBBBB", linewidth=0.9, zorder=0)
        x = total / 2 - 0.12
        axes.text(x, total - x, f"aggregate {total:g}", rotation=-45, transform_rotates_text=True, color="#666666",
                  rotation_mode="anchor", fontsize=8, ha="center", va="bottom")  # fmt: skip


def _numbers(axes: Axes, settings: pd.DataFrame) -> None:
    """Each setting's number beside its point, where it is furthest from other points and numbers."""
    points = axes.transData.transform(settings[["gen", "embed"]].to_numpy(dtype="float64"))
    taken = list(points)
    for row, point in zip(settings.itertuples(), points, strict=True):
        places = [point + REACH_PX * np.array([np.cos(turn), np.sin(turn)]) for turn in TURNS]
        best = max(places, key=lambda place: min(float(np.hypot(*(place - other))) for other in taken))
        taken.append(best)
        offset = (best - point) * 72 / axes.figure.dpi
        axes.annotate(str(row.number), (row.gen, row.embed), xytext=tuple(offset), textcoords="offset points",
                      fontsize=9, ha="center", va="center")  # fmt: skip


def _point(axes: Axes, row: object, colour: str) -> None:
    spread = [[[max(0.0, getattr(row, name) - getattr(row, f"{name}_low"))],
               [max(0.0, getattr(row, f"{name}_high") - getattr(row, name))]] for name in ("gen", "embed")]  # fmt: skip
    marker = MECHANISM_MARKERS.get(str(row.mechanism), "o")  # type: ignore[attr-defined]
    face = colour if row.worth_having else "white"  # type: ignore[attr-defined]
    axes.errorbar(row.gen, row.embed, xerr=np.nan_to_num(spread[0]), yerr=np.nan_to_num(spread[1]), color=colour,  # type: ignore[attr-defined]
                  marker=marker, markerfacecolor=face, markersize=6, capsize=2, linewidth=1)  # fmt: skip


def _setting_legend(settings: pd.DataFrame, colours: dict[int, str], with_best: bool) -> list[Line2D]:
    def words(count: int) -> str:
        return "1 request in flight" if count == 1 else f"{count} requests in flight"

    handles = [Line2D([], [], color=colour, linewidth=3, label=words(count)) for count, colour in colours.items()]
    handles += [
        Line2D(
            [],
            [],
            color=BOTH_COLOUR,
            marker=MECHANISM_MARKERS.get(name, "o"),
            linestyle="",
            label=mechanism_in_words(name),
        )
        for name in dict.fromkeys(settings["mechanism"])
    ]
    if settings["idle_neighbour"].notna().any():
        label = "LLM with the embedder idle"
        handles.append(Line2D([], [], color=GEN_COLOUR, linestyle=":", linewidth=2, label=label))
    if with_best:
        label = "at best, by what each takes alone"
        handles.append(Line2D([], [], color=BOTH_COLOUR, linestyle=BEST_LINE, linewidth=1.2, label=label))
    return [*handles, Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="least kept of the LLM (verdict)")]


LABEL_CHARACTERS = 16  # of a line of a run's name

REACH = 0.14  # of a run's row, above and below its middle: a place for each step


def _offsets(points: pd.DataFrame) -> dict[str, float]:
    """step -> its place in a run's row, in the order of the table of steps."""
    shown = [step for step in STEPS_BY_ID if step in set(points["step"])]
    return dict(zip(shown, np.linspace(-REACH, REACH, len(shown)) if len(shown) > 1 else [0.0], strict=True))


def kept_by_run(
    points: pd.DataFrame, mechanisms: dict[tuple[str, str], str], reach: str = "range as printed, or 95 % interval"
) -> Figure:
    """A row a run, gen's kept fraction left and embed's right; `reach` says what the bars are.

    `points`: `published.POINT_COLUMNS`; `mechanisms`: (run, step) -> mechanism.
    """
    apply_style()
    runs = list(dict.fromkeys(points["run"]))
    figure = Figure(figsize=(WIDTH_IN, 1.9 + 0.55 * len(runs)), layout="constrained")
    for axes, workload in zip(figure.subplots(1, 2, sharey=True), WORKLOAD_COLOURS, strict=True):
        _kept_panel(axes, points[points["metric"] == f"{workload}_kept"], runs, workload, mechanisms)
    kept = points[points["metric"].isin([f"{workload}_kept" for workload in WORKLOAD_COLOURS])]
    used = dict.fromkeys(mechanisms[key] for key in zip(kept["run"], kept["step"], strict=True) if key in mechanisms)
    handles = [
        Line2D(
            [], [], marker=MECHANISM_MARKERS.get(name, "o"), color="black", linestyle="", label=mechanism_in_words(name)
        )
        for name in used
    ]
    handles.append(Line2D([], [], color="black", marker="|", label=reach))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _kept_panel(
    axes: Axes, points: pd.DataFrame, runs: list[str], workload: str, mechanisms: dict[tuple[str, str], str]
) -> None:
    offsets = _offsets(points)
    for row in points.itertuples():
        place = runs.index(row.run) + offsets[row.step]
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
    axes.set(title=f"{WORKLOADS[workload]}: kept", xlabel="kept fraction (alone = 1)")


STEPS = ORDER

STEP_SHADES = (1.0, 0.6, 0.3)


def two_devices(rates: pd.DataFrame, mechanisms: Mapping[str, str], skews_us: Mapping[str, np.ndarray]) -> Figure:
    """Left: the LLM's tokens/s over config A's with 95 % intervals, a bar a step and concurrency; right: arrivals.

    `rates`: step, concurrency, ratio, low, high (config A itself is 1); `skews_us`: step -> |difference of the ranks'
    arrivals| of each collective, empty where nothing was captured.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _bars(left, rates, mechanisms)
    _arrivals(right, skews_us)
    return figure


def _bars(axes: Axes, rates: pd.DataFrame, mechanisms: Mapping[str, str]) -> None:
    concurrencies = sorted(rates["concurrency"].unique())
    shown = [step for step in STEPS if step in set(rates["step"])]
    names = names_of((step, mechanisms.get(step)) for step in shown)
    width = 0.8 / max(1, len(concurrencies))
    for place, concurrency in enumerate(concurrencies):
        mine = rates[rates["concurrency"] == concurrency].set_index("step")
        for where, step in enumerate(shown):
            if step not in mine.index:
                continue
            row = mine.loc[step]
            x = where + (place - (len(concurrencies) - 1) / 2) * width
            hatch = MECHANISM_HATCHES.get(mechanisms.get(step, "none"), "")
            shade = STEP_SHADES[place % len(STEP_SHADES)]
            axes.bar(x, row["ratio"], width * 0.92, facecolor=(*_rgb(GEN_COLOUR), shade * 0.7), edgecolor=GEN_COLOUR,
                     hatch=hatch)  # fmt: skip
            spread = np.nan_to_num([[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]])
            axes.errorbar(x, row["ratio"], yerr=spread, color="black", capsize=2, linewidth=1)
    axes.axhline(1.0, color="#999999", linestyle="--", linewidth=0.9)
    axes.axhline(2.0, color="#999999", linestyle=":", linewidth=0.9)
    axes.annotate("perfect scaling", (len(shown) - 0.5, 2.0), ha="right", va="bottom", fontsize=8, color="#666666")
    axes.set_xticks(range(len(shown)), [wrapped(names[step], 11) for step in shown], fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.set(title="The LLM's rate, one GPU's = 1", ylabel="tokens/s over those on a GPU of its own", ylim=(0, 2.2))
    handles = [
        Patch(facecolor=(*_rgb(GEN_COLOUR), shade * 0.7), edgecolor=GEN_COLOUR, label=f"{count} in flight")
        for count, shade in zip(concurrencies, STEP_SHADES, strict=False)
    ]
    handles += [
        Patch(facecolor="white", edgecolor=GEN_COLOUR, hatch=MECHANISM_HATCHES[name], label=mechanism_in_words(name))
        for name in dict.fromkeys(mechanisms.get(step, "none") for step in shown)
        if name != "none"
    ]
    axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 0.92), fontsize=8)


def _arrivals(axes: Axes, skews_us: Mapping[str, np.ndarray]) -> None:
    axes.set_title("How far apart ranks arrive")
    if not any(len(values) for values in skews_us.values()):
        axes.text(0.5, 0.5, "no capture of both ranks", transform=axes.transAxes, ha="center", color="#666666")
        return
    names = names_of((step, None) for step in skews_us)  # captures are of GPUs
    axes.set_xscale("log")
    for step, values in skews_us.items():
        look = {"color": STEPS_BY_ID[step].colour, "linestyle": STEPS_BY_ID[step].line}
        label = f"{names[step]} (n={len(values):,})"
        seaborn.ecdfplot(x=np.maximum(values, 0.01), stat="percent", ax=axes, label=label, **look)
    axes.set(xlabel="|difference of arrivals| (us)", ylabel="collectives (%)", ylim=(0, 101))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
