"""How much memory is free for a run, GiB: of the machine under its control group's limit, or of each GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from colo_lib.architecture import GIB
from colo_lib.budget import Budget, device_groups, plan_budget
from colo_lib.errors import InputError
from colo_lib.gpu_look import GpuLook, look_at_gpus
from colo_lib.params import Params, split_list

CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Free and whole memory of one device group, GiB."""

    free_gib: float
    total_gib: float


def host_memory(cgroup_root: Path = CGROUP_ROOT, own_group: str | None = None) -> Memory:
    """Memory of this machine that a new process may use; a container's limit counts where it is the smaller one."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for folder in _cgroup_folders(cgroup_root, own_group):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None or used is None:
            continue
        # Page cache counts as used and is given back under pressure.
        used -= min(used, _statistic(folder / "memory.stat", "inactive_file"))
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return Memory(free / GIB, total / GIB)


def _cgroup_folders(root: Path, own_group: str | None) -> list[Path]:
    """This process's control group (version 2) and those above it, innermost first."""
    if own_group is None:
        try:
            lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            lines = []
        own_group = next((line[3:] for line in lines if line.startswith("0::/")), "/")
    folder = root / own_group.lstrip("/")
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


def group_memory(params: Params, gpus: GpuLook | None = None) -> dict[str, Memory]:
    """Memory of each device group; raises InputError when a GPU that `devices` names is not there."""
    if params.device == "cpu":
        return {group: host_memory() for group in device_groups(params)}
    gpus = gpus or look_at_gpus()
    if gpus.state != "ok":
        raise InputError(f"device: cuda needs an NVIDIA GPU, and there is none to be seen: {gpus.reason}")
    return {device: _gpu_memory(device, gpus) for device in split_list(params.devices)}


def _gpu_memory(device: str, gpus: GpuLook) -> Memory:
    for gpu in gpus.gpus:
        if device in (str(gpu["index"]), gpu["uuid"]):
            if gpu["free_gib"] is None or gpu["total_gib"] is None:
                raise InputError(f"GPU {device}: NVML would not tell its memory")
            return Memory(gpu["free_gib"], gpu["total_gib"])
    known = ", ".join(f"{gpu['index']} ({gpu['name']})" for gpu in gpus.gpus)
    raise InputError(f"devices: no GPU {device!r} here; there are {known}")


def budget_here(params: Params, gpus: GpuLook | None = None) -> Budget:
    """The budget of `params` against what is free on this machine right now; raises InputError as its parts do."""
    memory = group_memory(params, gpus)
    free = {group: one.free_gib for group, one in memory.items()}
    total = {group: one.total_gib for group, one in memory.items()}
    return plan_budget(params, split_list(params.devices), free, total)
