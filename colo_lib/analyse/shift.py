"""Kernel durations alone against shared: mean duration in the step / mean alone - 1, a kernel name at a time.

The total is weighted by the time each name takes alone. Names that ran on one side only are listed, not averaged: other
shapes or another way of launching make other kernels, and no shift between them means anything. Durations are the time
in residence where context switches are recorded on that side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analyse.view import View

GRAPH_NAME = "(CUDA graph launch, whole)"


def summarise(alone: View, shared: View, workload: str) -> dict[str, Any]:
    """`kernels`: rows of name, alone_us, shared_us, shift, alone_count, shared_count, alone_time_ns, most time first.

    `total_shift` is None where no name ran on both sides; `covered`: their share of the time alone; `only_alone` and
    `only_shared`: rows of name, count, time_ns.
    """
    before, after = _means(alone, workload), _means(shared, workload)
    both = sorted((name for name in before if name in after), key=lambda name: (-before[name][1], name))
    rows: list[dict[str, Any]] = []
    for name in both:
        (count, time_ns), (shared_count, shared_ns) = before[name], after[name]
        alone_us, shared_us = time_ns / count / 1e3, shared_ns / shared_count / 1e3
        rows.append(
            {
                "name": name,
                "alone_us": alone_us,
                "shared_us": shared_us,
                "shift": shared_us / alone_us - 1 if alone_us else None,
                "alone_count": count,
                "shared_count": shared_count,
                "alone_time_ns": time_ns,
            }
        )
    weights = np.array([row["alone_time_ns"] for row in rows if row["shift"] is not None], np.float64)
    shifts = np.array([row["shift"] for row in rows if row["shift"] is not None])
    whole = sum(time_ns for _, time_ns in before.values())
    return {
        "workload": workload,
        "kernels": rows,
        "total_shift": float((weights * shifts).sum() / weights.sum()) if weights.sum() else None,
        "covered": float(weights.sum() / whole) if whole else None,
        "only_alone": _one_sided(before, after),
        "only_shared": _one_sided(after, before),
    }


def _means(view: View, workload: str) -> dict[str, tuple[int, int]]:
    """Name -> (count, time in residence). Kernels cut by the window's edge are left out: their length is not known."""
    active = view.workloads.get(workload)
    if active is None:
        return {}
    whole = (active.get("start_ns") >= view.window[0]) & (active.get("end_ns") <= view.window[1])
    graph = active.get("graph")
    place = np.where(graph, len(view.capture.names) + 1, active.get("name") + 1)[whole]
    names = ["(unnamed)", *view.capture.names, GRAPH_NAME]
    count = np.bincount(place, minlength=len(names))
    time_ns = np.bincount(place, active.active_ns[whole], minlength=len(names))
    return {names[item]: (int(count[item]), int(time_ns[item])) for item in np.flatnonzero(count).tolist()}


def _one_sided(these: dict[str, tuple[int, int]], others: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    own = sorted((-time_ns, name, count) for name, (count, time_ns) in these.items() if name not in others)
    return [{"name": name, "count": count, "time_ns": -negative} for negative, name, count in own]
