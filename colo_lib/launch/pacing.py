"""Pacing of embed: what share of the time it may work, and the closed loop that finds it from gen's inter-token gaps.

The rests themselves are taken by the embedding process (`embed_worker.Pacing`). docs/pacing.md has the equations.
"""

from __future__ import annotations

from typing import Any

from colo_lib.launch.placement import Placement
from colo_lib.params import Params


def start_order(params: Params, placement: Placement) -> dict[str, Any]:
    """What a trial tells the embedding process when it begins: how to pace itself.

    Pacing is a lever of sharing: an embed that shares nothing is the baseline, and runs flat out in whole batches.
    """
    if not shares(placement):
        return {"duty": 1.0, "micro_batch_size": 0, "stall_s": 0.0}
    duty = params.embed_duty if params.embed_pacing == "duty" else 1.0
    stall_s = params.slo_embed_stall_ms / 1e3 if params.embed_pacing != "none" else 0.0
    return {"duty": duty, "micro_batch_size": params.embed_micro_batch_size, "stall_s": stall_s}


def shares(placement: Placement) -> bool:
    """Whether both workloads run on the same devices."""
    return placement.runs_gen and placement.runs_embed and placement.mechanism != "none"


def pacing_record(params: Params, placement: Placement) -> dict[str, Any]:
    """The trial record's `pacing`: how embed was held back, if at all."""
    if not shares(placement):
        return {"kind": "none", "micro_batch_size": 0}
    told: dict[str, Any] = {"kind": params.embed_pacing, "micro_batch_size": params.embed_micro_batch_size}
    return told | ({"duty": params.embed_duty} if params.embed_pacing == "duty" else {})
