"""The verdict on the hypothesis, clause by clause: each with its figure, interval, threshold and status.

The hypothesis holds when, at 95 % confidence, gen keeps `min_gen_kept` of its tokens/s and its p99 inter-token gap
grows by at most `max_gap_growth`, embed keeps `min_embed_kept`, step 3 is worse than step 2 for both workloads, and
a capture shows overlap, as a measurement and no upper bound. A bound missed with confidence refutes it; anything else
is inconclusive.

Where a demand is given the question is another: does the LLM keep its rate and its latency while the embedder's demand
is met within its SLO? Then a workload's kept fraction says little, for it does what is asked of it, and its clause is
that `min_demand_met` of the requests that were due are served within their SLO, counted from when they were due; slower
in turns means a longer p99 of its latency. Work of both cannot be summed, so that nothing is said of it.

The clauses are judged at once: with five of them at their bounds one in nine runs would show a false status, were each
judged by itself. Holm's procedure keeps it to one in twenty. A clause is settled over starts of the engines only.

What the run found beside the hypothesis: does sharing pay, and do both workloads keep their bounds.

How many starts of the engines, blocks and seconds would settle each clause, from a run that was made: a clause is
settled when the mean over starts lies far enough from its bound for the spread that the run showed. With K starts of m
blocks the mean's variance is between^2 / K + within^2 / (K m), and what is needed is that

    distance to the bound >= (t(1 - a, K - 1) + t(0.8, K - 1)) x standard error

for 80 % power (Cohen, Statistical Power Analysis, 1988, chapter 2, with t for both quantiles), where a is the verdict's
one-sided level over the number of clauses: the strictest that Holm's procedure asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from colo_lib.analysis.statistics import (
    CONFIDENCE,
    LEAST_STARTS,
    POWER,
    RATES,
    Estimate,
    holm,
    rate,
    ratio,
    sides_of_one,
    within_starts,
)
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace.overlap import MeasuredOverlap
from colo_lib.analysis.trial_metrics import ENOUGH_FOR_P99
from colo_lib.steps import CO_LOCATED, STEPS, WORKLOADS, capital, names_in, wanted_in_words

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "inconclusive"
COLUMNS = ["clause", "mean", "low", "high", "threshold", "blocks", "starts", "status", "missing"]


@dataclass(frozen=True)
class Verdict:
    """`status` of the hypothesis; `clauses` has the columns of `COLUMNS`; `missing` says what would settle it."""

    status: str
    clauses: pd.DataFrame
    missing: list[str]


def judge(counted: pd.DataFrame, bounds: Thresholds, stand_in: bool, overlap: MeasuredOverlap | None = None) -> Verdict:
    """Judge the trials that count (`Measured.counted`).

    `overlap`: of step 2's capture, where there is one.
    """
    asked = clauses_asked(counted, bounds)
    rows = [clause.row(status) for clause, status in zip(asked, decide_clause(asked), strict=True)]
    rows[1] = _enough_gaps(rows[1], counted)
    rows.append(_overlap_clause(bounds, stand_in, overlap))
    clauses = pd.DataFrame(rows, columns=COLUMNS)
    missing = [f"{row.clause}: {row.missing}" for row in clauses.itertuples() if row.status == OPEN]
    return Verdict(overall(list(clauses["status"])), clauses, missing)


def clauses_asked(counted: pd.DataFrame, bounds: Thresholds) -> list[Clause]:
    """The clauses that trials alone can settle, with what was measured: gen's rate and gaps, embed's rate, step 3."""
    gen, embed = (ratio(counted, "step2", base, RATES[name]) for base, name in (("step1", "gen"), ("step4", "embed")))
    gap = ratio(counted, "step2", "step1", "gap_p99_ms")
    asked = [
        Clause(f"the LLM keeps at least {bounds.min_gen_kept:.0%} of its tokens/s", gen, bounds.min_gen_kept, True),
        Clause(f"the LLM's p99 inter-token gap grows by at most {bounds.max_gap_growth:.0%}", gap,
               1 + bounds.max_gap_growth, False, shift=1.0),
        Clause(f"the embedder keeps at least {bounds.min_embed_kept:.0%} of its sequences/s", embed,
               bounds.min_embed_kept, True),
    ]  # fmt: skip
    demands = demanded(counted)
    if "embed" in demands:
        asked[2] = _demand_clause("embed", counted, bounds)
    if "gen" in demands:
        asked.append(_demand_clause("gen", counted, bounds))
    for workload, column in RATES.items():
        need = f"{wanted_in_words('step2', 'step3')} in the same block"
        text = f"the {WORKLOADS[workload]} is slower where both take turns than where both run at once"
        if workload in demands:
            text = (
                f"the {WORKLOADS[workload]}'s p99 latency is longer where both take turns than where both run at once"
            )
            column = LATENCIES[workload]
        worse = ratio(counted, "step3", "step2", column)
        asked.append(Clause(text, worse, 1.0, workload in demands, need=need))
    return asked


# workload -> the column of the latency of what it serves, counted from when it was due
LATENCIES = {"gen": "ttft_p99_ms", "embed": "batch_p99_ms"}


def demanded(counted: pd.DataFrame) -> list[str]:
    """The workloads of which a demand was made."""
    return [name for name in RATES if f"{name}_demand_met" in counted and counted[f"{name}_demand_met"].notna().any()]


def demands_in_words(counted: pd.DataFrame) -> str:
    """'the embedder's demand of 120 sequences/s': what was asked of each workload of which something was."""
    units = {"gen": "requests/s", "embed": "sequences/s"}
    return " and ".join(
        f"the {WORKLOADS[name]}'s demand of {counted[f'{name}_demanded_per_s'].dropna().iloc[0]:g} {units[name]}"
        for name in demanded(counted)
    )


def _demand_clause(workload: str, counted: pd.DataFrame, bounds: Thresholds) -> Clause:
    """That enough of what was due in step 2 was served within its SLO."""
    what, slo_ms = {
        "gen": ("first tokens come", bounds.slo_gen_ttft_ms),
        "embed": ("requests are done", bounds.slo_embed_batch_ms),
    }[workload]
    text = (
        f"the {WORKLOADS[workload]}'s demand is met: {bounds.min_demand_met:.0%} of its {what} within {slo_ms:g} ms "
        "of the time at which they were due"
    )
    need = f"trials of {STEPS['step2'].name} with a demand"
    return Clause(text, rate(counted, "step2", f"{workload}_demand_met"), bounds.min_demand_met, True, need=need)


def demand_answer(verdict: Verdict, counted: pd.DataFrame) -> str:
    """Does the LLM keep its rate and its latency while the demand is met? In a sentence; empty without a demand."""
    demands = demanded(counted)
    if not demands:
        return ""
    first = verdict.clauses.iloc[: 3 + ("gen" in demands)]
    first = first if "embed" in demands else first.drop(index=2)
    answer = {SUPPORTED: "Yes", REFUTED: "No", OPEN: "Not settled"}[overall(list(first["status"]))]
    parts = "; ".join(f"{row.clause}: {row.status} ({_figure(row)})" for row in first.itertuples())
    return (
        f"Does the LLM keep its rate and its latency while {demands_in_words(counted)} is met within its SLO? "
        f"{answer}: {parts}."
    )


def overall(statuses: list[str]) -> str:
    """supported if every clause is; not supported if any is not; inconclusive otherwise."""
    if REFUTED in statuses:
        return REFUTED
    return SUPPORTED if statuses and all(status == SUPPORTED for status in statuses) else OPEN


@dataclass(frozen=True)
class Clause:
    """A bound and what was measured against it. `shift`: what is taken off both where they are shown (a growth)."""

    text: str
    measured: Estimate
    threshold: float
    at_least: bool
    need: str = "the step and its baseline in the same block"
    shift: float = 0.0

    def row(self, status: str) -> dict[str, Any]:
        """The clause as a row of `COLUMNS`."""
        measured = self.measured
        return {
            "clause": self.text, "mean": measured.mean - self.shift, "low": measured.low - self.shift,
            "high": measured.high - self.shift, "threshold": self.threshold - self.shift, "blocks": measured.blocks,
            "starts": measured.starts, "status": status, "missing": self._missing() if status == OPEN else "",
        }  # fmt: skip

    def _missing(self) -> str:
        measured = self.measured
        if measured.blocks == 0:
            return f"no trials that count: needs {self.need}"
        if not measured.across_starts:
            count = "one start" if measured.starts == 1 else f"{measured.starts} starts"
            return (
                f"{count} of the engines: what another start would give is not known, so that nothing is settled; "
                f"needs {LEAST_STARTS} starts or more (parameter 'starts')"
            )
        held = measured.low <= self.threshold <= measured.high
        why = "the interval holds the threshold" if held else "not sure enough, among so many clauses judged at once"
        return (
            f"{why}; {measured.starts} starts of this spread show a shift of {measured.smallest_detectable:.2f} or "
            "more: more starts (`colo plan` tells how many)"
        )


def decide_clause(asked: Sequence[Clause]) -> list[str]:
    """The status of every clause, all judged at once (Holm), over starts of the engines.

    A clause takes part with its better claim, of two one-sided ones that exclude each other: that its bound is kept,
    or that it is broken.
    """
    doubts = [
        tuple(clause.measured.doubt(clause.threshold, side) for side in (clause.at_least, not clause.at_least))
        if clause.measured.across_starts
        else (np.nan, np.nan)
        for clause in asked
    ]
    held = holm([min(kept, broken) for kept, broken in doubts])
    return [
        OPEN if not sure else SUPPORTED if kept < broken else REFUTED
        for sure, (kept, broken) in zip(held, doubts, strict=True)
    ]


def _enough_gaps(row: dict[str, Any], counted: pd.DataFrame) -> dict[str, Any]:
    events = min(counted.loc[counted["step"] == step, "gap_count"].sum() for step in ("step1", "step2"))
    # Few events make a p99 little more than the largest gap: that may refute, never support.
    if row["status"] == SUPPORTED and events < ENOUGH_FOR_P99:
        row |= {"status": OPEN, "missing": f"a p99 needs {ENOUGH_FOR_P99} gaps in each step, there are {events:.0f}"}
    return row


def _overlap_clause(bounds: Thresholds, stand_in: bool, overlap: MeasuredOverlap | None) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, np.nan) | {
        "threshold": bounds.min_overlap,
        "blocks": 0,
        "starts": np.nan,
        "status": OPEN,
    }
    row["missing"] = ""
    row["clause"] = (
        f"a capture with both at once shows {bounds.min_overlap:.0%} or more of the LLM's busy time overlapped, as a "
        "measurement and no upper bound"
    )
    if stand_in:
        row["missing"] = "cores stand in for a GPU here, and a CPU has no kernel trace: needs a capture from a GPU"
    elif overlap is None:
        row["missing"] = f"no capture of {STEPS['step2'].name} in this run: needs an Nsight Systems capture"
    else:
        fraction = row["mean"] = float(overlap.fraction_of_gen)
        profiled, reach = overlap.profiled_ratio, overlap.range
        if not 0 <= fraction <= 1:
            row["missing"] = (
                f"the capture says {fraction:.0%} of the LLM's busy time, which cannot be: needs a sound capture"
            )
        elif overlap.upper_bound:
            row["missing"] = "the capture has kernel intervals only, an upper bound: needs context-switch rows"
        elif reach and reach[0] < bounds.min_overlap <= reach[1]:
            row["missing"] = (
                f"as far as the clocks of its two sessions are known, {reach[0]:.0%} to "
                f"{reach[1]:.0%} of the LLM's busy time: needs one session over both"
            )
        elif profiled is not None and profiled < bounds.min_profiled_ratio:
            row["missing"] = (
                f"the LLM ran at {profiled:.0%} of its rate while it was captured: what the capture shows is not what "
                "was measured; needs a lighter capture"
            )
        else:
            row["status"] = SUPPORTED if fraction >= bounds.min_overlap else REFUTED
    return row


def pays(kept: pd.DataFrame) -> pd.DataFrame:
    """step, mechanism, mean, low, high, blocks, starts, answer: does a shared step do more work a device?

    Dedicated devices are 1.0 per device by definition. All steps are judged at once, over starts of the engines.
    """
    rows = kept[(kept["quantity"] == "aggregate_per_device") & kept["step"].isin(CO_LOCATED)].copy()
    sides = sides_of_one(list(rows["doubt_more"]), list(rows["doubt_less"]))
    rows["answer"] = [side if side == "not settled" else f"{side} than dedicated" for side in sides]
    return rows[["step", "mechanism", "mean", "low", "high", "blocks", "starts", "answer"]].reset_index(drop=True)


def headline(verdict: Verdict, paying: pd.DataFrame) -> str:
    """The verdict, the clauses that fail with their figures, and step 2's work per device with its interval."""
    answer = {
        SUPPORTED: "The hypothesis holds in this run.",
        REFUTED: "The hypothesis does not hold in this run.",
        OPEN: "This run does not settle the hypothesis.",
    }[verdict.status]
    counts = verdict.clauses["status"].value_counts()
    split = ", ".join(f"{counts.get(status, 0)} {status}" for status in (SUPPORTED, REFUTED, OPEN))
    parts = [f"{answer} Its {len(verdict.clauses)} clauses: {split}."]
    refuted = verdict.clauses[verdict.clauses["status"] == REFUTED]
    if len(refuted):
        parts.append("What fails: " + "; ".join(f"{row.clause} ({_figure(row)})" for row in refuted.itertuples()) + ".")
    names = names_in(paying)
    for row in paying[paying["step"] != "step3"].itertuples():
        title, mean = (
            capital(names[row.step]),
            f"{row.mean:.2f} devices' worth of work per device",
        )
        interval = f"95 % interval {row.low:.2f} to {row.high:.2f}" if row.low == row.low else "no interval"
        interval += within_starts(row.starts)
        blocks = f"{row.blocks} block{'' if row.blocks == 1 else 's'}"
        parts.append(f"{title}: {mean} ({interval}, {blocks}); dedicated is 1.")
    return " ".join(parts)


def _figure(clause: Any) -> str:
    """A clause's figure as a percentage: its words say of what."""
    if clause.low != clause.low:
        return f"measured {clause.mean:.0%}"
    return f"measured {clause.mean:.0%} [{clause.low:.0%}, {clause.high:.0%}{within_starts(clause.starts)}]"


MOST_STARTS, MOST_BLOCKS_A_START = 60, 8


@dataclass(frozen=True)
class Costs:
    """Seconds that a run takes: a start of every set of engines, a block of all steps, and sets that start seldom."""

    starts_s: float
    block_s: float
    seldom_s: float = 0.0
    """All starts of the sets that do not start anew as often as the others."""

    def of(self, starts: int, blocks_a_start: int) -> float:
        """Seconds of a run."""
        return starts * (self.starts_s + blocks_a_start * self.block_s) + self.seldom_s


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
    return [_need(clause, len(asked), costs) for clause in asked]


def together(asked: Sequence[Clause], costs: Costs) -> Need:
    """The cheapest run that settles every clause that any run within reason settles."""
    single = needs(asked, costs)
    wanted = [clause for clause, need in zip(asked, single, strict=True) if need.starts is not None]
    far = [(_distance(clause), *_spreads(clause.measured)) for clause in wanted]
    return _cheapest("all that can be settled", far, len(asked), costs, "")


def _need(clause: Clause, clauses: int, costs: Costs) -> Need:
    measured = clause.measured
    between, within = _spreads(measured)
    if not measured.blocks or not np.isfinite(_distance(clause)) or not np.isfinite([between, within]).all():
        return Need(clause.text, None, None, float("nan"), "this run does not tell its spread")
    known = np.isfinite(measured.between)
    assumed = "" if known else "one start alone: starts are taken to differ as much as blocks do"
    return _cheapest(clause.text, [(_distance(clause), between, within)], clauses, costs, assumed)


def _distance(clause: Clause) -> float:
    at = np.log(clause.threshold) if clause.measured.log and clause.threshold > 0 else clause.threshold
    return float(abs(clause.measured.centre - at))


def _spreads(measured: Estimate) -> tuple[float, float]:
    """(between starts, within a start), each from what the run knows: what it cannot tell apart counts as between."""
    if not np.isfinite(measured.within):
        return measured.between, 0.0
    return (measured.between if np.isfinite(measured.between) else measured.within), measured.within


def _cheapest(
    text: str, wanted: Sequence[tuple[float, float, float]], clauses: int, costs: Costs, assumed: str
) -> Need:
    """The cheapest (starts, blocks a start) for which every (distance, between, within) is far enough."""
    fits = [
        (costs.of(starts, blocks), starts, blocks)
        for starts in range(LEAST_STARTS, MOST_STARTS + 1)
        for blocks in range(1, MOST_BLOCKS_A_START + 1)
        if all(far_enough(*clause, starts, blocks, clauses) for clause in wanted)
    ]
    if not fits or not wanted:
        why = f"more than {MOST_STARTS} starts: it lies at its bound" if wanted else assumed
        return Need(text, None, None, float("nan"), why)
    seconds, starts, blocks = min(fits)
    return Need(text, starts, blocks, seconds, assumed)


def far_enough(
    distance: float, between: float, within: float, starts: int, blocks_a_start: int, clauses: int = 1
) -> bool:
    """Whether a run of so many starts and blocks settles a claim at this distance from its bound with 80 % power."""
    level, freedom = (1 - CONFIDENCE) / 2 / clauses, starts - 1
    error = np.sqrt(between**2 / starts + within**2 / (starts * blocks_a_start))
    return bool(distance >= (stats.t.ppf(1 - level, freedom) + stats.t.ppf(POWER, freedom)) * error)
