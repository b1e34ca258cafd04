"""What a GPU tells of itself while something runs, through nvidia-ml-py: no answer is null, and its reason is kept.

GPU performance monitoring (GPM) tells what the SMs, tensor cores, DRAM and NVLink did between two samples. Hopper and
later. Values are of the whole device (or MIG instance), not of one workload; SM occupancy counts active warps against
the most there can be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from colo_lib.hardware.nvml import GIB, handle_of

# What a field may plausibly hold, in the frame's units: an answer outside is garbage, and null.
PLAUSIBLE = {
    "sm_clock_mhz": (0.0, 10_000.0),
    "memory_clock_mhz": (0.0, 50_000.0),
    "power_w": (0.0, 10_000.0),
    "energy_mj": (0.0, 1e15),
    "temperature_c": (-50.0, 200.0),
    "throttle_reasons": (0, 2**62),
    "utilization": (0.0, 1.0),
    "memory_utilization": (0.0, 1.0),
    "memory_used_gib": (0.0, 1e5),
    # Sampled counters divide by a nominal peak, which a short sample can pass a little.
    "sm_active": (0.0, 1.05),
    "sm_occupancy": (0.0, 1.05),
    "tensor_active": (0.0, 1.05),
    "dram_active": (0.0, 1.05),
    "nvlink_gib_s": (0.0, 1e5),
}
LEAST_INTERVAL_S = 0.05
PERCENTAGES = {
    "sm_active": "NVML_GPM_METRIC_SM_UTIL",
    "sm_occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "tensor_active": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "dram_active": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}
NVLINK = ("NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC", "NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC")


class Gpm:
    """Two alternating samples of one device; each call of `sample` tells of the time since the one before.

    Raises what the binding raises where the device has no GPM. `absent`: reason by field that GPM refused.
    """

    def __init__(self, nv: Any, handle: Any) -> None:
        self.nv, self.handle, self.absent = nv, handle, dict[str, str]()
        self.instance: int | None = None
        if nv.nvmlDeviceIsMigDeviceHandle(handle):
            self.instance = nv.nvmlDeviceGetGpuInstanceId(handle)
            self.handle = nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        if not nv.nvmlGpmQueryDeviceSupport(self.handle).isSupportedDevice:
            raise OSError("this device has no GPM (Hopper and later have)")
        self.before, self.after = nv.nvmlGpmSampleAlloc(), nv.nvmlGpmSampleAlloc()
        self.taken_s: float | None = None
        self.ids = {name: getattr(nv, name) for name in [*PERCENTAGES.values(), *NVLINK]}

    def sample(self) -> dict[str, float]:
        """Fractions of the peak and GiB/s by the frame's names; empty at first and when the last one is too near."""
        now_s = time.monotonic()
        if self.taken_s is not None and now_s - self.taken_s < LEAST_INTERVAL_S:
            return {}
        self.before, self.after = self.after, self.before
        if self.instance is None:
            self.nv.nvmlGpmSampleGet(self.handle, self.after)
        else:
            self.nv.nvmlGpmMigSampleGet(self.handle, self.instance, self.after)
        first, self.taken_s = self.taken_s is None, now_s
        return {} if first else self._between()

    def _between(self) -> dict[str, float]:
        question = self.nv.c_nvmlGpmMetricsGet_t()
        question.version = self.nv.NVML_GPM_METRICS_GET_VERSION
        question.numMetrics = len(self.ids)
        question.sample1, question.sample2 = self.before, self.after
        for place, number in enumerate(self.ids.values()):
            question.metrics[place].metricId = number
        answer = self.nv.nvmlGpmMetricsGet(question)
        values: dict[str, float] = {}
        for place, name in enumerate(self.ids):
            metric = answer.metrics[place]
            if metric.nvmlReturn == self.nv.NVML_SUCCESS and math.isfinite(metric.value):
                values[name] = float(metric.value)
            else:
                self.absent.setdefault(_field(name), self._why(metric.nvmlReturn))
        metrics = {field: values[name] / 100 for field, name in PERCENTAGES.items() if name in values}
        if all(name in values for name in NVLINK):
            metrics["nvlink_gib_s"] = sum(values[name] for name in NVLINK) / 1024
        return metrics

    def _why(self, code: int) -> str:
        return f"GPM: {self.nv.NVMLError(code)}" if code else "GPM: not a number"


def _field(metric: str) -> str:
    return next((field for field, name in PERCENTAGES.items() if name == metric), "nvlink_gib_s")


class SampledGpu:
    """One GPU or MIG instance to be sampled; `absent` holds the reason of every field that had no answer so far."""

    def __init__(self, name: str) -> None:
        import pynvml

        self.nv, self.name, self.absent = pynvml, name, dict[str, str]()
        self.handle: Any = None
        self.gpm: Gpm | None = None
        self._open()

    def _open(self) -> None:
        try:
            self.nv.nvmlInit()
            self.handle = handle_of(self.name)
        except Exception as error:  # A broken binding costs the telemetry, not the trial.
            self.absent["all fields"] = error_in_words(error)
            return
        try:
            self.gpm = Gpm(self.nv, self.handle)
        except Exception as error:
            self.absent["GPM"] = error_in_words(error)

    def total_gib(self) -> float | None:
        """All of the device's memory."""
        if self.handle is None:
            return None
        return self.field("memory_used_gib", lambda: self.nv.nvmlDeviceGetMemoryInfo(self.handle).total / GIB)

    def field(self, name: str, question: Callable[[], Any]) -> Any:
        """The answer to one question if there is one and it is plausible, else None; the reason is kept."""
        try:
            return plausible(name, question())
        except Exception as error:
            self.absent.setdefault(name, error_in_words(error))
            return None

    def sample(self) -> dict[str, Any]:
        """One row of the telemetry frame."""
        if self.handle is None:
            return {"name": self.name}
        nv, handle = self.nv, self.handle
        asks: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM),
            "power_w": lambda: nv.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "energy_mj": lambda: nv.nvmlDeviceGetTotalEnergyConsumption(handle),
            "temperature_c": lambda: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
            "throttle_reasons": self._event_reasons,
            "memory_used_gib": lambda: nv.nvmlDeviceGetMemoryInfo(handle).used / GIB,
        }
        row = {"name": self.name} | {name: self.field(name, question) for name, question in asks.items()}
        return row | self._utilization() | self._gpm()

    def _utilization(self) -> dict[str, Any]:
        try:
            rates = self.nv.nvmlDeviceGetUtilizationRates(self.handle)
        except Exception as error:
            for name in ("utilization", "memory_utilization"):
                self.absent.setdefault(name, error_in_words(error))
            return {}
        return {
            "utilization": self.field("utilization", lambda: rates.gpu / 100),
            "memory_utilization": self.field("memory_utilization", lambda: rates.memory / 100),
        }

    def _event_reasons(self) -> Any:
        # Drivers before 535 know the call by its former name only.
        try:
            return self.nv.nvmlDeviceGetCurrentClocksEventReasons(self.handle)
        except (AttributeError, self.nv.NVMLError_FunctionNotFound):
            return self.nv.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)

    def _gpm(self) -> dict[str, Any]:
        if self.gpm is None:
            return {}
        try:
            values = self.gpm.sample()
        except Exception as error:
            self.absent.setdefault("GPM", error_in_words(error))
            return {}
        for name, reason in self.gpm.absent.items():
            self.absent.setdefault(name, reason)
        return {name: self.field(name, partial(float, value)) for name, value in values.items()}

    def process_bytes(self) -> dict[int, int | None]:
        """Device memory of every compute process, MPS clients among them, in bytes by pid; None: not told.

        Pids are those of the driver's PID namespace, which in a container may not be ours.
        """
        if self.handle is None:
            return {}
        held: dict[int, int | None] = {}
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
            try:
                for process in getattr(self.nv, name)(self.handle):
                    used = process.usedGpuMemory
                    held[int(process.pid)] = used if isinstance(used, int) and 0 <= used < 2**50 else None
            except Exception as error:
                self.absent.setdefault(
                    f"memory of processes ({name.removeprefix('nvmlDeviceGet')})", error_in_words(error)
                )
        return held


def plausible(name: str, value: Any) -> int | float:
    """`value` itself; raises ValueError for what the field cannot hold."""
    low, high = PLAUSIBLE[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"the driver answered {str(value)[:60]!r}, which no device can mean")
    return value


def error_in_words(error: BaseException) -> str:
    """An error in words: its NVML name, if it has one, and what it says."""
    kind = type(error).__name__.removeprefix("NVMLError_")
    return f"{kind}: {error}" if str(error) and str(error) != kind else kind
