"""How much embedding is nearly free: a sweep over the demand made of the embedder, and what it costs the LLM.

A demand is nearly free where the LLM surely keeps what it must of its rate, its p99 inter-token gap surely grows no
more than it may, and surely enough of the demand is met within its SLO: each at 95 % confidence, over starts of the
engines, all demands judged at once (Holm).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import holm, with_interval
from colo_lib.analysis.sweep import SweepMeasures
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.steps import CO_LOCATED_ON_ONE, names_in

RATE = "embed_rate"
MEASURES = {"gen": "gen_kept", "gap": "gap_p99_ratio", "met": "embed_demand_met", "latency": "batch_p99_ms"}
COLUMNS = [
    "cell", "step", "mechanism", "rate", "starts",
    *(f"{name}_{what}" for name in MEASURES for what in ("mean", "low", "high")), "free", "holds",
]  # fmt: skip


def demands(measures: SweepMeasures, bounds: Thresholds) -> pd.DataFrame:
    """A row a shared step and demand, in the order of both: `COLUMNS`; nulls where something was not measured.

    free: surely nearly free. holds: its means are within all three bounds, sure or not.
    """
    rows = []
    for step in [name for name in CO_LOCATED_ON_ONE if name in set(measures.values["step"])]:
        by_measure = {name: measures.of(step, measure).set_index("cell") for name, measure in MEASURES.items()}
        mine = [
            _row(step, str(cell), by_measure, bounds)
            for cell in measures.cells.sort_values(RATE, kind="stable")["cell"]
            if cell in by_measure["gen"].index
        ]
        sure = holm([row.pop("doubt") for row in mine])
        rows += [row | {"free": free} for row, free in zip(mine, sure, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(step: str, cell: str, by_measure: dict[str, pd.DataFrame], bounds: Thresholds) -> dict[str, Any]:
    kept = by_measure["gen"].loc[cell]
    row: dict[str, Any] = {
        "cell": cell, "step": step, "mechanism": kept["mechanism"], "rate": float(kept[RATE]), "starts": kept["starts"]
    }  # fmt: skip
    doubts, within = [], []
    for name, bound, at_least in (
        ("gen", bounds.min_gen_kept, True),
        ("gap", 1 + bounds.max_gap_growth, False),
        ("met", bounds.min_demand_met, True),
    ):
        there = cell in by_measure[name].index
        made = by_measure[name].loc[cell, "estimate"] if there else None
        doubts.append(made.doubt(bound, at_least) if made is not None and made.across_starts else np.nan)
        within.append(made is not None and (made.mean >= bound if at_least else made.mean <= bound))
    for name, frame in by_measure.items():
        there = cell in frame.index
        row |= {f"{name}_{what}": frame.loc[cell, what] if there else np.nan for what in ("mean", "low", "high")}
    # All three at once are as doubtful as the most doubtful of them.
    return row | {"holds": all(within), "doubt": float(np.max(doubts))}


def free_demand(measures: SweepMeasures, bounds: Thresholds) -> str:
    """Up to which demand embedding is nearly free, and what the largest one that is met costs the LLM."""
    table, names = demands(measures, bounds), names_in(measures.values)
    sentences = [_step_sentence(names[str(step)], rows, bounds) for step, rows in table.groupby("step", sort=False)]
    refused = measures.cells[measures.cells["status"] == "refused"].sort_values(RATE)
    if len(refused):
        rates = ", ".join(f"{rate:g}" for rate in refused[RATE])
        sentences.append(f"{rates} sequences/s could not be had even alone, and were not asked for beside the LLM.")
    return " ".join(sentences) or "No demand was measured beside the LLM: nothing can be said."


def _step_sentence(name: str, rows: pd.DataFrame, bounds: Thresholds) -> str:
    free, holds = rows[rows["free"]], rows[rows["holds"]]
    head = f"{name[0].upper()}{name[1:]}: "
    if len(free):
        head += f"up to {free['rate'].max():g} sequences/s embedding is nearly free"
    elif len(holds):
        head += f"no demand is surely nearly free; by the means alone up to {holds['rate'].max():g} sequences/s are"
    else:
        head += "no demand that was measured is nearly free"
    met = rows[rows["met_mean"] >= bounds.min_demand_met]
    if met.empty:
        return f"{head}; none was met within its SLO."
    most = met.loc[met["rate"].idxmax()]
    kept = with_interval(most["gen_mean"], most["gen_low"], most["gen_high"], most["starts"])
    gap = with_interval(most["gap_mean"], most["gap_low"], most["gap_high"], most["starts"])
    return (
        f"{head}; at {most['rate']:g}, the most that is met within its SLO, the LLM keeps {kept} of its tokens/s and "
        f"its p99 inter-token gap is {gap} times that alone."
    )
