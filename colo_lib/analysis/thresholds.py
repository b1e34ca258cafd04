"""What a run is judged by: the verdict's bounds and the SLOs; and its worst stalls and latencies against the SLOs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from colo_lib.params import Params
from colo_lib.steps import STEP_IDS, mechanisms_in, names_in

SLO_COLUMNS = ["step", "what", "worst", "bound", "unit", "within", "trials", "mechanism"]


@dataclass(frozen=True)
class Thresholds:
    """By the names of the parameters that set them (docs/parameters.md): fractions, and times in ms."""

    min_gen_kept: float
    max_gap_growth: float
    min_embed_kept: float
    min_demand_met: float
    min_overlap: float
    min_profiled_ratio: float
    slo_gen_stall_ms: float
    slo_gen_ttft_ms: float
    slo_gen_gap_ms: float
    slo_embed_batch_ms: float
    slo_embed_stall_ms: float

    @classmethod
    def of(cls, params: Params) -> Thresholds:
        """Those that `params` sets."""
        return cls(**{item.name: getattr(params, item.name) for item in fields(cls)})


def judged_by(run: Params, notebook: Params) -> Thresholds:
    """Those of `run`'s parameters, with those that `notebook` sets away from their defaults."""
    asked = asdict(Thresholds.of(notebook))
    changed = {name: value for name, value in asked.items() if value != Params.model_fields[name].default}
    return replace(Thresholds.of(run), **changed)


def against_bounds(counted: pd.DataFrame, slos: Thresholds) -> pd.DataFrame:
    """A row a step and bound: the worst over its trials, the bound, the share of work within, and the count of trials.

    `within` is a fraction of requests or batches; for a stall it is the fraction of trials without a longer one.
    """
    rows = []
    mechanisms = mechanisms_in(counted)
    for step in [step for step in STEP_IDS if step in set(counted["step"])]:
        group = counted[counted["step"] == step]
        for what, column, bound, share in (
            ("LLM: longest time without a token", "gen_stall_ms", slos.slo_gen_stall_ms, None),
            ("LLM: longest time to first token", "ttft_max_ms", slos.slo_gen_ttft_ms, "requests_within"),
            ("embedder: longest time without a finished batch", "embed_stall_ms", slos.slo_embed_stall_ms, None),
            ("embedder: longest batch", "batch_max_ms", slos.slo_embed_batch_ms, "batches_within"),
        ):
            values = group[column].dropna()
            if len(values):
                within = group[share].mean() if share else (values <= bound).mean()
                rows.append((step, what, values.max(), bound, "ms", within, len(values), mechanisms.get(step)))
    return pd.DataFrame(rows, columns=SLO_COLUMNS)


def starved(bounds: pd.DataFrame) -> list[str]:
    """Sentences naming every step in which a workload went longer without progress than its bound allows."""
    stalls = bounds[bounds["what"].str.contains("without") & (bounds["worst"] > bounds["bound"])]
    names = names_in(bounds)
    return [
        f"{names[row.step]}: {row.what} {row.worst:.0f} ms, over the bound of {row.bound:.0f} ms"
        for row in stalls.itertuples()
    ]


MOST_STARTS, MOST_BLOCKS_A_START = 60, 8
