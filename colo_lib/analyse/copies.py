"""Memory copies and sets: a class of their own, in none of the kernel numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from colo_lib.analyse import intervals
from colo_lib.analyse.view import View
from colo_lib.traces import COPY_KINDS, Copies


def summarise(copies: Copies, window: tuple[int, int]) -> dict[str, Any]:
    """count, time_ns (summed), busy_ns (union) and bytes of one workload's copies, and the same by kind."""
    start, end = intervals.within(copies.start_ns, copies.end_ns, window)
    rows = []
    for kind in np.unique(copies.kind).tolist():
        own = copies.kind == kind
        rows.append(
            {
                "kind": COPY_KINDS.get(kind, f"kind {kind}"),
                "count": int(own.sum()),
                "time_ns": int((end - start)[own].sum()),
                "bytes": int(copies.size_bytes[own].sum()),
            }
        )
    return {
        "count": len(copies),
        "time_ns": int((end - start).sum()),
        "busy_ns": intervals.length(intervals.union(start, end)),
        "bytes": int(copies.size_bytes.sum()),
        "kinds": sorted(rows, key=lambda row: -row["time_ns"]),
    }


def idle_without(view: View, copies: Sequence[Copies]) -> float:
    """The share of the window with neither a kernel nor a copy of either workload."""
    if not any(len(item) for item in copies):
        return 1 - intervals.length(view.busy) / view.window_ns
    spans = [intervals.union(*intervals.within(item.start_ns, item.end_ns, view.window)) for item in copies]
    busy = intervals.join(view.busy, *spans)
    return 1 - intervals.length(busy) / view.window_ns
