"""`mig`: each workload on a MIG instance of its own. Takes the instances that exist; never makes or destroys one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.hardware.nvml import GpuLook, GpuRow, MigDevice, look_at_gpus
from colo_lib.launch.mechanisms.base import EngineProcesses, Mechanism
from colo_lib.launch.specs import EngineSpec, GenSpec
from colo_lib.mechanism_records import MigEvidence, MigFacts, MigInstance

# vLLM refuses a share of 1; what its context and graphs take lies outside it.
MOST_OF_AN_INSTANCE = 0.92
HOW_TO = (
    "to make two instances (as root, on an idle GPU): nvidia-smi -i {gpu} -mig 1; nvidia-smi mig -i {gpu} -lgip lists "
    "the profiles; nvidia-smi mig -i {gpu} -cgi PROFILE,PROFILE -C makes them; nvidia-smi mig -i {gpu} -dci, then "
    "nvidia-smi mig -i {gpu} -dgi, then nvidia-smi -i {gpu} -mig 0 undo it"
)


class Mig(Mechanism):
    """Two instances of the placement's GPU."""

    name = "mig"

    def __init__(self, spec: EngineSpec) -> None:
        self.gpu, instances = gpu_with_instances(spec.gen.devices[0], look_at_gpus())
        self.instances = select_instances(spec.gen.mechanism.instances or ("", ""), instances, spec.gen.devices[0])

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """The instance, by UUID, and nothing of MPS."""
        return {"CUDA_VISIBLE_DEVICES": self.instances[workload].uuid}

    def adjusted(self, gen: GenSpec) -> GenSpec:
        """gen gets the bytes that it has on the whole GPU, as far as its instance holds them."""
        if self.gpu.total_gib is None:
            return gen
        share = gen.gpu_memory_utilization * self.gpu.total_gib / self.instances["gen"].gib
        return replace(gen, gpu_memory_utilization=min(MOST_OF_AN_INSTANCE, round(share, 3)))

    def facts(self) -> MigFacts:
        """The instances, by workload."""
        instances = {
            name: MigInstance(uuid=instance.uuid, profile=instance.profile, gib=instance.gib, sms=instance.sms)
            for name, instance in self.instances.items()
        }
        return MigFacts(mechanism=self.name, proved_by="mig", instances=instances)


FACTS = MigFacts


def start(spec: EngineSpec, runtime: Path, logs: Path) -> Mig:
    """Ready at once: the instances are there. Raises StepSkipped, with the commands that make some, where not."""
    return Mig(spec)


def gpu_with_instances(device: str, look: GpuLook) -> tuple[GpuRow, tuple[MigDevice, ...]]:
    """A GPU and its MIG instances; raises StepSkipped, with the commands that make some, when there are not two."""
    gpu = look.find(device)
    how = HOW_TO.format(gpu=device)
    if gpu is None:
        raise StepSkipped(f"mig: GPU {device} cannot be asked: {look.reason or 'there is none of that name'}")
    if not gpu.mig:
        raise StepSkipped(f"mig: GPU {device} ({gpu.name}) is not in MIG mode; {how}")
    instances = gpu.mig_devices or ()
    if len(instances) < 2:
        raise StepSkipped(f"mig: GPU {device} has {len(instances)} MIG instances, the step needs two; {how}")
    return gpu, instances


def select_instances(uuids: tuple[str, str], instances: Sequence[MigDevice], device: str) -> dict[str, MigDevice]:
    """An instance for each workload: the one that `uuids` (gen, embed) names, else the largest that is left.

    Raises StepSkipped naming a UUID that is not among the instances.
    """
    left = sorted(instances, key=lambda instance: (-instance.gib, -instance.sms, instance.uuid))
    wanted = dict(zip(("gen", "embed"), uuids, strict=True))
    selected: dict[str, MigDevice] = {}
    for name in sorted(wanted, key=lambda name: not wanted[name]):
        match = next((instance for instance in left if wanted[name] in ("", instance.uuid)), None)
        if match is None:
            known = ", ".join(f"{instance.uuid} ({instance.profile})" for instance in instances)
            raise StepSkipped(f"mig: parameter 'mig_{name}_uuid' = {wanted[name]!r}: GPU {device} has {known}")
        left.remove(match)
        selected[name] = match
    return selected


def prove(facts: MigFacts, engines: EngineProcesses) -> MigEvidence:
    """Evidence that each workload computes on its own instance; raises StepFailed when it may be elsewhere.

    Two witnesses: the UUID in each process's environment, and NVML's list of processes of each instance.
    """
    instances = {instance.uuid: instance for gpu in look_at_gpus().gpus for instance in gpu.mig_devices or ()}
    seen: dict[str, list[int]] = {}
    for name, trees in engines.trees().items():
        uuid, pids = str(facts.instances[name].uuid), [pid for tree in trees for pid in tree]
        astray = [pid for pid in pids if visible_devices(pid) not in (uuid, None)]
        elsewhere = [
            pid for other, instance in instances.items() if other != uuid for pid in instance.pids if pid in pids
        ]
        if astray or elsewhere:
            raise StepFailed(f"void: {name} (pids {astray or elsewhere}) is not on its MIG instance {uuid} alone")
        if instances and uuid not in instances:
            raise StepFailed(f"void: the MIG instance {uuid} of {name} is gone: somebody changed the GPU's partitions")
        seen[name] = sorted(set(pids) & set(instances[uuid].pids if uuid in instances else ()))
    return MigEvidence(mechanism="mig", instances=facts.instances, listed_by_nvml=seen)


def visible_devices(pid: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of a process; None when it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")]
    except OSError:
        return None
    return next((word.partition("=")[2] for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")), "")
