"""What the run found beside the hypothesis: does sharing pay, and do both workloads keep their bounds."""

from __future__ import annotations

from typing import Any

import pandas as pd

from colo_lib.analyse.estimate import sides_of_one
from colo_lib.analyse.steps_table import within_starts
from colo_lib.analyse.verdict import OPEN, REFUTED, SUPPORTED, Verdict
from colo_lib.params import Params
from colo_lib.schema import CO_LOCATED, STEP_TITLES

SLO_COLUMNS = ["step", "what", "worst", "bound", "unit", "within", "trials"]


def pays(kept: pd.DataFrame) -> pd.DataFrame:
    """step, mean, low, high, blocks, starts, answer: does a shared step do more work a device than dedicated ones?

    Dedicated devices are 1.0 per device by definition. All steps are judged at once, over starts of the engines.
    """
    rows = kept[(kept["quantity"] == "aggregate_per_device") & kept["step"].isin(CO_LOCATED)].copy()
    sides = sides_of_one(list(rows["doubt_more"]), list(rows["doubt_less"]))
    rows["answer"] = [side if side == "not settled" else f"{side} than dedicated" for side in sides]
    return rows[["step", "mean", "low", "high", "blocks", "starts", "answer"]].reset_index(drop=True)


def headline(verdict: Verdict, paying: pd.DataFrame) -> str:
    """The verdict, the clauses that fail with their figures, and step 2's work per device with its interval."""
    told = {
        SUPPORTED: "The hypothesis holds in this run.",
        REFUTED: "The hypothesis does not hold in this run.",
        OPEN: "This run does not settle the hypothesis.",
    }[verdict.status]
    counts = verdict.clauses["status"].value_counts()
    split = ", ".join(f"{counts.get(status, 0)} {status}" for status in (SUPPORTED, REFUTED, OPEN))
    parts = [f"{told} Its {len(verdict.clauses)} clauses: {split}."]
    refuted = verdict.clauses[verdict.clauses["status"] == REFUTED]
    if len(refuted):
        parts.append("What fails: " + "; ".join(f"{row.clause} ({_figure(row)})" for row in refuted.itertuples()) + ".")
    for row in paying[paying["step"] != "step3"].itertuples():
        title, mean = STEP_TITLES[row.step].capitalize(), f"{row.mean:.2f} devices' worth of work per device"
        interval = f"95 % interval {row.low:.2f} to {row.high:.2f}" if row.low == row.low else "no interval"
        interval += within_starts(row.starts)
        parts.append(f"{title}: {mean} ({interval}, {row.blocks} blocks); dedicated is 1.")
    return " ".join(parts)


def _figure(clause: Any) -> str:
    """A clause's figure as a percentage: its words say of what."""
    if clause.low != clause.low:
        return f"measured {clause.mean:.0%}"
    return f"measured {clause.mean:.0%} [{clause.low:.0%}, {clause.high:.0%}{within_starts(clause.starts)}]"


def against_bounds(counted: pd.DataFrame, params: Params) -> pd.DataFrame:
    """A row a step and bound: the worst over its trials, the bound, the share of work within, and the count of trials.

    `within` is a fraction of requests or batches; for a stall it is the fraction of trials without a longer one.
    """
    rows = []
    for step in [step for step in STEP_TITLES if step in set(counted["step"])]:
        group = counted[counted["step"] == step]
        for what, column, bound, share in (
            ("gen: longest time without a token", "gen_stall_ms", params.slo_gen_stall_ms, None),
            ("gen: longest time to first token", "ttft_max_ms", params.slo_gen_ttft_ms, "requests_within"),
            ("embed: longest time without a finished batch", "embed_stall_ms", params.slo_embed_stall_ms, None),
            ("embed: longest batch", "batch_max_ms", params.slo_embed_batch_ms, "batches_within"),
        ):
            values = group[column].dropna()
            if len(values):
                within = group[share].mean() if share else (values <= bound).mean()
                rows.append((step, what, values.max(), bound, "ms", within, len(values)))
    return pd.DataFrame(rows, columns=SLO_COLUMNS)


def starved(bounds: pd.DataFrame) -> list[str]:
    """Sentences naming every step in which a workload went longer without progress than its bound allows."""
    stalls = bounds[bounds["what"].str.contains("without") & (bounds["worst"] > bounds["bound"])]
    return [
        f"{row.step}: {row.what} {row.worst:.0f} ms, over the bound of {row.bound:.0f} ms"
        for row in stalls.itertuples()
    ]


def disagreements(trials: pd.DataFrame, tolerance: float = 0.001) -> list[str]:
    """Sentences naming every trial whose recorded rate is off the one that its frames give by over `tolerance`."""
    told = []
    for workload, unit in (("gen", "tokens_per_s"), ("embed", "sequences_per_s")):
        recorded, computed = trials[f"recorded_{workload}_{unit}"], trials[f"{workload}_{unit}"]
        off = (recorded / computed - 1).abs() > tolerance
        # Records of the first runs count whole tokens and batches.
        whole = trials["gen_tokens" if workload == "gen" else "embed_sequences"]
        seconds = (trials["window_end_ns"] - trials["window_start_ns"]) / 1e9
        off &= (recorded * seconds / whole - 1).abs() > tolerance
        told += [
            f"{row.step}, trial {row.trial}: its record says {recorded[row.Index]:.4g} {unit.replace('_per_', '/')} of "
            f"{workload}, its rows give {computed[row.Index]:.4g}; the rows are used"
            for row in trials[off].itertuples()
        ]
    return told


def unsteady(null: dict[str, float]) -> list[str]:
    """A sentence if step 1 against itself (`kept.null_check`) does not hold 1: then noise is not all that differs."""
    if not (null["low"] > 1 or null["high"] < 1):
        return []
    return [
        f"step 1 in odd blocks over step 1 in even blocks is {null['ratio']:.3f} (95 % interval {null['low']:.3f} to "
        f"{null['high']:.3f}), not 1: the run drifted or the order mattered, so its intervals may be too narrow"
    ]
