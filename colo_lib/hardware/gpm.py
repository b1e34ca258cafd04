"""GPU performance monitoring (GPM) through NVML: what the SMs, tensor cores, DRAM and NVLink did between two samples.

Hopper and later. Values are of the whole device (or MIG instance), not of one workload; SM occupancy counts active
warps against the most there can be.
"""

from __future__ import annotations

import math
import time
from typing import Any

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
        found = {field: values[name] / 100 for field, name in PERCENTAGES.items() if name in values}
        if all(name in values for name in NVLINK):
            found["nvlink_gib_s"] = sum(values[name] for name in NVLINK) / 1024
        return found

    def _why(self, code: int) -> str:
        return f"GPM: {self.nv.NVMLError(code)}" if code else "GPM: not a number"


def _field(metric: str) -> str:
    return next((field for field, name in PERCENTAGES.items() if name == metric), "nvlink_gib_s")
