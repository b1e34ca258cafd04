"""Memory that is free for a run, and whether it is at rest between two engines; all in GiB.

Free is what the machine has under its control group's limit, or what each GPU has. vLLM sizes its cache by what is free
when it starts, and stops when that grows while it looks: so nobody starts while another's memory is still being given
back, or where too little is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from colo_lib.errors import InputError, StepFailed
from colo_lib.hardware.budget import Budget, Demand, device_groups, plan_budget
from colo_lib.hardware.nvml import GpuLook, look_at_gpus
from colo_lib.models.catalog import GIB

CGROUP_ROOT = Path("/sys/fs/cgroup")
STILL_GIB = 0.05
STILL_READINGS = 3
POLL_S = 0.5
SETTLE_TIMEOUT_S = 60.0
Read = Callable[[], Mapping[str, float] | None]


@dataclass(frozen=True)
class GroupMemory:
    """Free and whole memory of one device group, GiB."""

    free_gib: float
    total_gib: float


def host_memory(cgroup_root: Path = CGROUP_ROOT, control_group: str | None = None) -> GroupMemory:
    """Memory of this machine that a new process may use; a container's limit counts where it is the smaller one."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for folder in _cgroup_folders(cgroup_root, control_group):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None or used is None:
            continue
        # Page cache counts as used and is given back under pressure.
        used -= min(used, _statistic(folder / "memory.stat", "inactive_file"))
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return GroupMemory(free / GIB, total / GIB)


def _cgroup_folders(root: Path, control_group: str | None) -> list[Path]:
    """This process's control group (version 2) and those above it, innermost first."""
    if control_group is None:
        try:
            lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            lines = []
        control_group = next((line[3:] for line in lines if line.startswith("0::/")), "/")
    folder = root / control_group.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None


def _statistic(file: Path, name: str) -> int:
    try:
        rows = (line.split() for line in file.read_text(encoding="ascii").splitlines())
        return next((int(row[1]) for row in rows if row[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0


def group_memory(device: str, devices: Sequence[str], gpus: GpuLook | None = None) -> dict[str, GroupMemory]:
    """Memory of each device group; raises InputError when a GPU that `devices` names is not there."""
    if device == "cpu":
        return {group: host_memory() for group in device_groups(device, devices)}
    gpus = gpus or look_at_gpus()
    if gpus.state != "ok":
        raise InputError(f"device: cuda needs an NVIDIA GPU, and there is none to be seen: {gpus.reason}")
    return {name: _gpu_memory(name, gpus) for name in devices}


def _gpu_memory(device: str, gpus: GpuLook) -> GroupMemory:
    for gpu in gpus.gpus:
        if gpu.is_named(device):
            if gpu.free_gib is None or gpu.total_gib is None:
                raise InputError(f"GPU {device}: NVML would not tell its memory")
            return GroupMemory(gpu.free_gib, gpu.total_gib)
    known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus.gpus)
    raise InputError(f"devices: no GPU {device!r} here; there are {known}")


def budget_here(demand: Demand, gpus: GpuLook | None = None) -> Budget:
    """The budget of a run against what is free on this machine right now; raises InputError as its parts do."""
    memory = group_memory(demand.device, demand.devices, gpus)
    free = {group: held.free_gib for group, held in memory.items()}
    total = {group: held.total_gib for group, held in memory.items()}
    return plan_budget(demand, free, total)


def used_gib(devices: tuple[str, ...]) -> dict[str, float] | None:
    """Memory in use on each GPU, GiB; None where NVML does not tell."""
    look = look_at_gpus()
    used: dict[str, float] = {}
    for gpu in look.gpus:
        for name in filter(gpu.is_named, devices):
            if gpu.total_gib is None or gpu.free_gib is None:
                return None
            used[name] = gpu.total_gib - gpu.free_gib
    return used or None


def wait_still(read: Read, timeout_s: float = SETTLE_TIMEOUT_S, poll_s: float = POLL_S) -> Mapping[str, float] | None:
    """Until `STILL_READINGS` readings in a row differ by no more than `STILL_GIB`; the last, None where none is told.

    Raises StepFailed naming the GPU whose memory is still moving when the time is over.
    """
    deadline, readings = time.monotonic() + timeout_s, list[Mapping[str, float]]()
    while True:
        now = read()
        if now is None:
            return None
        readings = [*readings[1 - STILL_READINGS :], now]
        moving = [name for name in now if _spread(readings, name) > STILL_GIB]
        if len(readings) == STILL_READINGS and not moving:
            return now
        if time.monotonic() > deadline:
            raise StepFailed(
                f"memory of GPU {', '.join(moving or now)} still moves after {timeout_s:g} s: somebody else loads or "
                "ends a model there; wait for it, or choose another GPU in devices"
            )
        time.sleep(poll_s)


def _spread(readings: list[Mapping[str, float]], name: str) -> float:
    values = [reading.get(name, 0.0) for reading in readings]
    return max(values) - min(values)


def check_room(needed_gib: Mapping[str, float]) -> None:
    """Raises StepFailed, with the numbers, when a GPU has no longer room for what the run puts there."""
    look = look_at_gpus()
    for device, needed in needed_gib.items():
        try:
            free = _gpu_memory(device, look).free_gib
        except InputError as error:
            raise StepFailed(str(error)) from None
        if needed > free:
            raise StepFailed(
                f"GPU {device} has {free:.1f} GiB free, the run needs {needed:.1f} GiB there.\n"
                "Somebody else holds it (nvidia-smi says who), or a process of an earlier trial hangs in the driver: "
                "then only a restart of the host helps"
            )


def before_engines(devices: tuple[str, ...], needed_gib: Mapping[str, float]) -> None:
    """Wait until the GPUs' memory is still, then see that there is room."""
    wait_still(lambda: used_gib(devices))
    check_room(needed_gib)
