"""Pacing of embed: what share of the time it may work, and the closed loop that finds it from gen's inter-token gaps.

The rests themselves are taken by the embedding process (`embed_worker.Pacing`). docs/pacing.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from colo_lib.launch.placement import Placement
from colo_lib.params import Params

# Aimed at are half of the late gaps that a p99 allows, so that the p99 itself is kept with room to spare.
LATE_FRACTION = 0.005
# Late is what comes close to the SLO: a p99 that sits on its bound is past it every other time.
AIM = 0.95
# Well under LATE_FRACTION: even where every pass of embed makes a gap late, the p99 is kept. Embed's own stall bound is
# the floor that is met in practice.
LEAST_DUTY = 0.001


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


class SloController:
    """Finds the duty of embed that keeps gen's p99 inter-token gap within its SLO.

    A stochastic quantile search (Robbins and Monro, 1951) on the logarithm of the duty: every late gap halves the duty,
    every gap in time raises it by so little that it doubles after 1 / LATE_FRACTION - 1 of them. Where it stands still,
    LATE_FRACTION of the gaps are late, whatever the plant is like; and of any N engine steps at most
    LATE_FRACTION * N + log2(1 / LEAST_DUTY) are late before the duty is at its least. Nothing accumulates beyond the
    bounds of the duty, so there is nothing to unwind when the load changes.
    """

    def __init__(self, slo_gap_ms: float, concurrency: int) -> None:
        self.aim_ms = AIM * slo_gap_ms
        # One engine step gives a gap to every request in flight: they count as one.
        self.down = math.log(2) / concurrency
        self.up = self.down * LATE_FRACTION / (1 - LATE_FRACTION)
        self.log_duty = 0.0

    def update(self, gaps_ms: Sequence[float], open_ms: float = 0.0, floor: float = LEAST_DUTY) -> float:
        """The duty from now on, in [LEAST_DUTY, 1], after the gaps since the last call.

        `open_ms` is how long the slowest stream has waited for its next token: one that is overdue already holds embed
        back until the token came. `floor` is what embed's own stall bound makes it work at the least: asking for less
        than that means nothing, so late gaps do not take the duty below it.
        """
        lowest = math.log(max(floor, LEAST_DUTY))
        for gap_ms in gaps_ms:
            if gap_ms > self.aim_ms:
                self.log_duty = max(self.log_duty - self.down, min(self.log_duty, lowest))
            else:
                self.log_duty = min(0.0, self.log_duty + self.up)
        return LEAST_DUTY if open_ms > self.aim_ms else math.exp(self.log_duty)

    def late(self, gaps_ms: Sequence[float]) -> int:
        """How many of these gaps count as late."""
        return sum(gap_ms > self.aim_ms for gap_ms in gaps_ms)
