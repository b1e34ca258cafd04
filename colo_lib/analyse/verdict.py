"""The verdict on the hypothesis, clause by clause: each with its figure, interval, threshold and status.

The hypothesis holds when, at 95 % confidence, gen keeps `min_gen_kept` of its tokens/s and its p99 inter-token gap
grows by at most `max_gap_growth`, embed keeps `min_embed_kept`, step 3 is worse than step 2 for both workloads, and
a capture shows overlap, as a measurement and no upper bound. A bound missed with confidence refutes it; anything else
is inconclusive.

The clauses are judged at once: with five of them at their bounds one in nine runs would show a false status, were each
judged by itself. Holm's procedure keeps it to one in twenty. A clause is settled over starts of the engines only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analyse.estimate import LEAST_STARTS, Estimate, holm
from colo_lib.analyse.kept import RATES, ratio
from colo_lib.analyse.latency import ENOUGH_FOR_P99
from colo_lib.params import Params

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "inconclusive"
COLUMNS = ["clause", "mean", "low", "high", "threshold", "blocks", "starts", "status", "missing"]


@dataclass(frozen=True)
class Verdict:
    """`status` of the hypothesis; `clauses` has the columns of `COLUMNS`; `missing` says what would settle it."""

    status: str
    clauses: pd.DataFrame
    missing: list[str]


def judge(counted: pd.DataFrame, params: Params, stand_in: bool, overlap: Mapping[str, Any] | None = None) -> Verdict:
    """Judge the trials that count (`Measured.counted`).

    `overlap`: fraction_of_gen, basis ('residency' or 'kernel intervals') and upper_bound of step 2's capture, where
    there is one; range, least and most of the fraction as the clocks of two sessions allow; and profiled_ratio where it
    is known: gen's rate while it was captured / its rate in the unprofiled trials.
    """
    asked = clauses_asked(counted, params)
    rows = [one.row(status) for one, status in zip(asked, decide(asked), strict=True)]
    rows[1] = _enough_gaps(rows[1], counted)
    rows.append(_overlap_clause(params, stand_in, overlap))
    clauses = pd.DataFrame(rows, columns=COLUMNS)
    missing = [f"{row.clause}: {row.missing}" for row in clauses.itertuples() if row.status == OPEN]
    return Verdict(overall(list(clauses["status"])), clauses, missing)


def clauses_asked(counted: pd.DataFrame, params: Params) -> list[Clause]:
    """The clauses that trials alone can settle, with what was measured: gen's rate and gaps, embed's rate, step 3."""
    gen, embed = (ratio(counted, "step2", base, RATES[name]) for base, name in (("step1", "gen"), ("step4", "embed")))
    gap = ratio(counted, "step2", "step1", "gap_p99_ms")
    asked = [
        Clause(f"gen keeps at least {params.min_gen_kept:.0%} of its tokens/s", gen, params.min_gen_kept, True),
        Clause(f"gen's p99 inter-token gap grows by at most {params.max_gap_growth:.0%}", gap,
               1 + params.max_gap_growth, False, shift=1.0),
        Clause(f"embed keeps at least {params.min_embed_kept:.0%} of its sequences/s", embed, params.min_embed_kept,
               True),
    ]  # fmt: skip
    for workload, column in RATES.items():
        text = f"{workload} is slower in step 3 (taking turns) than in step 2 (both at once)"
        worse = ratio(counted, "step3", "step2", column)
        asked.append(Clause(text, worse, 1.0, False, need="steps 2 and 3 in the same block"))
    return asked


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
        found = self.measured
        return {
            "clause": self.text, "mean": found.mean - self.shift, "low": found.low - self.shift,
            "high": found.high - self.shift, "threshold": self.threshold - self.shift, "blocks": found.blocks,
            "starts": found.starts, "status": status, "missing": self._missing() if status == OPEN else "",
        }  # fmt: skip

    def _missing(self) -> str:
        found = self.measured
        if found.blocks == 0:
            return f"no trials that count: needs {self.need}"
        if not found.across_starts:
            count = "one start" if found.starts == 1 else f"{found.starts} starts"
            return (
                f"{count} of the engines: what another start would give is not known, so that nothing is settled; "
                f"needs {LEAST_STARTS} starts or more (parameter 'starts')"
            )
        held = found.low <= self.threshold <= found.high
        why = "the interval holds the threshold" if held else "not sure enough, among so many clauses judged at once"
        return (
            f"{why}; {found.starts} starts of this spread show a shift of {found.smallest_detectable:.2f} or more: "
            "more starts (`colo plan` tells how many)"
        )


def decide(asked: Sequence[Clause]) -> list[str]:
    """The status of every clause, all judged at once (Holm), over starts of the engines.

    A clause takes part with its better claim, of two one-sided ones that exclude each other: that its bound is kept,
    or that it is broken.
    """
    doubts = [
        tuple(one.measured.doubt(one.threshold, side) for side in (one.at_least, not one.at_least))
        if one.measured.across_starts
        else (np.nan, np.nan)
        for one in asked
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


def _overlap_clause(params: Params, stand_in: bool, overlap: Mapping[str, Any] | None) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, np.nan) | {
        "threshold": params.min_overlap,
        "blocks": 0,
        "starts": np.nan,
        "status": OPEN,
    }
    row["missing"] = ""
    row["clause"] = (
        f"a capture of step 2 shows {params.min_overlap:.0%} or more of gen's busy time overlapped, as a "
        "measurement and no upper bound"
    )
    if stand_in:
        row["missing"] = "cores stand in for a GPU here, and a CPU has no kernel trace: needs a capture from a GPU"
    elif overlap is None:
        row["missing"] = "no capture of step 2 in this run: needs an Nsight Systems capture"
    else:
        fraction = row["mean"] = float(overlap["fraction_of_gen"])
        profiled = overlap.get("profiled_ratio")
        if not 0 <= fraction <= 1:
            row["missing"] = (
                f"the capture says {fraction:.0%} of gen's busy time, which cannot be: needs a sound capture"
            )
        elif overlap.get("upper_bound", overlap.get("basis") != "residency"):
            row["missing"] = "the capture has kernel intervals only, an upper bound: needs context-switch rows"
        elif overlap.get("range") and overlap["range"][0] < params.min_overlap <= overlap["range"][1]:
            row["missing"] = (
                f"as far as the clocks of its two sessions are known, {overlap['range'][0]:.0%} to "
                f"{overlap['range'][1]:.0%} of gen's busy time: needs one session over both"
            )
        elif profiled is not None and profiled < params.min_profiled_ratio:
            row["missing"] = (
                f"gen ran at {profiled:.0%} of its rate while it was captured: what the capture shows is not what was "
                "measured; needs a lighter capture"
            )
        else:
            row["status"] = SUPPORTED if fraction >= params.min_overlap else REFUTED
    return row
