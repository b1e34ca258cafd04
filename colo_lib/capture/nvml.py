"""NVIDIA devices through nvidia-ml-py (`import pynvml`): a field that the device refuses is null, never zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GIB = 2.0**30


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of an NVML call, or None when the device, driver or rights do not offer it."""
    import pynvml

    try:
        return function(*arguments)
    except (pynvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None


def handle_of(device: str) -> Any:
    """NVML handle of a GPU index or UUID; raises pynvml.NVMLError when there is none."""
    import pynvml

    if device.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    return pynvml.nvmlDeviceGetHandleByUUID(device)


def sample_device(name: str, handle: Any) -> dict[str, Any]:
    """One row of the telemetry frame for one GPU."""
    import pynvml as nv

    rates, memory = ask(nv.nvmlDeviceGetUtilizationRates, handle), ask(nv.nvmlDeviceGetMemoryInfo, handle)
    power_mw = ask(nv.nvmlDeviceGetPowerUsage, handle)
    return {
        "name": name,
        "sm_clock_mhz": ask(nv.nvmlDeviceGetClockInfo, handle, nv.NVML_CLOCK_SM),
        "memory_clock_mhz": ask(nv.nvmlDeviceGetClockInfo, handle, nv.NVML_CLOCK_MEM),
        "power_w": None if power_mw is None else power_mw / 1e3,
        "energy_mj": ask(nv.nvmlDeviceGetTotalEnergyConsumption, handle),
        "temperature_c": ask(nv.nvmlDeviceGetTemperature, handle, nv.NVML_TEMPERATURE_GPU),
        "throttle_reasons": ask(nv.nvmlDeviceGetCurrentClocksEventReasons, handle),
        "utilization": None if rates is None else rates.gpu / 100,
        "memory_utilization": None if rates is None else rates.memory / 100,
        "memory_used_gib": None if memory is None else memory.used / GIB,
    }


def gpu_devices(devices: list[str]) -> Callable[[], list[dict[str, Any]]]:
    """A sampler over GPUs by index or UUID."""
    import pynvml

    pynvml.nvmlInit()
    handles = [(device, handle_of(device)) for device in devices]
    return lambda: [sample_device(name, handle) for name, handle in handles]
