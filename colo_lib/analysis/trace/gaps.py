"""Idle gaps: holes in the union of all workloads' kernels inside the window, on one device.

A gap at the window's edge counts; the gaps and the busy time together are the window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.window import TraceWindow
from colo_lib.trace import Ints, Union

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


def by_class(spans: Union, window_ns: int) -> list[dict[str, Any]]:
    """A row a size class: class, count, total_ns, fraction of the window."""
    length = spans[1] - spans[0]
    rows = []
    for name, (low, high) in CLASSES_NS.items():
        own = length[(length >= low) & (length < high)]
        total = int(own.sum())
        rows.append({"class": name, "count": len(own), "total_ns": total, "fraction": total / window_ns})
    return rows


def idle_over_time(spans: Union, window: tuple[int, int], bins: int = 200) -> dict[str, Any]:
    """Where gaps fall: `edges_s` from the window's start, and the idle share of each bin by size class."""
    edges: Ints = np.unique(np.linspace(window[0], window[1], bins + 1).round().astype(np.int64))
    length, width = spans[1] - spans[0], np.diff(edges)
    shares = {}
    for name, (low, high) in CLASSES_NS.items():
        own = (length >= low) & (length < high)
        shares[name] = intervals.weight_by_bin(spans[0][own], spans[1][own], np.ones(int(own.sum())), edges) / width
    return {"edges_s": (edges - window[0]) / 1e9, "classes": shares}
