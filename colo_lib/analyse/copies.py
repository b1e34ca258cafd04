"""Memory copies and sets: a class of their own, in none of the kernel numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analyse import intervals
from colo_lib.analyse.view import Moved, View
from colo_lib.traces import COPY_KINDS, Ints


def summarise(moved: Moved) -> dict[str, Any]:
    """count, time_ns (summed), busy_ns (union) and bytes of one workload's copies, and the same by kind.

    Times are cut as those of kernels are, to the window and to residency where that is known.
    """
    copies, rows = moved.rows, []
    for kind in np.unique(copies.kind).tolist():
        own = copies.kind == kind
        rows.append(
            {
                "kind": COPY_KINDS.get(kind, f"kind {kind}"),
                "count": int(own.sum()),
                "time_ns": int(moved.active_ns[own].sum()),
                "bytes": _bytes(copies.size_bytes[own]),
            }
        )
    return {
        "count": len(copies),
        "time_ns": int(moved.active_ns.sum()),
        "busy_ns": intervals.length(moved.busy),
        "bytes": _bytes(copies.size_bytes),
        "kinds": sorted(rows, key=lambda row: -row["time_ns"]),
    }


def idle_without(view: View) -> float:
    """The share of the window with neither a kernel nor a copy of either workload."""
    busy = intervals.join(view.busy, *(moved.busy for moved in view.copies.values()))
    return 1 - intervals.length(busy) / view.window_ns


def _bytes(sizes: Ints) -> int:
    """The sum in whole numbers of any size: a damaged row must not overflow it."""
    return sum(sizes.tolist()) if int(sizes.max(initial=0)) > 2**40 else int(sizes.sum())
