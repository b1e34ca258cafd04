"""How full the device could be by its launches, and how long it was idle.

SM occupancy of a kernel = min(blocks / SMs, 1) (design, formulas): arithmetic on launch shapes, not a measurement.
Resident occupancy goes on from there: the warps that fit an SM at once given registers, shared memory and threads a
block, over the most an SM holds (CUDA's occupancy arithmetic). Graph launches have no known shape and are in neither.

Idle gaps are holes in the union of all workloads' kernels inside the window, on one device. A gap at the window's edge
counts; the gaps and the busy time together are the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analysis.trace import downsample, intervals
from colo_lib.analysis.trace.downsample import BusyOverTime
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.trace import Device, Floats, Ints, Kernels, Union

CHUNK_ROWS = 1 << 20  # rows looked at together, so that ten million need no more memory than one
WARP_THREADS = 32
REGISTERS_A_WARP = 256  # registers are given to a warp in units of this many
RESERVED_SHARED_BYTES, SHARED_UNIT_BYTES = 1024, 128  # a block's own share of the driver, and the unit of the rest
KEYS = (
    "unknown_shape_count", "mean_blocks_per_kernel", "sm_occupancy_by_count", "sm_occupancy_by_time",
    "resident_occupancy_by_time", "under_half_device", "one_block_fraction", "full_device_fraction",
)  # fmt: skip
HISTOGRAM = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)


def of_kernels(blocks: Ints, sm_count: int) -> Floats:
    """min(blocks / SMs, 1) for each kernel."""
    return np.minimum(blocks / sm_count, 1.0)


def occupancy_summary(active: Active, device: Device) -> dict[str, Any]:
    """The table of occupancy of one workload; every value None where no shape or no SM count is known.

    `unknown_shape_count`: kernels without a grid, which are in no other value.
    """
    blocks = active.get("blocks")
    known = blocks > 0
    unknown = {"unknown_shape_count": int((~known & ~active.get("graph")).sum())}
    if not known.any():
        return dict.fromkeys(KEYS) | unknown
    blocks, time_ns = blocks[known], active.active_ns[known].astype(np.float64)
    occupancy: dict[str, Any] = (
        dict.fromkeys(KEYS)
        | unknown
        | {
            "mean_blocks_per_kernel": float(blocks.mean()),
            "one_block_fraction": float((blocks == 1).mean()),
        }
    )
    if device.sm_count is None:
        return occupancy
    share = of_kernels(blocks, device.sm_count)
    half = blocks < device.sm_count / 2
    return occupancy | {
        "sm_occupancy_by_count": float(share.mean()),
        "sm_occupancy_by_time": _weighted(share, time_ns),
        "resident_occupancy_by_time": resident_by_time(active, device),
        "under_half_device": {"by_count": float(half.mean()), "by_time": _weighted(half, time_ns)},
        "full_device_fraction": float((blocks >= device.sm_count).mean()),
    }


def resident_by_time(active: Active, device: Device) -> float | None:
    """Warps resident at once over the most the device holds, mean over kernels of known shape weighted by duration.

    None where the export does not name the device's limits, or no kernel's threads, registers and shared memory.
    """
    limits: Mapping[str, int] = device.limits
    if device.sm_count is None or not {"blocks", "warps", "registers", "shared_bytes"} <= set(limits):
        return None
    filled, whole = 0.0, 0.0
    for first in range(0, len(active.rows), CHUNK_ROWS):
        rows = active.rows[first : first + CHUNK_ROWS]
        known = (active.kernels.blocks[rows] > 0) & (active.kernels.threads[rows] > 0)
        time_ns = active.active_ns[first : first + CHUNK_ROWS] * known
        filled += float((resident_fraction(active.kernels, rows, limits, device.sm_count) * time_ns).sum())
        whole += float(time_ns.sum())
    return filled / whole if whole else None


def resident_fraction(kernels: Kernels, rows: Ints, limits: Mapping[str, int], sm_count: int) -> Floats:
    """Warps of each kernel that are resident at once, over the most that `sm_count` SMs hold."""
    # Whole numbers in floats: dividing those is several times quicker, and exact below 2^53.
    blocks, threads, registers, shared = (
        getattr(kernels, name)[rows].astype(np.float64) for name in ("blocks", "threads", "registers", "shared_bytes")
    )
    warps = np.ceil(np.maximum(threads, 1) / WARP_THREADS)
    of_registers = np.ceil(np.maximum(registers, 1) * (WARP_THREADS / REGISTERS_A_WARP)) * warps
    shared = np.ceil((shared + RESERVED_SHARED_BYTES) / SHARED_UNIT_BYTES) * SHARED_UNIT_BYTES
    fits = np.minimum(limits["blocks"], np.floor(limits["warps"] / warps))
    fits = np.minimum(fits, np.floor(limits["registers"] // REGISTERS_A_WARP / of_registers))
    fits = np.maximum(np.minimum(fits, np.floor(limits["shared_bytes"] / shared)), 1)
    return np.minimum(np.minimum(blocks, fits * sm_count) * warps / (sm_count * limits["warps"]), 1.0)


@dataclass(frozen=True)
class FilledOverTime(BusyOverTime):
    """Beside the busy shares `filled`: workload -> busy time weighted by min(blocks / SMs, 1), (bins,).

    An estimate by launch shape, NaN where no shape is known. Kernels that run beside each other add up, so 1 is a limit
    put on it.
    """

    filled: Mapping[str, Floats]


def occupancy_over_time(view: TraceWindow, bins: int = 200) -> FilledOverTime:
    """Busy and filled shares of time in `bins` equal parts of the window."""
    edges = downsample.equal_bins(view.window, bins)
    width = np.diff(edges)
    shares = {}
    for name, active in view.workloads.items():
        filled = np.full(len(width), np.nan)
        blocks = active.get("blocks")
        known = blocks > 0
        if known.any() and view.device.sm_count:
            start, end = active.intervals()
            owner, start, end = intervals.pieces(start[known], end[known], active.busy)
            share = of_kernels(blocks[known], view.device.sm_count)[owner]
            filled = np.minimum(intervals.weight_by_bin(start, end, share, edges) / width, 1.0)
        shares[name] = filled
    busy = downsample.busy_over_time(view, bins)
    return FilledOverTime(busy.edges_s, busy.busy, shares)


@dataclass(frozen=True)
class OccupancyClasses:
    """Shares of kernels and of kernel time by class of SM occupancy, (classes,); `edges`: where each begins, the last
    is a full device.
    """

    edges: tuple[float, ...]
    by_count: Floats
    by_time: Floats


def distribution(active: Active, device: Device) -> OccupancyClasses | None:
    """The kernels by class of SM occupancy; None where no shape or SM count is known."""
    blocks = active.get("blocks")
    known = blocks > 0
    if device.sm_count is None or not known.any():
        return None
    share = of_kernels(blocks[known], device.sm_count)
    time_ns = active.active_ns[known].astype(np.float64)
    place = np.searchsorted(HISTOGRAM, share, side="right") - 1
    count = np.bincount(place, minlength=len(HISTOGRAM))
    total = np.bincount(place, time_ns, minlength=len(HISTOGRAM))
    return OccupancyClasses(HISTOGRAM, count / count.sum(), total / max(total.sum(), 1.0))


def _weighted(values: Any, weight: Floats) -> float | None:
    total = float(weight.sum())
    return float((values * weight).sum() / total) if total else None


CLASSES_NS = {
    "under 1 us": (0, 1_000),
    "1 to 10 us": (1_000, 10_000),
    "10 to 100 us": (10_000, 100_000),
    "100 us to 1 ms": (100_000, 1_000_000),
    "1 ms and more": (1_000_000, 2**62),
}
OVER_NS = 10_000


def find_gaps(view: TraceWindow) -> Union:
    """The gaps of the device."""
    return intervals.gaps(view.busy, view.window)


def gap_summary(spans: Union) -> dict[str, Any]:
    """count, mean_us, p50_us, p99_us, max_us, over_10us_count, total_ns."""
    length = spans[1] - spans[0]
    if not len(length):
        return {"count": 0, "mean_us": None, "p50_us": None, "p99_us": None, "max_us": None, "over_10us_count": 0,
                "total_ns": 0}  # fmt: skip
    p50, p99 = np.percentile(length, [50, 99])
    return {
        "count": len(length),
        "mean_us": float(length.mean() / 1e3),
        "p50_us": float(p50 / 1e3),
        "p99_us": float(p99 / 1e3),
        "max_us": float(length.max() / 1e3),
        "over_10us_count": int((length > OVER_NS).sum()),
        "total_ns": int(length.sum()),
    }


@dataclass(frozen=True)
class GapClass:
    """Gaps of a size, by its name: how many, their time, and its fraction of the window."""

    name: str
    count: int
    total_ns: int
    fraction: float


def by_class(spans: Union, window_ns: int) -> list[GapClass]:
    """The gaps of every size class."""
    length = spans[1] - spans[0]
    rows = []
    for name, (low, high) in CLASSES_NS.items():
        of_class = length[(length >= low) & (length < high)]
        total = int(of_class.sum())
        rows.append(GapClass(name, len(of_class), total, total / window_ns))
    return rows


@dataclass(frozen=True)
class IdleOverTime:
    """Size class -> the idle share of each bin, (bins,); `edges_s`: (bins + 1,) from the window's start."""

    edges_s: Floats
    classes: Mapping[str, Floats]


def idle_over_time(spans: Union, window: tuple[int, int], bins: int = 200) -> IdleOverTime:
    """Where gaps fall, in `bins` equal parts of the window."""
    edges = downsample.equal_bins(window, bins)
    length, width = spans[1] - spans[0], np.diff(edges)
    shares = {}
    for name, (low, high) in CLASSES_NS.items():
        of_class = (length >= low) & (length < high)
        shares[name] = (
            intervals.weight_by_bin(spans[0][of_class], spans[1][of_class], np.ones(int(of_class.sum())), edges) / width
        )
    return IdleOverTime((edges - window[0]) / 1e9, shares)
