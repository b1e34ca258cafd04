"""What every mechanism builds on: its owner's side, what a proof is told, and what rules it out beforehand.

A mode of a GPU that rules a mechanism out is told before anything starts, with the command that leaves it. A first
client, `cuda_probe`, runs under an engine's environment: what fails there would fail in the engine, later and less
clearly.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.hardware.nvml import GpuLook
from colo_lib.launch.child import Child
from colo_lib.launch.specs import EngineSpec, GenSpec
from colo_lib.mechanism_records import MechanismFacts
from colo_lib.placement import Placement

# A process's start time is read in clock ticks: two readings of the same process differ by less than this.
SAME_START_S = 0.5
# NVML's compute modes.
EXCLUSIVE_THREAD, PROHIBITED, EXCLUSIVE_PROCESS = 1, 2, 3
# The MPS server is one process, so that EXCLUSIVE_PROCESS suits it; two plain processes need DEFAULT.
MPS_REFUSES = {EXCLUSIVE_THREAD: "EXCLUSIVE_THREAD", PROHIBITED: "PROHIBITED"}
PLAIN_REFUSES = MPS_REFUSES | {EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS"}
PROBE = Path(__file__).with_name("cuda_probe.py")
PROBE_TIMEOUT_S = 60.0
# What a client's CUDA error means for the one who reads it (CUDA driver API, cudaError_enum).
REMEDIES = {
    3: "the driver is not usable here: look at nvidia-smi",
    46: "another process holds the GPU exclusively: nvidia-smi -c DEFAULT, or end it",
    100: "no GPU is visible: see devices, and CUDA_VISIBLE_DEVICES of this shell",
    101: "a name in devices is no GPU here",
    805: "the MPS daemon did not answer this client: run all as one user, in one container",
    806: "an earlier client's fault is still being cleared: end every process on the GPU, then run again",
    807: "the MPS server is not ready: another process holds the GPU exclusively, or a fault is still being cleared",
    808: "the MPS server has no room for a further client: end other clients",
    809: "the MPS server has no room for a further connection: end other clients",
    810: "the MPS server ended this client: an earlier client faulted",
}


@dataclass(frozen=True)
class EngineProcesses:
    """The engines' processes: root pids by workload, and on how many GPUs each root computes."""

    pids: Mapping[str, Sequence[int]]
    gpus_each: Mapping[str, int]

    def trees(self) -> dict[str, list[list[int]]]:
        """Living pids of each root's tree, the root first, by workload."""
        return {name: [process_tree(root) for root in roots] for name, roots in self.pids.items()}


class Mechanism:
    """The owner's side: exists from before the engines start until after they have ended."""

    name: str

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """Additions to the environment of the `number`-th process of a workload."""
        raise NotImplementedError

    def facts(self) -> MechanismFacts:
        """Values from which any process of the run can prove that the mechanism is in force.

        `mechanism` is its name, `proved_by` the proof that applies (`mps`, `time-sliced`, `mig`).
        """
        raise NotImplementedError

    def adjusted(self, gen: GenSpec) -> GenSpec:
        """What gen's server is started with."""
        return gen

    def change(self, spec: EngineSpec) -> None:
        """Take other limits for the embedding processes that are started next; those that run keep theirs.

        Raises StepFailed when they cannot be had.
        """

    def embed_job(self) -> dict[str, Any]:
        """Additions to the embedding process's job."""
        return {}

    def close(self) -> None:
        """End it; nothing of it lives or lies about afterwards. Raises StepFailed for what even SIGKILL leaves."""


def process_tree(root: int) -> list[int]:
    """Pids of a process and everything below it; empty when it is gone."""
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def identity(pid: int) -> list[float] | None:
    """[pid, start time]: names a process once and for all, also after its pid was given to another; None when gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return [pid, process.create_time()]
    except psutil.NoSuchProcess:
        return None


def lives(who: Sequence[float]) -> bool:
    """Whether the process that `identity` named still runs."""
    now = identity(int(who[0]))
    return now is not None and abs(now[1] - who[1]) < SAME_START_S


def device_uuids(placement: Placement, look: GpuLook, refused: dict[int, str]) -> list[str]:
    """UUIDs of the placement's GPUs, or their names as given where NVML cannot tell.

    Raises StepFailed, with the remedy, for a GPU in MIG mode or in one of the `refused` compute modes.
    """
    uuids = []
    for device in placement.all_devices:
        gpu = look.find(device)
        if gpu is not None:
            refuse(placement.mechanism, device, gpu.mig, gpu.compute_mode, refused)
        uuids.append(gpu.uuid if gpu is not None and gpu.uuid else device)
    return uuids


def refuse(mechanism: str, device: str, mig: bool | None, mode: int | None, refused: dict[int, str]) -> None:
    """Raises StepFailed naming the mode that is in the way."""
    if mig:
        raise StepFailed(
            f"{mechanism}: GPU {device} is in MIG mode, in which nothing has the GPU as a whole: run the step mig "
            f"instead, or leave MIG mode (nvidia-smi -i {device} -mig 0)"
        )
    if mode in refused:
        raise StepFailed(
            f"{mechanism}: GPU {device} is in compute mode {refused[mode]}, which does not admit both workloads: "
            f"nvidia-smi -i {device} -c DEFAULT"
        )


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU as a client's process sees it: its name, and how many of its SMs."""

    name: str
    sms: int


def probe(
    name: str, python: Path, env: Mapping[str, str], log: Path, timeout_s: float = PROBE_TIMEOUT_S
) -> list[VisibleGpu]:
    """The GPUs that a client with this environment gets; raises StepFailed with the cause."""
    child = Child(f"{name} probe", [str(python), "-I", str(PROBE)], log, env=child_environment(env), grace_s=1.0)
    try:
        deadline = time.monotonic() + timeout_s
        while child.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.running():
            raise StepFailed(
                f"{name}: a first CUDA client got no context within {timeout_s:g} s: it waits for the server, which "
                "drains another user's clients or cannot start; run all as one user"
            )
    finally:
        child.stop()
    return probed_gpus(name, log)


def probed_gpus(name: str, log: Path) -> list[VisibleGpu]:
    """The probe's GPUs from its output; raises StepFailed for an error, with the remedy, or for anything else."""
    said = log.read_text(errors="replace").strip().splitlines()
    try:
        reply = json.loads(said[-1])
    except (IndexError, ValueError):
        raise StepFailed(f"{name}: the first CUDA client ended without an answer: {' '.join(said[-3:])}") from None
    if "error" in reply:
        remedy = REMEDIES.get(reply["error"], "look at nvidia-smi")
        cause = f"{reply['at']} with {reply['name']} ({reply['error']})"
        raise StepFailed(f"{name}: a first CUDA client failed in {cause}: {remedy}")
    return [VisibleGpu(**gpu) for gpu in reply["gpus"]]
