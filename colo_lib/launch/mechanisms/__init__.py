"""How two workloads share a GPU: each mechanism is started before the engines, proved in every trial, ended after them.

`start_mechanism` gives the owner's side; what it returns from `facts()` travels with the engines' handles, so that
any process of the run can prove with `verify` that the mechanism was in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from colo_lib.errors import StepSkipped
from colo_lib.launch.mechanisms.base import EngineProcesses, Mechanism
from colo_lib.launch.specs import EngineSpec
from colo_lib.mechanism_records import Evidence, MechanismFacts
from colo_lib.steps import MECHANISMS


def start_mechanism(spec: EngineSpec, runtime: Path, logs: Path) -> Mechanism | None:
    """The mechanism of a placement's engines, ready for them; None where cores stand in for GPUs.

    Raises StepFailed with the remedy when it cannot be started, StepSkipped when the machine does not offer it.
    """
    placement = spec.placement
    if placement.device == "cpu" and not MECHANISMS[placement.mechanism].in_gen:
        if MECHANISMS[placement.mechanism].may_be_absent:
            raise StepSkipped(f"{placement.mechanism}: cores stand in for GPUs here, and a core has no such thing")
        return None
    mechanism: Mechanism = module_of(placement.mechanism).start(spec, runtime, logs)
    return mechanism


def mechanism_facts(plain: Mapping[str, Any]) -> MechanismFacts:
    """A mechanism's facts as they were before they became plain values."""
    kind: type[MechanismFacts] = module_of(plain["proved_by"]).FACTS
    return kind.model_validate(plain)


def verify(facts: MechanismFacts | None, engines: EngineProcesses) -> Evidence | None:
    """Evidence that the mechanism which `facts` describe is in force for the running engines.

    Raises StepFailed, with the reason and the remedy, when it is not: the trial is void.
    """
    if facts is None:
        return None
    evidence: Evidence = module_of(facts.proved_by).prove(facts, engines)
    return evidence


def check_mechanism(facts: MechanismFacts | None) -> None:
    """Raises StepFailed when a process that the mechanism needs has ended; cheap enough to ask twice a second."""
    check = None if facts is None else getattr(module_of(facts.proved_by), "check_server", None)
    if check is not None:
        check(facts)


def module_of(mechanism: str) -> ModuleType:
    """The module that `steps.MECHANISMS` names: `start(spec, runtime, logs)` and, for a proof of its own,
    `FACTS` (the kind of facts that it takes), `prove(facts, engines)` and, where a process has to live,
    `check_server(facts)`.
    """
    return import_module(f"{__name__}.{MECHANISMS[mechanism].module}")
