"""Facts of the cards that the params files are written for; everything measured comes from the device itself.

Tensor cores, dense: datasheets print twice the figure, with sparsity. H100 SXM and H200 SXM: NVIDIA H100 Tensor Core
GPU Architecture whitepaper, 989.4 TFLOP/s in BF16 and FP16 and 1,978.9 in FP8, which are 4,096 and 8,192 a clock and SM
on 132 SMs at 1,830 MHz; the H200's datasheet has the same figures. A100 SXM: NVIDIA A100 Tensor Core GPU Architecture
whitepaper, 312 at 1,410 MHz. RTX 4090: NVIDIA Ada GPU Architecture whitepaper, 165.2 and 330.3 with FP32 sums at 2,520
MHz.
"""

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
    tensor_tflops: float = 0.0
    """Dense BF16 or FP16 with FP32 sums, at `tensor_mhz`; FP8, where it is native, is twice as fast. 0: not known."""
    tensor_mhz: float = 0.0

    def tensor_flops(self, clock_mhz: float, fp8: bool = False) -> float:
        """Dense operations a second of all its tensor cores at a clock; FP8's are BF16's where it is not native."""
        per_mhz = self.tensor_tflops * 1e12 / self.tensor_mhz if self.tensor_mhz else 0.0
        return per_mhz * clock_mhz * (2 if fp8 and self.native_fp8 else 1)


GPUS = {
    "h200": Gpu(
        "H200 SXM",
        "H200",
        132,
        140.4,
        4800,
        700,
        50,
        True,
        "NVIDIA H200 datasheet; memory as NVML reports it",
        989.4,
        1830,
    ),
    "h100": Gpu(
        "H100 SXM 80 GB",
        "H100",
        132,
        79.6,
        3350,
        700,
        50,
        True,
        "NVIDIA H100 datasheet; memory as NVML reports it",
        989.4,
        1830,
    ),
    "a100": Gpu("A100 SXM 80 GB", "A100", 108, 80.0, 2039, 400, 40, False, "NVIDIA A100 80GB datasheet", 312.0, 1410),
    "rtx4090": Gpu(
        "GeForce RTX 4090",
        "RTX 4090",
        128,
        24.0,
        1008,
        450,
        72,
        True,
        "NVIDIA Ada architecture whitepaper",
        165.2,
        2520,
    ),
}


def find_gpu(device_name: str) -> Gpu | None:
    """The card whose pattern stands in the driver's device name, or None for one that is not listed."""
    return next((gpu for gpu in GPUS.values() if gpu.pattern.lower() in device_name.lower()), None)
