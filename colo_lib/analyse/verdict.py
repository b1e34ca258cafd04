"""The verdict on the hypothesis, clause by clause: each with its figure, interval, threshold and status.

The hypothesis holds when, at 95 % confidence, gen keeps `min_gen_kept` of its tokens/s and its p99 inter-token gap
grows by at most `max_gap_growth`, embed keeps `min_embed_kept`, step 3 is worse than step 2 for both workloads, and
a capture shows overlap by residency. A bound missed with confidence refutes it; anything else is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analyse.estimate import Estimate, estimate
from colo_lib.analyse.kept import RATES, paired
from colo_lib.analyse.latency import ENOUGH_FOR_P99
from colo_lib.params import Params

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "inconclusive"
COLUMNS = ["clause", "mean", "low", "high", "threshold", "blocks", "status", "missing"]


@dataclass(frozen=True)
class Verdict:
    """`status` of the hypothesis; `clauses` has the columns of `COLUMNS`; `missing` says what would settle it."""

    status: str
    clauses: pd.DataFrame
    missing: list[str]


def judge(counted: pd.DataFrame, params: Params, stand_in: bool, overlap: Mapping[str, Any] | None = None) -> Verdict:
    """Judge the trials that count (`Measured.counted`).

    `overlap`: fraction_of_gen and basis ('residency' or 'kernel intervals') of step 2's capture, where there is one,
    and profiled_ratio where it is known: gen's rate while it was captured / its rate in the unprofiled trials.
    """
    seed = params.seed
    gen = estimate(paired(counted, "step2", "step1", RATES["gen"]).to_numpy(), seed)
    embed = estimate(paired(counted, "step2", "step4", RATES["embed"]).to_numpy(), seed)
    rows = [
        _clause(f"gen keeps at least {params.min_gen_kept:.0%} of its tokens/s", gen, params.min_gen_kept, True),
        _gap_clause(counted, params),
        _clause(
            f"embed keeps at least {params.min_embed_kept:.0%} of its sequences/s", embed, params.min_embed_kept, True
        ),
    ]
    for workload, column in RATES.items():
        worse = estimate(paired(counted, "step3", "step2", column).to_numpy(), seed)
        text = f"{workload} is slower in step 3 (taking turns) than in step 2 (both at once)"
        rows.append(_clause(text, worse, 1.0, False, need="steps 2 and 3 in the same block"))
    rows.append(_overlap_clause(params, stand_in, overlap))
    clauses = pd.DataFrame(rows, columns=COLUMNS)
    missing = [f"{row.clause}: {row.missing}" for row in clauses.itertuples() if row.status == OPEN]
    return Verdict(overall(list(clauses["status"])), clauses, missing)


def overall(statuses: list[str]) -> str:
    """supported if every clause is; not supported if any is not; inconclusive otherwise."""
    if REFUTED in statuses:
        return REFUTED
    return SUPPORTED if statuses and all(status == SUPPORTED for status in statuses) else OPEN


def decide(measured: Estimate, threshold: float, at_least: bool) -> str:
    """Whether the whole interval lies on one side of `threshold`; inconclusive without an interval."""
    if not np.isfinite([measured.low, measured.high]).all():
        return OPEN
    if at_least:
        return SUPPORTED if measured.low >= threshold else REFUTED if measured.high < threshold else OPEN
    return SUPPORTED if measured.high <= threshold else REFUTED if measured.low > threshold else OPEN


def _clause(
    text: str,
    measured: Estimate,
    threshold: float,
    at_least: bool,
    need: str = "the step and its baseline in the same block",
) -> dict[str, Any]:
    status = decide(measured, threshold, at_least)
    missing = ""
    if measured.blocks == 0:
        missing = f"no trials that count: needs {need}"
    elif measured.blocks == 1:
        missing = "one block only: no verdict from one trial"
    elif status == OPEN:
        missing = (
            f"the interval holds the threshold; {measured.blocks} blocks of this spread show a shift of "
            f"{measured.smallest_detectable:.2f} or more: more blocks or longer windows"
        )
    return {
        "clause": text,
        "mean": measured.mean,
        "low": measured.low,
        "high": measured.high,
        "threshold": threshold,
        "blocks": measured.blocks,
        "status": status,
        "missing": missing,
    }


def _gap_clause(counted: pd.DataFrame, params: Params) -> dict[str, Any]:
    growth = estimate(paired(counted, "step2", "step1", "gap_p99_ms").to_numpy() - 1, params.seed, least=-1.0)
    row = _clause(
        f"gen's p99 inter-token gap grows by at most {params.max_gap_growth:.0%}", growth, params.max_gap_growth, False
    )
    events = min(counted.loc[counted["step"] == step, "gap_count"].sum() for step in ("step1", "step2"))
    # Few events make a p99 little more than the largest gap: that may refute, never support.
    if row["status"] == SUPPORTED and events < ENOUGH_FOR_P99:
        row |= {"status": OPEN, "missing": f"a p99 needs {ENOUGH_FOR_P99} gaps in each step, there are {events:.0f}"}
    return row


def _overlap_clause(params: Params, stand_in: bool, overlap: Mapping[str, Any] | None) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, np.nan) | {"threshold": params.min_overlap, "blocks": 0, "status": OPEN, "missing": ""}
    row["clause"] = (
        f"a capture of step 2 shows {params.min_overlap:.0%} or more of gen's busy time overlapped, by residency"
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
        elif overlap.get("basis") != "residency":
            row["missing"] = "the capture has kernel intervals only, an upper bound: needs context-switch rows"
        elif profiled is not None and profiled < params.min_profiled_ratio:
            row["missing"] = (
                f"gen ran at {profiled:.0%} of its rate while it was captured: what the capture shows is not what was "
                "measured; needs a lighter capture"
            )
        else:
            row["status"] = SUPPORTED if fraction >= params.min_overlap else REFUTED
    return row
