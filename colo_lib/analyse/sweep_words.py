"""One sentence a sweep, and no more than its intervals support."""

from __future__ import annotations

from typing import Any

import pandas as pd

from colo_lib.analyse.estimate import holm
from colo_lib.analyse.steps_table import with_interval
from colo_lib.analyse.sweep import Difference, SweepMeasures, difference

THREADS = ("mps_gen_thread_percentage", "mps_embed_thread_percentage")


def interval(row: Any) -> str:
    """mean [low, high] of a row of `SweepMeasures.values`."""
    return with_interval(row.mean, row.low, row.high, row.starts)


def threads(measures: SweepMeasures, min_gen_kept: float) -> str:
    """Which thread percentage gives embed most without costing gen more than it may lose."""
    gen, embed = measures.of("step2", "gen_kept"), measures.of("step2", "embed_kept").set_index("cell")
    gen = gen[gen["cell"].isin(embed.index)]
    if gen.empty:
        return "No cell measured both kept fractions of step 2: nothing can be said."
    others = sorted(set(gen["mechanism"]) - {"mps"})
    if others and not any(name.startswith("cpu-") for name in others):
        return f"These runs shared by {', '.join(others)}, which heeds no thread percentage: nothing can be said."
    safe = gen[surely(gen, min_gen_kept)]
    if safe.empty:
        best = _row(gen, gen["mean"].idxmax())
        told = f"At no setting does gen surely keep {min_gen_kept:.0%}; it keeps most, {interval(best)}, at "
    else:
        best = _row(safe, embed.loc[safe["cell"], "mean"].to_numpy().argmax(), by_place=True)
        told = f"Gen surely keeps {min_gen_kept:.0%} at {len(safe)} of {len(gen)} settings; there embed keeps most at "
    other = embed.loc[best.cell]
    kept = with_interval(other["mean"], other["low"], other["high"], other["starts"])
    note = " Cores stood in for the GPU, where thread percentages do nothing: differences are noise." if others else ""
    return f"{told}{place(best, measures.names)}: {kept}.{note}"


def surely(rows: pd.DataFrame, least: float) -> list[bool]:
    """Which of several settings keep at least `least`, all judged at once (Holm), over starts of the engines."""
    doubts = [one.doubt(least, True) if one.across_starts else float("nan") for one in rows["estimate"]]
    return holm(doubts)


def trend(measures: SweepMeasures, x: str, what: str) -> str:
    """How step 2's kept fractions differ between the smallest and the largest value of `x`."""
    told = []
    for name, label in (("gen_kept", "gen"), ("embed_kept", "embed")):
        rows = measures.of("step2", name).sort_values(x, kind="stable")
        if len(rows) < 2:
            continue
        first, last = _row(rows, 0, by_place=True), _row(rows, len(rows) - 1, by_place=True)
        found = difference(first, last)
        told.append(f"{label} keeps {interval(first)} at {getattr(first, x):g} and {interval(last)} at "
                    f"{getattr(last, x):g} ({_settled(found)})")  # fmt: skip
    return f"{what}: {'; '.join(told)}." if told else f"{what}: fewer than two cells measured it."


def eager(measures: SweepMeasures) -> str:
    """What CUDA graphs change in kept fraction, and what they give in tokens/s."""
    kept = measures.of("step2", "gen_kept").set_index("gen_enforce_eager")
    rates = measures.of("step2", "gen_tokens_per_s").set_index("gen_enforce_eager")
    if not {True, False} <= set(kept.index) or not {True, False} <= set(rates.index):
        return "The sweep lacks eager or CUDA graphs with step 2 and its baseline: nothing can be said."
    pairs = [[_item(frame.loc[value]) for value in (False, True)] for frame in (kept, rates)]
    found = [difference(*pair) for pair in pairs]
    return (
        f"With CUDA graphs gen keeps {interval(pairs[0][0])} beside embed, eager {interval(pairs[0][1])} "
        f"({_settled(found[0])}); in tokens/s that is {interval(pairs[1][0])} with graphs and {interval(pairs[1][1])} "
        f"eager ({_settled(found[1])})."
    )


def memory(measures: SweepMeasures) -> str:
    """How much KV cache fits beside each batch size, and which cells did not fit."""
    cells, kv, batch = measures.cells, "gen_kv_cache_gib", "embed_batch_size"
    if not {kv, batch} <= set(measures.names):
        return f"The sweep does not vary both {kv} and {batch}: nothing can be said of one against the other."
    refused, other = cells[cells["status"] == "refused"], cells[~cells["status"].isin(["done", "refused"])]
    most = cells[cells["status"] == "done"].groupby(batch)[kv].max()
    fits = ", ".join(f"{value:g} GiB beside batches of {size}" for size, value in most.items()) or "nothing fits"
    told = f"{len(refused)} of {len(cells)} cells did not fit. The largest KV cache measured that fits: {fits}."
    return told + (f" {len(other)} cells failed or did not run, so that they say nothing." if len(other) else "")


def place(row: Any, names: tuple[str, ...]) -> str:
    """A cell's place in words."""
    return ", ".join(f"{name} = {getattr(row, name)}" for name in names)


def _settled(found: Difference) -> str:
    size = with_interval(found.mean, found.low, found.high, found.starts)
    return f"difference {size}" if found.settled else f"difference {size}: not settled"


def _row(frame: pd.DataFrame, where: Any, by_place: bool = False) -> Any:
    chosen = frame.iloc[[where]] if by_place else frame.loc[[where]]
    return next(chosen.itertuples())


def _item(row: pd.Series) -> Any:
    return next(pd.DataFrame([row]).itertuples())
