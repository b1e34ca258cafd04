"""Settings on the plane of what both workloads keep: numbered points, bounds, and lines of equal work."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from colo_lib.plot.style import BOTH_COLOUR, BOUND_COLOUR, GEN_COLOUR, MECHANISM_MARKERS, WIDTH_IN, apply_style

SHADES = ("#4D4D4D", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
EQUAL_WORK = (1.0, 1.35, 1.7)
# Places of a number around its point.
REACH_PX, TURNS = 13.0, np.arange(0, 2 * np.pi, np.pi / 8)


def operating_points(found: pd.DataFrame, min_gen_kept: float) -> Figure:
    """Embed's kept fraction against gen's, a numbered point a setting with its 95 % interval; up and right is better.

    `found`: `analyse.operating_point.settings`. Filled: no other setting of its concurrency keeps more of both. Dotted
    from below: what gen keeps with embed idle.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 5.0), layout="constrained")
    axes = figure.subplots()
    concurrencies = sorted(found["concurrency"].unique())
    colours = dict(zip(concurrencies, SHADES * len(concurrencies), strict=False))
    _equal_work(axes)
    axes.axvline(min_gen_kept, color=BOUND_COLOUR, linestyle="--", linewidth=1.2)
    for row in found.itertuples():
        _point(axes, row, colours[row.concurrency])
    for concurrency, group in found.groupby("concurrency"):
        idle = group["idle_neighbour"].dropna()
        if len(idle):
            axes.plot([idle.iloc[0]] * 2, [0, 0.06], color=colours[concurrency], linestyle=":", linewidth=2)
    axes.set(title="What each setting leaves to both", xlabel="gen: kept fraction of tokens/s",
             ylabel="embed: kept fraction of sequences/s", xlim=(0, 1.05), ylim=(0, 1.05))  # fmt: skip
    figure.legend(handles=_legend(found, colours), loc="outside lower center", ncols=3)
    figure.canvas.draw()  # the layout is settled by drawing: numbers are placed on it
    _numbers(axes, found)
    return figure


def _equal_work(axes: Axes) -> None:
    for total in EQUAL_WORK:
        ends = np.array([max(0.0, total - 1.05), min(1.05, total)])
        axes.plot(ends, total - ends, color="#BBBBBB", linewidth=0.9, zorder=0)
        x = total / 2 - 0.12
        axes.text(x, total - x, f"aggregate {total:g}", rotation=-45, transform_rotates_text=True, color="#666666",
                  rotation_mode="anchor", fontsize=8, ha="center", va="bottom")  # fmt: skip


def _numbers(axes: Axes, found: pd.DataFrame) -> None:
    """Each setting's number beside its point, where it is furthest from other points and numbers."""
    points = axes.transData.transform(found[["gen", "embed"]].to_numpy(dtype="float64"))
    taken = list(points)
    for row, point in zip(found.itertuples(), points, strict=True):
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


def _legend(found: pd.DataFrame, colours: dict[int, str]) -> list[Line2D]:
    def words(count: int) -> str:
        return "1 request in flight" if count == 1 else f"{count} requests in flight"

    handles = [Line2D([], [], color=colour, linewidth=3, label=words(count)) for count, colour in colours.items()]
    handles += [
        Line2D([], [], color=BOTH_COLOUR, marker=MECHANISM_MARKERS.get(name, "o"), linestyle="", label=name)
        for name in dict.fromkeys(found["mechanism"])
    ]
    return [
        *handles,
        Line2D([], [], color=GEN_COLOUR, linestyle=":", linewidth=2, label="gen with embed idle"),
        Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="least kept of gen (verdict)"),
    ]
