"""Where gen's loss went: a waterfall from the time per token alone to the time shared."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from colo_lib.analyse.loss import LABELS, Loss, waterfall
from colo_lib.plot.style import GEN_COLOUR, WIDTH_IN, apply_style

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
        _panel(axes, title, loss)
    panels[-1].set_xlabel("device time per token (us)")
    if not losses:
        panels[0].text(0.5, 0.5, "no shared step with its baseline", transform=panels[0].transAxes, ha="center")
        panels[0].set_axis_off()
    figure.legend(handles=_legend(losses), loc="outside lower center", ncols=3)
    return figure


def _panel(axes: Axes, title: str, loss: Loss) -> None:
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


def _legend(losses: Mapping[str, Loss]) -> list[Patch]:
    shown = {cause for loss in losses.values() for causes in loss.parts if len(causes) == 1 for cause in causes}
    handles = [Patch(facecolor=CAUSE_COLOURS[name], alpha=0.75, label=LABELS[name]) for name in LABELS if name in shown]
    if any(loss.merged for loss in losses.values()):
        label = "not told apart by these data"
        handles.append(Patch(facecolor=MERGED_COLOUR, alpha=0.75, hatch="///", edgecolor="white", label=label))
    return handles
