"""Modes of a GPU that rule a mechanism out, told before anything starts, with the command that leaves them."""

from __future__ import annotations

from colo_lib.errors import StepFailed
from colo_lib.gpu_look import GpuLook
from colo_lib.launch.placement import Placement

# NVML's compute modes.
EXCLUSIVE_THREAD, PROHIBITED, EXCLUSIVE_PROCESS = 1, 2, 3
# The MPS server is one process, so that EXCLUSIVE_PROCESS suits it; two plain processes need DEFAULT.
MPS_REFUSES = {EXCLUSIVE_THREAD: "EXCLUSIVE_THREAD", PROHIBITED: "PROHIBITED"}
PLAIN_REFUSES = MPS_REFUSES | {EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS"}


def device_uuids(placement: Placement, look: GpuLook, refused: dict[int, str]) -> list[str]:
    """UUIDs of the placement's GPUs, or their names as given where NVML cannot tell.

    Raises StepFailed, with the remedy, for a GPU in MIG mode or in one of the `refused` compute modes.
    """
    found = []
    for device in placement.all_devices:
        gpu = next((one for one in look.gpus if device in (str(one["index"]), one["uuid"])), None)
        if gpu is not None:
            refuse(placement.mechanism, device, gpu["mig"], gpu["compute_mode"], refused)
        found.append(str(gpu["uuid"]) if gpu is not None and gpu["uuid"] else device)
    return found


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
