"""Whether a demand can be met at all: looked at in the steps alone, before the steps together take their time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from colo_lib.errors import InputError
from colo_lib.frames import share_met
from colo_lib.params import Params
from colo_lib.paths import frame_file, trial_folder
from colo_lib.record.run_folder import trial_records
from colo_lib.records import Trial
from colo_lib.steps import ALONE, STEPS, WORKLOADS, with_id

# workload -> its frame, when a request of it was due, when it was served, its SLO
SERVED = {
    "gen": ("requests", "submitted_ns", "first_token_ns", "slo_gen_ttft_ms"),
    "embed": ("embed", "started_ns", "done_ns", "slo_embed_batch_ms"),
}


def refuse_unmet_demand(folder: Path, params: Params) -> None:
    """Raises InputError, with the figures and the remedy, where a workload alone did not meet what is asked of it.

    `folder`: the run's. What was not measured alone is not judged.
    """
    records = trial_records(folder)
    for workload, step in ALONE.items():
        alone = [record for record in records if record.step == step and record.measured and record.demand]
        for record in alone[:1]:
            share = share_served(folder, record, workload, getattr(params, SERVED[workload][3]))
            if share is not None and share < params.min_demand_met:
                raise InputError(_unmet(record, workload, params, share))


def share_served(folder: Path, record: Trial, workload: str, slo_ms: float) -> float | None:
    """Part of what was due in a trial's window that was served within `slo_ms`; None where nothing was due."""
    demand = (record.demand or {}).get(workload)
    if demand is None or record.window_start_ns is None or record.window_end_ns is None:
        return None
    frame, due, served, _ = SERVED[workload]
    table = pq.read_table(frame_file(trial_folder(folder, record.step, record.trial), frame), columns=[due, served])
    table = table.drop_null()
    due_ns, served_ns = (table[name].to_numpy().astype(np.int64) for name in (due, served))
    return share_met(due_ns, served_ns, demand.due, (record.window_start_ns, record.window_end_ns), slo_ms)


def _unmet(record: Trial, workload: str, params: Params, share: float) -> str:
    slo = SERVED[workload][3]
    did = record.embed_sequences_per_s if workload == "embed" else record.gen_tokens_per_s
    unit = "sequences/s" if workload == "embed" else "tokens/s"
    return (
        f"{workload}_rate = {getattr(params, f'{workload}_rate'):g} cannot be met even alone: in "
        f"{with_id(record.step, STEPS[record.step].name_on(params.device))}, trial {record.trial}, the "
        f"{WORKLOADS[workload]} served {share:.0%} of what was due within {slo} = {getattr(params, slo):g} ms (wanted: "
        f"min_demand_met = {params.min_demand_met:.0%}), at {did or 0:.1f} {unit}. Lower {workload}_rate, "
        f"or raise {slo}"
    )
