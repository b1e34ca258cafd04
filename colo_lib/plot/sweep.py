"""A sweep's figures: against the varied value, frontiers, what fits into memory, and against batching more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from colo_lib.analysis.operating_point import X, wasteful_from
from colo_lib.analysis.statistics import RATES
from colo_lib.analysis.sweep import SweepMeasures
from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    EMBED_COLOUR,
    GEN_COLOUR,
    MECHANISM_HATCHES,
    MECHANISM_MARKERS,
    WIDTH_IN,
    apply_style,
)
from colo_lib.steps import CO_LOCATED, STEPS, mechanism_in_words, names_in

CAPS = ("mps_gen_thread_percentage", "mps_embed_thread_percentage")
NEAR = 0.08  # kept fractions whose labels would lie on each other
KEPT = (("gen_kept", "LLM", GEN_COLOUR), ("embed_kept", "embedder", EMBED_COLOUR), ("aggregate", "both", BOTH_COLOUR))


def kept_against(measures: SweepMeasures, x: str, label: str, min_gen_kept: float, log: bool = False) -> Figure:
    """Kept fractions of step 2 and aggregate against the varied parameter `x`, with 95 % intervals."""
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.0), layout="constrained")
    axes = figure.subplots()
    _kept_lines(axes, measures, x, label, min_gen_kept, log)
    figure.legend(handles=_legend(measures), loc="outside lower center", ncols=4)
    return figure


def thread_frontier(measures: SweepMeasures, x: str, min_gen_kept: float) -> Figure:
    """Left as `kept_against`; right embed's kept fraction against gen's, a point a setting: up and right is better."""
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if set(CAPS) <= set(measures.names):
        _kept_by_caps(left, measures, min_gen_kept)
    else:
        _kept_lines(left, measures, x, f"{x} (%)", min_gen_kept, False)
    gen, embed = measures.of("step2", "gen_kept"), measures.of("step2", "embed_kept").set_index("cell")
    last: tuple[float, float] | None = None
    for row in gen.sort_values("mean").itertuples():
        if row.cell in embed.index:
            other = embed.loc[row.cell]
            _cross(right, row, other, row.mechanism, BOTH_COLOUR)
            words = " / ".join(str(getattr(row, name)) for name in measures.names)
            near = last is not None and abs(row.mean - last[0]) < NEAR and abs(other["mean"] - last[1]) < NEAR
            right.annotate(
                f"{words} %", (row.mean, other["mean"]), xytext=(6, -13 if near else 5), textcoords="offset points",
                fontsize=9,
            )  # fmt: skip
            last = (row.mean, other["mean"])
    right.axvline(min_gen_kept, color=BOUND_COLOUR, linestyle="--")
    right.set(title="What the setting trades", xlabel="LLM: kept fraction", ylabel="embedder: kept fraction")
    right.margins(0.12)
    right.set_ylim(bottom=0)
    figure.legend(handles=_legend(measures), loc="outside lower center", ncols=4)
    return figure


def _kept_by_caps(axes: Axes, measures: SweepMeasures, bound: float) -> None:
    """Both caps vary: a place a pair of them, the loosest on the embedder last, and no line, for none lies between."""
    measured = pd.concat([measures.of("step2", name) for name, _, _ in KEPT])  # a cell may lack one of them
    pairs = measured.sort_values(list(reversed(CAPS)))[list(CAPS)].drop_duplicates()
    places = {tuple(pair): place for place, pair in enumerate(pairs.itertuples(index=False))}
    for name, _, colour in KEPT:
        rows = measures.of("step2", name)
        across = [places[tuple(pair)] for pair in rows[list(CAPS)].itertuples(index=False)]
        marker = MECHANISM_MARKERS.get(rows["mechanism"].iloc[0], "o") if len(rows) else "o"
        axes.errorbar(across, rows["mean"], yerr=reach(rows), color=colour, marker=marker, linestyle="", capsize=3)
    axes.axhline(bound, color=BOUND_COLOUR, linestyle="--", linewidth=1.2)
    axes.set_xticks(range(len(places)), [f"{gen} / {embed}" for gen, embed in places])
    axes.set(title=f"Kept, {_shared_name(measures)}", xlabel="SMs that the LLM / the embedder may use (%)")
    axes.set_ylabel("kept fraction (alone = 1)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)


def eager_bars(measures: SweepMeasures) -> Figure:
    """Kept fractions (left) and gen's tokens/s alone and shared (right), CUDA graphs beside eager."""
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = "gen_enforce_eager"
    for place, (name, label, colour) in enumerate(KEPT[:2]):
        _bars(left, measures.of("step2", name), x, place, colour, label, True)
    left.axhline(1.0, color="#999999", linestyle="--", linewidth=0.9)
    left.set(title="Kept beside the other", ylabel="kept fraction (alone = 1)")
    for place, (step, label) in enumerate((("step1", "alone"), ("step2", "shared"))):
        _bars(right, measures.of(step, "gen_tokens_per_s"), x, place, GEN_COLOUR, label, step == "step2")
    right.set(title="The LLM's throughput", ylabel="tokens/s")
    for axes in (left, right):
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)
    return figure


def memory_grid(measures: SweepMeasures) -> Figure:
    """Embed's sequences/s in step 2 by KV cache and batch size; cells that did not fit are hatched and say so."""
    apply_style()
    kv, batch = "gen_kv_cache_gib", "embed_batch_size"
    gen, embed = (measures.of("step2", rate).set_index("cell")["mean"] for rate in RATES.values())
    cells = measures.cells.assign(
        rate=measures.cells["cell"].map(embed).astype("float64"),
        words=[_cell_words(cell, gen, embed) for cell in measures.cells.itertuples()],
    )
    rates, words = (cells.pivot(index=batch, columns=kv, values=name).sort_index() for name in ("rate", "words"))
    figure = Figure(figsize=(WIDTH_IN, 1.6 + 0.75 * len(rates)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#EEEEEE")
    axes.patch.set(hatch="///", edgecolor="#BBBBBB")
    if rates.notna().any(axis=None):
        bar = {"label": f"embedder, {_shared_name(measures)} (sequences/s)"}
        seaborn.heatmap(rates, cmap="Oranges", vmin=0, cbar_kws=bar, linewidths=1.0, ax=axes)
    for row, column in np.ndindex(words.shape):
        axes.text(column + 0.5, row + 0.5, words.iloc[row, column], ha="center", va="center", fontsize=9,
                  bbox={"facecolor": "white", "alpha": 0.75, "lw": 0})  # fmt: skip
    axes.set(xlim=(0, words.shape[1]), ylim=(0, words.shape[0]))
    axes.set_xticks(np.arange(words.shape[1]) + 0.5, [f"{value:g}" for value in words.columns])
    axes.set_yticks(np.arange(words.shape[0]) + 0.5, [str(value) for value in words.index], rotation=0)
    axes.grid(visible=False)
    axes.set(xlabel="KV cache of the LLM (GiB)", ylabel="embedding batch (sequences)")
    return figure


def _cell_words(cell: Any, gen: pd.Series, embed: pd.Series) -> str:
    """Both rates of a cell of the grid, or why it has none."""
    if cell.cell in embed.index:
        return f"embedder {embed[cell.cell]:,.0f} seq/s\nLLM {gen.get(cell.cell, np.nan):,.0f} tok/s"
    return {"refused": "did not fit", "done": "no trial counts"}.get(cell.status, cell.status)


def _shared_name(measures: SweepMeasures) -> str:
    """What step 2 is called on the sweep's devices."""
    return names_in(measures.values).get("step2", STEPS["step2"].name)


def _kept_lines(axes: Axes, measures: SweepMeasures, x: str, label: str, bound: float, log: bool) -> None:
    for name, _, colour in KEPT:
        rows = measures.of("step2", name).sort_values(x)
        if rows.empty:
            continue
        marker = MECHANISM_MARKERS.get(rows["mechanism"].iloc[0], "o")
        axes.errorbar(rows[x], rows["mean"], yerr=reach(rows), color=colour, marker=marker, capsize=3)
    axes.axhline(bound, color=BOUND_COLOUR, linestyle="--", linewidth=1.2)
    axes.set(title=f"Kept, {_shared_name(measures)}", xlabel=label, ylabel="kept fraction (alone = 1)")
    axes.set_ylim(bottom=0)
    values = sorted(measures.of("step2", "gen_kept")[x].unique())
    if log:
        axes.set_xscale("log", base=2)
    if len(values) <= 10:
        axes.set_xticks(values, [f"{value:.3g}" for value in values])
        axes.minorticks_off()


def reach(rows: pd.DataFrame) -> np.ndarray:
    """Error bars of rows with mean, low, high: lengths below and above; zero where there is no interval."""
    below, above = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
    return np.nan_to_num(np.vstack([below, above]).clip(min=0))


def _cross(axes: Axes, across: object, up: pd.Series, mechanism: str, colour: str) -> None:
    xerr = reach(pd.DataFrame([{name: getattr(across, name) for name in ("mean", "low", "high")}]))
    yerr = reach(pd.DataFrame([up[["mean", "low", "high"]].astype("float64")]))
    marker = MECHANISM_MARKERS.get(mechanism, "o")
    axes.errorbar(across.mean, up["mean"], xerr=xerr, yerr=yerr, color=colour, marker=marker, capsize=2)  # type: ignore[attr-defined]


def _bars(axes: Axes, rows: pd.DataFrame, x: str, place: int, colour: str, label: str, hatched: bool) -> None:
    names = {False: "CUDA graphs", True: "eager"}
    for row in rows.itertuples():
        eager = bool(getattr(row, x))
        where = int(eager) + (place - 0.5) * 0.38
        hatch = MECHANISM_HATCHES.get(row.mechanism, "") if hatched else ""
        axes.bar(where, row.mean, 0.34, facecolor=colour, alpha=0.4, edgecolor=colour, hatch=hatch)
        interval = pd.DataFrame([{"mean": row.mean, "low": row.low, "high": row.high}])
        axes.errorbar(where, row.mean, yerr=reach(interval), color="black", capsize=4)
        axes.annotate(label, (where, 0), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks([0, 1], [names[False], names[True]])
    axes.set_xlim(-0.5, 1.5)


def _legend(measures: SweepMeasures) -> Sequence[Line2D]:
    used = dict.fromkeys(measures.of("step2", "gen_kept")["mechanism"])
    handles = [Line2D([], [], color=colour, label=label) for _, label, colour in KEPT]
    handles += [
        Line2D(
            [], [], color="black", marker=MECHANISM_MARKERS.get(name, "o"), linestyle="", label=mechanism_in_words(name)
        )
        for name in used
    ]
    return [*handles, Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="least kept of the LLM (verdict)")]


def batch_more(measures: SweepMeasures, gains: pd.DataFrame, slo_gap_ms: float) -> Figure:
    """Top: tokens/s against sequences/s; below: gains against concurrency, and p99 inter-token gaps against the SLO.

    `gains`: `operating_point.against_sharing`. A dashed line joins gen alone and embed alone at one concurrency:
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
    alone_label = "LLM alone (numbers: requests in flight)"
    handles = [Line2D([], [], color=GEN_COLOUR, marker="o", linestyle="", label=alone_label),
               Line2D([], [], color="#AAAAAA", linestyle="--", label="in turns, at best")]  # fmt: skip
    names = names_in(measures.values)
    for step in [name for name in CO_LOCATED if name in names]:
        colour = STEPS[step].colour
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
        handles.append(Line2D([], [], color=colour, marker=marker, label=names[step]))
        late = _late(measures, step, slo_gap_ms) & set(both)
        points = (across["mean"].loc[sorted(late)], up["mean"].loc[sorted(late)])
        axes.scatter(*points, facecolor="white", edgecolor=colour, marker=marker, zorder=5)
    late_alone = alone[alone["cell"].isin(_late(measures, "step1", slo_gap_ms))]
    axes.scatter(late_alone["mean"], [0.0] * len(late_alone), facecolor="white", edgecolor=GEN_COLOUR, zorder=5,
                 clip_on=False)  # fmt: skip
    handles.append(Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="",
                          label=f"hollow: p99 gap over the SLO of {slo_gap_ms:g} ms"))  # fmt: skip
    axes.set(title="The frontier", xlabel="LLM (tokens/s)", ylabel="embedder (sequences/s)")
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
        ("share", BOTH_COLOUR, "s", "embedder beside the LLM"),
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
    for step, colour, label in (
        ("step1", GEN_COLOUR, STEPS["step1"].name),
        ("step2", STEPS["step2"].colour, _shared_name(measures)),
    ):
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
