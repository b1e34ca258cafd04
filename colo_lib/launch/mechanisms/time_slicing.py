"""`time-sliced`: the driver's default, proved by the absence of MPS; steps that run one workload alone use it too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from colo_lib.errors import StepFailed
from colo_lib.hardware.nvml import look_at_gpus, mps_clients
from colo_lib.launch.mechanisms.base import PLAIN_REFUSES, EngineProcesses, Mechanism, device_uuids
from colo_lib.launch.specs import EngineSpec
from colo_lib.mechanism_records import TimeSlicedEvidence, TimeSlicedFacts
from colo_lib.placement import Placement

DEFAULT_PIPE = Path("/tmp/nvidia-mps")


class TimeSlicing(Mechanism):
    """Keeps the engines away from any MPS daemon of the machine; there is nothing to start."""

    name = "time-sliced"

    def __init__(self, placement: Placement, runtime: Path) -> None:
        self.placement = placement
        device_uuids(placement, look_at_gpus(), PLAIN_REFUSES)
        self.empty = runtime / "no-mps"
        self.empty.mkdir(mode=0o700, exist_ok=True)
        self.default_daemon = (DEFAULT_PIPE / "control").exists()

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """Where a default daemon listens, a pipe folder that nobody listens in; elsewhere nothing of MPS at all."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.empty)} if self.default_daemon else {}

    def facts(self) -> TimeSlicedFacts:
        """The empty pipe folder and the devices."""
        return TimeSlicedFacts(
            mechanism=self.name,
            proved_by="time-sliced",
            empty_pipe=str(self.empty),
            default_daemon=self.default_daemon,
            devices=list(self.placement.all_devices),
        )

    def close(self) -> None:
        """Nothing was started."""
        with suppress(OSError):
            self.empty.rmdir()


FACTS = TimeSlicedFacts


def start(spec: EngineSpec, runtime: Path, logs: Path) -> TimeSlicing:
    """Ready at once. Raises StepFailed, with the remedy, for a GPU in a mode that rules it out."""
    return TimeSlicing(spec.placement, runtime)


def prove(facts: TimeSlicedFacts, engines: EngineProcesses) -> TimeSlicedEvidence:
    """Evidence that no engine is an MPS client; raises StepFailed naming the process that is one or could be one.

    Two witnesses: the pipe folder in each process's environment, and NVML's own list of MPS clients (in words, where
    it could not be asked).
    """
    pids = [pid for trees in engines.trees().values() for tree in trees for pid in tree]
    pointed = {pid: variables for pid in pids if (variables := mps_variables(pid))}
    for pid, variables in pointed.items():
        if variables != {"CUDA_MPS_PIPE_DIRECTORY": facts.empty_pipe}:
            raise StepFailed(f"void: pid {pid} carries {variables}: it may be an MPS client, this step must have none")
    clients = mps_clients(look_at_gpus())
    attached = [] if isinstance(clients, str) else sorted(set(clients) & set(pids))
    if attached:
        raise StepFailed(
            f"void: pids {attached} are MPS clients by NVML, this step must have none: end the machine's MPS daemon "
            "(echo quit | nvidia-cuda-mps-control) or unset CUDA_MPS_PIPE_DIRECTORY"
        )
    return TimeSlicedEvidence(
        mechanism="time-sliced",
        mps_variables={str(pid): variables for pid, variables in pointed.items()},
        default_daemon=facts.default_daemon,
        mps_clients_by_nvml=clients,
        processes=len(pids),
    )


def mps_variables(pid: int) -> dict[str, str]:
    """The CUDA_MPS_* part of a process's environment; empty when it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = [os.fsdecode(word).partition("=") for word in words if word.startswith(b"CUDA_MPS_")]
    return {name: value for name, _, value in pairs}
