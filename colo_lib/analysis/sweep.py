"""A sweep's cells side by side: rates and kept fractions with their intervals, a row a cell and measure.

And one sentence a sweep, which says no more than its intervals support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.statistics import LEAST_STARTS, Estimate, estimate, holm, rate, ratio, with_interval
from colo_lib.data.run import Run
from colo_lib.data.sweep import SweepCell
from colo_lib.steps import MECHANISMS, STEPS, mechanism_in_words, with_id

RATES = (
    "gen_tokens_per_s", "embed_sequences_per_s", "gap_p50_ms", "gap_p99_ms", "batch_p99_ms",
    "gen_demand_met", "embed_demand_met",
)  # fmt: skip
COLUMNS = ["cell", "step", "mechanism", "measure", "mean", "low", "high", "blocks", "starts", "estimate"]


@dataclass(frozen=True)
class SweepMeasures:
    """`values`: `COLUMNS` and a column a varied parameter; measures are `RATES`, gen_kept, embed_kept, aggregate,
    aggregate_per_device, and gap_p99_ratio: the p99 inter-token gap over that of the step's baseline, paired by block.
    `estimate` is the `Estimate` behind a row's mean and interval. `cells`: cell, a column a varied parameter, status,
    reason, trials, counted.
    """

    values: pd.DataFrame
    cells: pd.DataFrame
    names: tuple[str, ...]

    def of(self, step: str, name: str) -> pd.DataFrame:
        """The rows of one step and measure that have a mean, in the order of the cells."""
        mine = self.values[(self.values["step"] == step) & (self.values["measure"] == name)]
        return mine[mine["mean"].notna()].reset_index(drop=True)


def collect(
    cells: Iterable[SweepCell], names: tuple[str, ...], analysis: Callable[[Run], RunAnalysis] = RunAnalysis
) -> SweepMeasures:
    """Measure every cell that has a run; the others stay in `cells` with their status. `analysis`: of a run."""
    parts, rows = [], []
    for cell in cells:
        counted = trials = 0
        if cell.run is not None:
            values, counted = _measure_cell(analysis(cell.run))
            trials = len(cell.run.trials)
            parts.append(values.assign(cell=cell.name, **{name: cell.changes[name] for name in names}))
        places = {name: cell.changes[name] for name in names}
        rows.append({"cell": cell.name, **places, "status": cell.status, "reason": cell.reason,
                     "trials": trials, "counted": counted})  # fmt: skip
    values = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, *names])
    return SweepMeasures(values, pd.DataFrame(rows), names)


def _measure_cell(analysis: RunAnalysis) -> tuple[pd.DataFrame, int]:
    counted = analysis.counted
    mechanisms = dict(zip(counted["step"], counted["mechanism"], strict=True))
    estimates: list[tuple[str, str, str, Estimate]] = []
    for step, mechanism in mechanisms.items():
        estimates += [(step, mechanism, name, rate(counted, step, name)) for name in RATES]
        baseline = STEPS[step].gen_baseline
        if baseline not in (None, step):
            estimates.append((step, mechanism, "gap_p99_ratio", ratio(counted, step, baseline, "gap_p99_ms")))
    for (step, quantity), group in analysis.ratios.groupby(["step", "quantity"], sort=False):
        name = f"{quantity}_kept" if quantity in ("gen", "embed") else str(quantity)
        estimates.append((str(step), mechanisms[step], name, estimate(group["ratio"].to_numpy(), list(group["start"]))))
    rows = [
        (*place, estimated.mean, estimated.low, estimated.high, estimated.blocks, estimated.starts, estimated)
        for *place, estimated in estimates
        if estimated.blocks
    ]
    return pd.DataFrame(rows, columns=COLUMNS[1:]), len(counted)


def with_prefill_share(measures: SweepMeasures, prompt_tokens: int, output_tokens: int) -> SweepMeasures:
    """The measures with a column prefill_share = prompt / (prompt + output), tokens of a request.

    `prompt_tokens`, `output_tokens`: of the base, for what the sweep does not vary.
    """
    base = {"gen_prompt_tokens": prompt_tokens, "gen_output_tokens": output_tokens}

    def added(frame: pd.DataFrame) -> pd.DataFrame:
        prompt, output = (
            frame[name].astype("float64") if name in frame else float(tokens) for name, tokens in base.items()
        )
        return frame.assign(prefill_share=prompt / (prompt + output))

    return SweepMeasures(added(measures.values), added(measures.cells), measures.names)


@dataclass(frozen=True)
class Difference:
    """`mean` with its 95 % interval [low, high] from `starts` starts of the engines at the least."""

    mean: float
    low: float
    high: float
    starts: float

    @property
    def settled(self) -> bool:
        """Whether the interval is over starts of the engines and lies on one side of zero."""
        return bool(self.starts >= LEAST_STARTS and (self.low > 0 or self.high < 0))


def difference(before: Any, after: Any) -> Difference:
    """after - before of two independent estimates (rows with mean, low, high, starts): half-widths add as squares.

    Two intervals may overlap and their difference be settled all the same. Null bounds where one side has none.
    """
    mean = float(after.mean - before.mean)
    reach = float(np.hypot((after.high - after.low) / 2, (before.high - before.low) / 2))
    return Difference(mean, mean - reach, mean + reach, min(before.starts, after.starts))


def ratio_gain(before: Any, after: Any) -> Difference:
    """after / before - 1 of two independent positive estimates, by relative half-widths."""
    ratio = float(after.mean / before.mean)
    relative = np.hypot((after.high - after.low) / 2 / after.mean, (before.high - before.low) / 2 / before.mean)
    ends = (ratio * (1 - float(relative)) - 1, ratio * (1 + float(relative)) - 1)
    return Difference(ratio - 1, *ends, min(before.starts, after.starts))


THREADS = ("mps_gen_thread_percentage", "mps_embed_thread_percentage")


def interval(row: Any) -> str:
    """mean [low, high] of a row of `SweepMeasures.values`."""
    return with_interval(row.mean, row.low, row.high, row.starts)


def threads(measures: SweepMeasures, min_gen_kept: float) -> str:
    """Which thread percentage gives embed most without costing gen more than it may lose."""
    gen, embed = measures.of("step2", "gen_kept"), measures.of("step2", "embed_kept").set_index("cell")
    gen = gen[gen["cell"].isin(embed.index)]
    if gen.empty:
        return f"No cell measured both kept fractions of {with_id('step2')}: nothing can be said."
    others = sorted(name for name in set(gen["mechanism"]) if not MECHANISMS[name].mps)
    named = ", ".join(map(mechanism_in_words, others))
    if others and not any(MECHANISMS[name].cores for name in others):
        return f"These runs shared by {named}, which heeds no thread percentage: nothing can be said."
    safe = gen[surely(gen, min_gen_kept)]
    if safe.empty:
        best = _row(gen, gen["mean"].idxmax())
        sentence = f"At no setting does the LLM surely keep {min_gen_kept:.0%}; it keeps most, {interval(best)}, at "
    else:
        best = _row(safe, embed.loc[safe["cell"], "mean"].to_numpy().argmax(), by_place=True)
        sentence = (
            f"The LLM surely keeps {min_gen_kept:.0%} at {len(safe)} of {len(gen)} settings; there the embedder keeps "
        )
        sentence += "most at "
    other = embed.loc[best.cell]
    kept = with_interval(other["mean"], other["low"], other["high"], other["starts"])
    note = " Cores stood in for the GPU, where thread percentages do nothing: differences are noise." if others else ""
    return f"{sentence}{cell_in_words(best, measures.names)}: {kept}.{note}"


def surely(rows: pd.DataFrame, least: float) -> list[bool]:
    """Which of several settings keep at least `least`, all judged at once (Holm), over starts of the engines."""
    doubts = [kept.doubt(least, True) if kept.across_starts else float("nan") for kept in rows["estimate"]]
    return holm(doubts)


def trend(measures: SweepMeasures, x: str, what: str) -> str:
    """How step 2's kept fractions differ between the smallest and the largest value of `x`."""
    sentences = []
    for name, label in (("gen_kept", "the LLM"), ("embed_kept", "the embedder")):
        rows = measures.of("step2", name).sort_values(x, kind="stable")
        if len(rows) < 2:
            continue
        first, last = _row(rows, 0, by_place=True), _row(rows, len(rows) - 1, by_place=True)
        change = difference(first, last)
        sentences.append(f"{label} keeps {interval(first)} at {getattr(first, x):g} and {interval(last)} at "
                    f"{getattr(last, x):g} ({_settled(change)})")  # fmt: skip
    return f"{what}: {'; '.join(sentences)}." if sentences else f"{what}: fewer than two cells measured it."


def eager(measures: SweepMeasures) -> str:
    """What CUDA graphs change in kept fraction, and what they give in tokens/s."""
    kept = measures.of("step2", "gen_kept").set_index("gen_enforce_eager")
    rates = measures.of("step2", "gen_tokens_per_s").set_index("gen_enforce_eager")
    if not {True, False} <= set(kept.index) or not {True, False} <= set(rates.index):
        return f"The sweep lacks eager or CUDA graphs with {with_id('step2')} and its baseline: nothing can be said."
    pairs = [[_item(frame.loc[value]) for value in (False, True)] for frame in (kept, rates)]
    changes = [difference(*pair) for pair in pairs]
    return (
        f"With CUDA graphs the LLM keeps {interval(pairs[0][0])} beside the embedder, eager {interval(pairs[0][1])} "
        f"({_settled(changes[0])}); in tokens/s that is {interval(pairs[1][0])} with graphs and "
        f"{interval(pairs[1][1])} eager ({_settled(changes[1])})."
    )


def memory(measures: SweepMeasures) -> str:
    """How much KV cache fits beside each batch size, and which cells did not fit."""
    cells, kv, batch = measures.cells, "gen_kv_cache_gib", "embed_batch_size"
    if not {kv, batch} <= set(measures.names):
        return f"The sweep does not vary both {kv} and {batch}: nothing can be said of one against the other."
    refused, other = cells[cells["status"] == "refused"], cells[~cells["status"].isin(["done", "refused"])]
    most = cells[cells["status"] == "done"].groupby(batch)[kv].max()
    fits = ", ".join(f"{value:g} GiB beside batches of {size}" for size, value in most.items()) or "nothing fits"
    sentence = f"{len(refused)} of {len(cells)} cells did not fit. The largest KV cache measured that fits: {fits}."
    return sentence + (f" {len(other)} cells failed or did not run, so that they say nothing." if len(other) else "")


def cell_in_words(row: Any, names: tuple[str, ...]) -> str:
    """A cell's place in words."""
    return ", ".join(f"{name} = {getattr(row, name)}" for name in names)


def _settled(change: Difference) -> str:
    size = with_interval(change.mean, change.low, change.high, change.starts)
    return f"difference {size}" if change.settled else f"difference {size}: not settled"


def _row(frame: pd.DataFrame, where: Any, by_place: bool = False) -> Any:
    rows = frame.iloc[[where]] if by_place else frame.loc[[where]]
    return next(rows.itertuples())


def _item(row: pd.Series) -> Any:
    return next(pd.DataFrame([row]).itertuples())
