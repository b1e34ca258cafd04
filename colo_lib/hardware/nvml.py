"""A look at the GPUs through nvidia-ml-py, in a process of its own: a lost GPU can hang or crash the one that asks.

`python -m colo_lib.hardware.nvml` prints one JSON object; `look_at_gpus` starts it under a deadline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from colo_lib.paths import REPOSITORY

GIB = 2.0**30
TIMEOUT_S = 20.0
NO_DRIVER = ("LibraryNotFound", "DriverNotLoaded", "NoDevice")


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of an NVML call, or None when the device, driver or rights do not offer it."""
    import pynvml

    try:
        return function(*arguments)
    except (pynvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None


def handle_of(device: str) -> Any:
    """NVML handle of a GPU index or UUID (MIG instances too); raises pynvml.NVMLError when there is none."""
    import pynvml

    if device.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    return pynvml.nvmlDeviceGetHandleByUUID(device)


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU; memory is None where the driver does not tell it."""

    pid: int
    gib: float | None


@dataclass(frozen=True)
class MigDevice:
    """A MIG instance of a GPU, and the pids of who computes on it."""

    uuid: str
    profile: str
    gib: float
    sms: int
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GpuRow:
    """One GPU as NVML tells of it; None where it has no answer."""

    index: int
    uuid: str | None = None
    name: str | None = None
    total_gib: float | None = None
    free_gib: float | None = None
    power_limit_w: float | None = None
    mig: bool | None = None
    mig_devices: tuple[MigDevice, ...] | None = None
    power_limit_default_w: float | None = None
    sm_clock_max_mhz: int | None = None
    clock_event_reasons: int | None = None
    compute_capability: tuple[int, int] | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    compute_mode: int | None = None
    processes: int | None = None
    compute_processes: tuple[GpuProcess, ...] | None = None
    mps_processes: tuple[GpuProcess, ...] | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> GpuRow:
        """As it was before it became plain values."""
        rows: dict[str, Any] = {}
        for name, kind in (
            ("mig_devices", MigDevice), ("compute_processes", GpuProcess), ("mps_processes", GpuProcess)
        ):  # fmt: skip
            given = plain.get(name)
            rows[name] = None if given is None else tuple(kind(**row) for row in given)
        capability = plain.get("compute_capability")
        return cls(**{**plain, **rows, "compute_capability": tuple(capability) if capability else None})

    def is_named(self, device: str) -> bool:
        """Whether `device`, an index or a UUID, means this GPU."""
        return device in (str(self.index), self.uuid)


@dataclass(frozen=True)
class GpuLook:
    """What NVML said. `missing`: there is no driver or no GPU; `unknown`: it could not be asked, `reason` says why."""

    state: Literal["ok", "missing", "unknown"]
    reason: str = ""
    driver: str | None = None
    cuda: str | None = None
    gpus: list[GpuRow] = field(default_factory=list)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> GpuLook:
        """As it was before it became plain values."""
        return cls(**{**plain, "gpus": [GpuRow.from_plain(gpu) for gpu in plain.get("gpus", [])]})

    def find(self, device: str) -> GpuRow | None:
        """The GPU that `device`, an index or a UUID, means."""
        return next((gpu for gpu in self.gpus if gpu.is_named(device)), None)


def mps_clients(look: GpuLook) -> list[int] | str:
    """Pids that NVML lists as MPS clients (nvidia-smi's type M+C); in words where it could not be asked."""
    pids: list[int] = []
    for gpu in look.gpus:
        if gpu.mps_processes is None:
            return "could not look: this driver does not offer the list"
        pids += [row.pid for row in gpu.mps_processes]
    return pids if look.state == "ok" else f"could not look: {look.reason}"


def look_at_gpus(timeout_s: float = TIMEOUT_S, command: tuple[str, ...] = ("-m", "colo_lib.hardware.nvml")) -> GpuLook:
    """Ask NVML in a child process; a hang, a crash and garbage are answers of state `unknown`, never exceptions."""
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            timeout=timeout_s,
            cwd=REPOSITORY,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return GpuLook(
            "unknown", f"NVML gave no answer within {timeout_s:.0f} s; nvidia-smi hangs then too: restart the host"
        )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return GpuLook("unknown", f"the process that asked NVML ended with {done.returncode}: {last[0]}")
    try:
        return GpuLook.from_plain(json.loads(done.stdout))
    except (ValueError, TypeError, AttributeError) as error:
        return GpuLook("unknown", f"NVML's answer could not be read: {error}")


def _ask() -> GpuLook:
    try:
        import pynvml
    except Exception as error:  # a broken binding is an answer too
        return GpuLook("unknown", f"nvidia-ml-py does not import: {error}")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        kind = type(error).__name__.removeprefix("NVMLError_")
        missing = any(name in kind for name in NO_DRIVER)
        return GpuLook("missing" if missing else "unknown", f"NVML: {error}")
    count = _or_none(pynvml, lambda: int(pynvml.nvmlDeviceGetCount()))
    if count is None:
        return GpuLook("unknown", "NVML would not tell how many GPUs there are")
    cuda = _or_none(pynvml, lambda: int(pynvml.nvmlSystemGetCudaDriverVersion()))
    return GpuLook(
        state="ok" if count else "missing",
        reason="" if count else "the driver is loaded and sees no GPU",
        driver=_or_none(pynvml, lambda: _text(pynvml.nvmlSystemGetDriverVersion())),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        gpus=[_gpu_row(pynvml, index) for index in range(count)],
    )


def _gpu_row(nvml: Any, index: int) -> GpuRow:
    handle = _or_none(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    asks: dict[str, Callable[[], Any]] = {
        "uuid": lambda: _text(nvml.nvmlDeviceGetUUID(handle)),
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "total_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / GIB,
        "free_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).free / GIB,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "mig_devices": lambda: mig_devices(nvml, handle),
        "power_limit_default_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000,
        "sm_clock_max_mhz": lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "clock_event_reasons": lambda: _event_reasons(nvml, handle),
        "compute_capability": lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "persistence": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "ecc": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
        "compute_mode": lambda: int(nvml.nvmlDeviceGetComputeMode(handle)),
        "processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        "compute_processes": lambda: _rows(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        "mps_processes": lambda: _rows(nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)),
    }
    return GpuRow(index, **{name: None if handle is None else _or_none(nvml, ask) for name, ask in asks.items()})


def _event_reasons(nvml: Any, handle: Any) -> int:
    """Bits of what holds the clocks down now; drivers before 535 know the call by its former name."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError_FunctionNotFound):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def mig_devices(nvml: Any, handle: Any) -> tuple[MigDevice, ...]:
    """UUID, profile, memory (GiB), SMs and process pids of each MIG instance of a GPU."""
    if not nvml.nvmlDeviceGetMigMode(handle)[0]:
        return ()
    devices = []
    for index in range(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
        instance = _or_none(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        if instance is not None:
            devices.append(_instance(nvml, instance))
    return tuple(devices)


def _instance(nvml: Any, instance: Any) -> MigDevice:
    attributes = nvml.nvmlDeviceGetAttributes(instance)
    slices, gib = int(attributes.gpuInstanceSliceCount), attributes.memorySizeMB / 1024
    name = _or_none(nvml, lambda: _text(nvml.nvmlDeviceGetName(instance))) or ""
    return MigDevice(
        uuid=_text(nvml.nvmlDeviceGetUUID(instance)),
        # The device's name ends with "MIG 3g.71gb"; without it, the same from its parts.
        profile=name.rpartition("MIG ")[2] if "MIG " in name else f"{slices}g.{gib:.0f}gb",
        gib=gib,
        sms=int(attributes.multiprocessorCount),
        pids=tuple(row.pid for row in _rows(nvml.nvmlDeviceGetComputeRunningProcesses(instance))),
    )


def _rows(processes: Any) -> tuple[GpuProcess, ...]:
    return tuple(
        GpuProcess(int(process.pid), None if process.usedGpuMemory is None else process.usedGpuMemory / GIB)
        for process in processes
    )


def _or_none(nvml: Any, ask: Callable[[], Any]) -> Any:
    """An answer, or None: not supported, no permission, a lost GPU, a function that this driver lacks."""
    try:
        return ask()
    except (nvml.NVMLError, AttributeError, TypeError, ValueError, OSError):
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    json.dump(asdict(_ask()), sys.stdout)
