"""How two workloads share a GPU: each mechanism is started before the engines, proved in every trial, ended after them.

`start_mechanism` gives the owner's side; what it returns from `facts()` travels with the engines' handles, so that
any process of the run can prove with `witness` that the mechanism was in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colo_lib.launch.mechanisms.base import Mechanism, Tenants
from colo_lib.launch.placement import Placement
from colo_lib.params import Params


def start_mechanism(params: Params, placement: Placement, runtime: Path, logs: Path) -> Mechanism | None:
    """The mechanism of a placement's engines, ready for them; None where cores stand in for GPUs.

    Raises StepFailed with the remedy when it cannot be started.
    """
    if placement.device == "cpu":
        return None
    if placement.mechanism == "mps":
        from colo_lib.launch.mechanisms.mps import Mps

        return Mps(params, placement, runtime, logs)
    from colo_lib.launch.mechanisms.time_slicing import TimeSlicing

    return TimeSlicing(placement, runtime)


def witness(facts: Mapping[str, Any] | None, tenants: Tenants) -> dict[str, Any] | None:
    """Evidence that the mechanism which `facts` describe is in force for the running engines.

    Raises StepFailed, with the reason and the remedy, when it is not: the trial is void.
    """
    if facts is None:
        return None
    if facts["mechanism"] == "mps":
        from colo_lib.launch.mechanisms import mps_proof

        return mps_proof.prove(facts, tenants)
    from colo_lib.launch.mechanisms import time_slicing

    return time_slicing.prove(facts, tenants)


def check_mechanism(facts: Mapping[str, Any] | None) -> None:
    """Raises StepFailed when a process that the mechanism needs has ended; cheap enough to ask twice a second."""
    if facts is not None and facts["mechanism"] == "mps":
        from colo_lib.launch.mechanisms import mps_proof

        mps_proof.check(facts)
