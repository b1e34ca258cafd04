"""How two workloads share a GPU: each mechanism is started before the engines, proved in every trial, ended after them.

`start_mechanism` gives the owner's side; what it returns from `facts()` travels with the engines' handles, so that
any process of the run can prove with `verify` that the mechanism was in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colo_lib.errors import StepSkipped
from colo_lib.launch.mechanisms.base import EngineProcesses, Mechanism
from colo_lib.mechanism_records import Evidence, MechanismFacts, MigFacts, MpsFacts, TimeSlicedFacts
from colo_lib.params import Params
from colo_lib.steps import Placement

# What travels with the engines' handles, by the proof that applies.
FACTS: dict[str, type[MechanismFacts]] = {"mps": MpsFacts, "mig": MigFacts, "time-sliced": TimeSlicedFacts}


def start_mechanism(params: Params, placement: Placement, runtime: Path, logs: Path) -> Mechanism | None:
    """The mechanism of a placement's engines, ready for them; None where cores stand in for GPUs.

    Raises StepFailed with the remedy when it cannot be started, StepSkipped when the machine does not offer it.
    """
    if placement.device == "cpu":
        if placement.mechanism in ("mig", "sm-partition"):
            raise StepSkipped(f"{placement.mechanism}: cores stand in for GPUs here, and a core has no such thing")
        return None
    if placement.mechanism == "mps":
        from colo_lib.launch.mechanisms.mps import Mps

        return Mps(params, placement, runtime, logs)
    if placement.mechanism == "mig":
        from colo_lib.launch.mechanisms.mig import Mig

        return Mig(params, placement)
    if placement.mechanism == "sm-partition":
        from colo_lib.launch.mechanisms.sm_partition import start_partition

        return start_partition(params, placement, runtime, logs)
    from colo_lib.launch.mechanisms.time_slicing import TimeSlicing

    return TimeSlicing(placement, runtime)


def facts_of(told: Mapping[str, Any]) -> MechanismFacts:
    """A mechanism's facts as they were before they became plain values."""
    return FACTS[told["witness"]].model_validate(told)


def verify(facts: MechanismFacts | None, tenants: EngineProcesses) -> Evidence | None:
    """Evidence that the mechanism which `facts` describe is in force for the running engines.

    Raises StepFailed, with the reason and the remedy, when it is not: the trial is void.
    """
    if facts is None:
        return None
    from colo_lib.launch.mechanisms import mig, mps, time_slicing

    if isinstance(facts, MpsFacts):
        return mps.prove(facts, tenants)
    if isinstance(facts, MigFacts):
        return mig.prove(facts, tenants)
    assert isinstance(facts, TimeSlicedFacts)
    return time_slicing.prove(facts, tenants)


def check_mechanism(facts: MechanismFacts | None) -> None:
    """Raises StepFailed when a process that the mechanism needs has ended; cheap enough to ask twice a second."""
    if isinstance(facts, MpsFacts):
        from colo_lib.launch.mechanisms import mps

        mps.check_server(facts)
