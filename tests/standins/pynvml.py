"""A stand-in for nvidia-ml-py that behaves as told: put a copy of this file first on PYTHONPATH.

`behaviour.json` beside it: {"devices": 1, "processes": [[pid, bytes]], "mps_processes": [...], "fail": {FUNCTION: HOW}}
where HOW is the name of an NVML error (`NotSupported`, `GpuIsLost`, …), or `garbage`, `hang`, `segfault`, `missing`
(the binding lacks the function); `"after": {FUNCTION: N}` lets it work N times first, and `"once": FILE` makes it
happen in the first process only. Absent: all is well. `"answers": {FUNCTION: VALUE}` replaces an answer;
`"live": true` lists as processes what `live_processes` finds; `"mig": [{"uuid", "sms", "gib"}]` partitions GPU 0.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

_FILE = Path(__file__).with_name("behaviour.json")
_TOLD = json.loads(_FILE.read_text()) if _FILE.exists() else {}
_CALLS: dict[str, int] = {}
GIB = 2**30

NVML_SUCCESS, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 1, 2, 0
NVML_GPM_METRICS_GET_VERSION = 1
NVML_GPM_METRIC_SM_UTIL, NVML_GPM_METRIC_SM_OCCUPANCY, NVML_GPM_METRIC_ANY_TENSOR_UTIL = 2, 3, 5
NVML_GPM_METRIC_DRAM_BW_UTIL = 10
NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC = 60, 61
_GPM = {2: 62.5, 3: 21.0, 5: 8.0, 10: 71.0, 60: 512.0, 61: 512.0}
_ERRORS = {"Uninitialized": 1, "InvalidArgument": 2, "NotSupported": 3, "NoPermission": 4, "NotFound": 6,
           "LibraryNotFound": 12, "FunctionNotFound": 13, "GpuIsLost": 15, "LibRmVersionMismatch": 18,
           "Unknown": 999}  # fmt: skip


class NVMLError(Exception):
    """As the binding's: `value` is NVML's code."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return next((name for name, value in _ERRORS.items() if value == self.value), "Unknown")


def _error_class(name: str, value: int) -> type[NVMLError]:
    return type("NVMLError_" + name, (NVMLError,), {"__init__": lambda self, _=None: NVMLError.__init__(self, value)})


_CLASSES = {name: _error_class(name, value) for name, value in _ERRORS.items()}
globals().update({"NVMLError_" + name: kind for name, kind in _CLASSES.items()})


def _behave(function: str, answer: object) -> object:
    """`answer`, or what `behaviour.json` says becomes of a call of `function`."""
    answer = _TOLD.get("answers", {}).get(function, answer)
    how = _TOLD.get("fail", {}).get(function) or _TOLD.get("fail", {}).get("*" if function != "nvmlInit" else "")
    _CALLS[function] = _CALLS.get(function, 0) + 1
    if how is None or _CALLS[function] <= _TOLD.get("after", {}).get(function, 0):
        return answer
    if "once" in _TOLD and how in ("hang", "segfault"):
        if Path(_TOLD["once"]).exists():
            return answer
        Path(_TOLD["once"]).touch()
    if how == "hang":
        time.sleep(3600)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "garbage":
        return _garbage(answer)
    raise _CLASSES[how]()


def _garbage(answer: object) -> object:
    if isinstance(answer, SimpleNamespace):
        return SimpleNamespace(**{name: 2**64 - 1 for name in vars(answer)})
    return 2**64 - 1 if isinstance(answer, int | float) else b"\xff\xfe"


def _handle(index: int) -> SimpleNamespace:
    if index >= _TOLD.get("devices", 1):
        raise _CLASSES["InvalidArgument"]()
    return SimpleNamespace(index=index)


def _uuid(handle: SimpleNamespace) -> str:
    return str(handle.uuid) if hasattr(handle, "uuid") else f"GPU-00000000-0000-0000-0000-{handle.index:012d}"


def _mig_handle(index: int) -> SimpleNamespace:
    try:
        told = _TOLD.get("mig", [])[index]
    except IndexError:
        raise _CLASSES["NotFound"]() from None
    parts = SimpleNamespace(gpuInstanceSliceCount=3, memorySizeMB=told["gib"] * 1024, multiprocessorCount=told["sms"])
    name = f"NVIDIA Stand-in MIG 3g.{told['gib']}gb"
    return SimpleNamespace(uuid=told["uuid"], name=name, attributes=parts, pids=told.get("pids", []))


def _computing(handle: SimpleNamespace) -> list[SimpleNamespace]:
    if not hasattr(handle, "attributes"):
        return _processes("processes")
    return [SimpleNamespace(pid=pid, usedGpuMemory=GIB) for pid in handle.pids]


def _gpm_metrics(question: SimpleNamespace) -> SimpleNamespace:
    for metric in question.metrics[: question.numMetrics]:
        refused = str(metric.metricId) in _TOLD.get("gpm_refused", {})
        metric.nvmlReturn = _ERRORS["NotSupported"] if refused else NVML_SUCCESS
        metric.value = 0.0 if refused else _TOLD.get("gpm", {}).get(str(metric.metricId), _GPM[metric.metricId])
    return question


def c_nvmlGpmMetricsGet_t() -> SimpleNamespace:
    """An empty question."""
    return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(8)])


COMPUTES = ("embed_worker.py", "VLLM::Engine", "VLLM::Worker", "mps-client", "time-sliced-client")


def live_processes(mps: bool) -> list[int]:
    """Pids of the processes that stand for engines on a GPU; `mps`: those that a control daemon listens for."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            told = Path(f"/proc/{name}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        pipe = next((word.partition("=")[2] for word in told if word.startswith("CUDA_MPS_PIPE_DIRECTORY=")), None)
        attached = pipe is not None and Path(pipe, "control").exists()
        mine = f"COLO_MARK={os.environ.get('COLO_MARK')}" in told
        if mine and any(word in words for word in COMPUTES) and "guardian.py" not in words and attached == mps:
            found.append(int(name))
    return found


def _processes(name: str) -> list[SimpleNamespace]:
    if _TOLD.get("live"):
        pids = live_processes(mps=name == "mps_processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=GIB) for pid in pids] + _told_processes(name)
    return _told_processes(name)


def _told_processes(name: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in _TOLD.get(name, [])]


_FUNCTIONS = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlDeviceGetCount": lambda: _TOLD.get("devices", 1),
    "nvmlDeviceGetHandleByIndex": _handle,
    "nvmlDeviceGetHandleByUUID": lambda _: _handle(0),
    "nvmlSystemGetDriverVersion": lambda: "580.159.03",
    "nvmlSystemGetCudaDriverVersion": lambda: 13000,
    "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
    "nvmlDeviceGetName": lambda handle: getattr(handle, "name", "NVIDIA Stand-in"),
    "nvmlDeviceGetUUID": lambda handle: (
        getattr(handle, "uuid", None) or f"GPU-00000000-0000-0000-0000-{handle.index:012d}"
    ),
    "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * GIB, free=70 * GIB, used=10 * GIB),
    "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97, memory=41),
    "nvmlDeviceGetClockInfo": lambda _, kind: 1980 if kind == NVML_CLOCK_SM else 2619,
    "nvmlDeviceGetMaxClockInfo": lambda _, __: 1980,
    "nvmlDeviceGetPowerUsage": lambda _: 412_000,
    "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
    "nvmlDeviceGetTotalEnergyConsumption": lambda _: 123_456_789,
    "nvmlDeviceGetTemperature": lambda _, __: 54,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 1,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 4,
    "nvmlDeviceGetComputeMode": lambda _: 0,
    "nvmlDeviceGetEccMode": lambda _: [1, 1],
    "nvmlDeviceGetMigMode": lambda _: [1, 1] if "mig" in _TOLD else [0, 0],
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda _: 700_000,
    "nvmlDeviceGetPersistenceMode": lambda _: 1,
    "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
    "nvmlDeviceGetMaxMigDeviceCount": lambda _: 7,
    "nvmlDeviceGetMigDeviceHandleByIndex": lambda _, index: _mig_handle(index),
    "nvmlDeviceGetAttributes": lambda handle: handle.attributes,
    "nvmlDeviceIsMigDeviceHandle": lambda _: False,
    "nvmlDeviceGetComputeRunningProcesses": lambda handle: _computing(handle),
    "nvmlDeviceGetMPSComputeRunningProcesses": lambda _: _processes("mps_processes"),
    "nvmlGpmQueryDeviceSupport": lambda _: SimpleNamespace(isSupportedDevice=int(_TOLD.get("has_gpm", True))),
    "nvmlGpmSampleAlloc": lambda: SimpleNamespace(),
    "nvmlGpmSampleGet": lambda _, sample: sample,
    "nvmlGpmMetricsGet": _gpm_metrics,
}


def __getattr__(name: str) -> object:
    if name not in _FUNCTIONS or _TOLD.get("fail", {}).get(name) == "missing":
        raise AttributeError(f"module 'pynvml' has no attribute {name!r}")
    return lambda *arguments: _behave(name, _FUNCTIONS[name](*arguments))
