"""Why not just batch more: the frontier, what more requests add against what sharing adds, and the latency it costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from colo_lib.analyse.batch_more import X, wasteful_from
from colo_lib.analyse.sweep import SweepMeasures
from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    GEN_COLOUR,
    MECHANISM_MARKERS,
    WIDTH_IN,
    apply_style,
)
from colo_lib.plot.sweep import reach

STEP_COLOURS = {"step2": "#E69F00", "step3": "#009E73"}


def batch_more(measures: SweepMeasures, gains: pd.DataFrame, slo_gap_ms: float) -> Figure:
    """Top: tokens/s against sequences/s; below: gains against concurrency, and p99 inter-token gaps against the SLO.

    `gains`: `analyse.batch_more.against_sharing`. A dashed line joins gen alone and embed alone at one concurrency:
    all that running in turns can give there, switches for free; a point beyond its line does more work than turns.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 7.4), layout="constrained")
    panels = figure.subplot_mosaic([["frontier", "frontier"], ["gains", "gaps"]], height_ratios=[1.25, 1])
    _frontier(panels["frontier"], measures, slo_gap_ms)
    _gains(panels["gains"], gains)
    _gaps(panels["gaps"], measures, slo_gap_ms)
    return figure


def _frontier(axes: Axes, measures: SweepMeasures, slo_gap_ms: float) -> None:
    alone = measures.of("step1", "gen_tokens_per_s").sort_values(X)
    embed = measures.of("step4", "embed_sequences_per_s").set_index(X)["mean"]
    for row in alone.itertuples():
        c = getattr(row, X)
        if c in embed.index:
            axes.plot([row.mean, 0], [0, embed[c]], color="#AAAAAA", linestyle="--", linewidth=0.9, zorder=1)
        axes.annotate(f"{c}", (row.mean, 0), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.scatter(alone["mean"], [0.0] * len(alone), color=GEN_COLOUR, marker="o", zorder=3, clip_on=False)
    alone_label = "gen alone (numbers: requests in flight)"
    handles = [Line2D([], [], color=GEN_COLOUR, marker="o", linestyle="", label=alone_label),
               Line2D([], [], color="#AAAAAA", linestyle="--", label="in turns, at best")]  # fmt: skip
    for step, colour in STEP_COLOURS.items():
        tokens = measures.of(step, "gen_tokens_per_s").set_index("cell")
        sequences = measures.of(step, "embed_sequences_per_s").set_index("cell")
        both = [cell for cell in tokens.index if cell in sequences.index]
        if not both:
            continue
        across, up = tokens.loc[both], sequences.loc[both]
        mechanism = across["mechanism"].iloc[0]
        marker = MECHANISM_MARKERS.get(mechanism, "o")
        axes.errorbar(across["mean"], up["mean"], xerr=reach(across), yerr=reach(up), color=colour, marker=marker,
                      linewidth=1.0, zorder=4)  # fmt: skip
        for cell in both:
            axes.annotate(f"{across.loc[cell, X]}", (across.loc[cell, "mean"], up.loc[cell, "mean"]), xytext=(5, 5),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"{step} ({mechanism})"))
        late = _late(measures, step, slo_gap_ms) & set(both)
        points = (across["mean"].loc[sorted(late)], up["mean"].loc[sorted(late)])
        axes.scatter(*points, facecolor="white", edgecolor=colour, marker=marker, zorder=5)
    late_alone = alone[alone["cell"].isin(_late(measures, "step1", slo_gap_ms))]
    axes.scatter(late_alone["mean"], [0.0] * len(late_alone), facecolor="white", edgecolor=GEN_COLOUR, zorder=5,
                 clip_on=False)  # fmt: skip
    handles.append(Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="",
                          label=f"hollow: p99 gap over the SLO of {slo_gap_ms:g} ms"))  # fmt: skip
    axes.set(title="The frontier", xlabel="gen (tokens/s)", ylabel="embed (sequences/s)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


def _late(measures: SweepMeasures, step: str, slo_gap_ms: float) -> set[str]:
    """Cells whose mean p99 inter-token gap in `step` lies over the SLO."""
    gaps = measures.of(step, "gap_p99_ms")
    return set(gaps.loc[gaps["mean"] > slo_gap_ms, "cell"])


def _gains(axes: Axes, gains: pd.DataFrame) -> None:
    for name, colour, marker, label in (
        ("batch", GEN_COLOUR, "o", "more requests"),
        ("share", BOTH_COLOUR, "s", "embed beside gen"),
    ):
        rows = gains.rename(columns={f"{name}_gain": "mean", f"{name}_low": "low", f"{name}_high": "high"})
        axes.errorbar(rows["concurrency"], rows["mean"], yerr=reach(rows), color=colour, marker=marker, capsize=3,
                      label=label)  # fmt: skip
    start = wasteful_from(gains)
    if start is not None:
        axes.axvspan(
            start, gains["concurrency"].max(), color=BOUND_COLOUR, alpha=0.08, label="batching more is wasteful"
        )
    axes.axhline(0, color="#999999", linewidth=0.9)
    axes.set(title="What one more step adds", xlabel="requests in flight", ylabel="work added (device alone = 1)")
    _powers(axes, gains["concurrency"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)


def _gaps(axes: Axes, measures: SweepMeasures, slo_gap_ms: float) -> None:
    for step, colour, label in (("step1", GEN_COLOUR, "gen alone"), ("step2", STEP_COLOURS["step2"], "step2, shared")):
        rows = measures.of(step, "gap_p99_ms").sort_values(X)
        axes.errorbar(rows[X], rows["mean"], yerr=reach(rows), color=colour, marker="o" if step == "step1" else "s",
                      capsize=3, label=label)  # fmt: skip
    axes.axhline(slo_gap_ms, color=BOUND_COLOUR, linestyle="--", label=f"SLO: {slo_gap_ms:g} ms")
    axes.set(title="p99 inter-token gap", xlabel="requests in flight", ylabel="ms", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _powers(axes, measures.of("step1", "gap_p99_ms")[X])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)


def _powers(axes: Axes, values: pd.Series) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(values), [str(value) for value in sorted(values)])
    axes.minorticks_off()
