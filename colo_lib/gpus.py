"""Facts of the cards that the params files are written for; everything measured comes from the device itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A card's datasheet figures."""

    name: str
    pattern: str
    """Part of the name that the driver reports."""
    sms: int
    memory_gib: float
    bandwidth_gb_s: float
    """10^9 bytes a second, as datasheets count."""
    power_limit_w: int
    l2_mib: int
    native_fp8: bool
    source: str


GPUS = {
    "h200": Gpu(
        "H200 SXM", "H200", 132, 140.4, 4800, 700, 50, True, "NVIDIA H200 datasheet; memory as NVML reports it"
    ),
    "h100": Gpu(
        "H100 SXM 80 GB", "H100", 132, 79.6, 3350, 700, 50, True, "NVIDIA H100 datasheet; memory as NVML reports it"
    ),
    "a100": Gpu("A100 SXM 80 GB", "A100", 108, 80.0, 2039, 400, 40, False, "NVIDIA A100 80GB datasheet"),
    "rtx4090": Gpu(
        "GeForce RTX 4090", "RTX 4090", 128, 24.0, 1008, 450, 72, True, "NVIDIA Ada architecture whitepaper"
    ),
}


def find_gpu(device_name: str) -> Gpu | None:
    """The card whose pattern stands in the driver's device name, or None for one that is not listed."""
    return next((gpu for gpu in GPUS.values() if gpu.pattern.lower() in device_name.lower()), None)
