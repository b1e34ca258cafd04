"""How many starts of the engines, blocks and seconds would settle each clause of the verdict, from a run that was made.

A clause is settled when the mean over starts lies far enough from its bound for the spread that the run showed. With K
starts of m blocks the mean's variance is between^2 / K + within^2 / (K m), and what is needed is that

    distance to the bound >= (t(1 - a, K - 1) + t(0.8, K - 1)) x standard error

for 80 % power (Cohen, Statistical Power Analysis, 1988, chapter 2, with t for both quantiles), where a is the verdict's
one-sided level over the number of clauses: the strictest that Holm's procedure asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from colo_lib.analysis.statistics import CONFIDENCE, LEAST_STARTS, POWER, Estimate
from colo_lib.analysis.verdict import Clause

MOST_STARTS, MOST_BLOCKS_A_START = 60, 8


@dataclass(frozen=True)
class Costs:
    """Seconds that a run takes: a start of every set of engines, and a block of all steps."""

    starts_s: float
    block_s: float

    def of(self, starts: int, blocks_a_start: int) -> float:
        """Seconds of a run."""
        return starts * (self.starts_s + blocks_a_start * self.block_s)


@dataclass(frozen=True)
class Need:
    """What settles a clause with 80 % power: null where nothing within reason does. `assumed`: what was not known."""

    clause: str
    starts: int | None
    blocks_a_start: int | None
    seconds: float
    assumed: str


def needs(asked: Sequence[Clause], costs: Costs) -> list[Need]:
    """A row a clause, each with the cheapest run that settles it."""
    return [_need(one, len(asked), costs) for one in asked]


def together(asked: Sequence[Clause], costs: Costs) -> Need:
    """The cheapest run that settles every clause that any run within reason settles."""
    single = needs(asked, costs)
    wanted = [one for one, need in zip(asked, single, strict=True) if need.starts is not None]
    made = [_spreads(one.measured) for one in wanted]
    return _cheapest("all that can be settled", [(_distance(one), *own) for one, own in zip(wanted, made, strict=True)],
                     len(asked), costs, "")  # fmt: skip


def _need(one: Clause, clauses: int, costs: Costs) -> Need:
    found = one.measured
    between, within = _spreads(found)
    if not found.blocks or not np.isfinite(_distance(one)) or not np.isfinite([between, within]).all():
        return Need(one.text, None, None, float("nan"), "this run does not tell its spread")
    known = np.isfinite(found.between)
    assumed = "" if known else "one start alone: starts are taken to differ as much as blocks do"
    return _cheapest(one.text, [(_distance(one), between, within)], clauses, costs, assumed)


def _distance(one: Clause) -> float:
    at = np.log(one.threshold) if one.measured.log and one.threshold > 0 else one.threshold
    return float(abs(one.measured.centre - at))


def _spreads(found: Estimate) -> tuple[float, float]:
    """(between starts, within a start), each from what the run knows: what it cannot tell apart counts as between."""
    if not np.isfinite(found.within):
        return found.between, 0.0
    return (found.between if np.isfinite(found.between) else found.within), found.within


def _cheapest(
    text: str, wanted: Sequence[tuple[float, float, float]], clauses: int, costs: Costs, assumed: str
) -> Need:
    """The cheapest (starts, blocks a start) for which every (distance, between, within) is far enough."""
    fits = [
        (costs.of(starts, blocks), starts, blocks)
        for starts in range(LEAST_STARTS, MOST_STARTS + 1)
        for blocks in range(1, MOST_BLOCKS_A_START + 1)
        if all(far_enough(*one, starts, blocks, clauses) for one in wanted)
    ]
    if not fits or not wanted:
        told = f"more than {MOST_STARTS} starts: it lies at its bound" if wanted else assumed
        return Need(text, None, None, float("nan"), told)
    seconds, starts, blocks = min(fits)
    return Need(text, starts, blocks, seconds, assumed)


def far_enough(
    distance: float, between: float, within: float, starts: int, blocks_a_start: int, clauses: int = 1
) -> bool:
    """Whether a run of so many starts and blocks settles a claim at this distance from its bound with 80 % power."""
    level, freedom = (1 - CONFIDENCE) / 2 / clauses, starts - 1
    error = np.sqrt(between**2 / starts + within**2 / (starts * blocks_a_start))
    return bool(distance >= (stats.t.ppf(1 - level, freedom) + stats.t.ppf(POWER, freedom)) * error)
