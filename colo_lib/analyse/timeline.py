"""What a timeline shows: a stretch that is like the whole, and no more rectangles than a picture can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analyse import intervals
from colo_lib.analyse.basis import RESIDENCY
from colo_lib.analyse.view import View
from colo_lib.traces import Union

MOST_RECTANGLES = 4000


def typical_stretch(view: View, length_ns: int) -> tuple[int, int]:
    """A stretch of that length in which gen and embed overlap about as much of gen's time as in the whole window.

    With one workload, the first in which it runs; with none, the window's start. The whole window if that is shorter.
    """
    start, end = view.window
    if end - start <= length_ns:
        return view.window
    edges = np.arange(start, end, length_ns // 2)
    stops = np.minimum(edges + length_ns, end)
    busy = {name: intervals.covered(edges, stops, active.busy) for name, active in view.workloads.items()}
    if len(busy) < 2:
        place = int(np.argmax(next(iter(busy.values()), edges[:1] < 0) > 0))
    else:
        gen, embed = (view.workloads[name].busy for name in ("gen", "embed"))
        both = intervals.covered(edges, stops, intervals.intersect(gen, embed))
        whole = intervals.overlap(gen, embed) / max(intervals.length(gen), 1)
        off = np.abs(both / np.maximum(busy["gen"], 1) - whole)
        off[(busy["gen"] == 0) | (busy["embed"] == 0) | (stops - edges < length_ns)] = np.inf
        place = int(np.argmin(off)) if np.isfinite(off).any() else int(np.argmax(busy["gen"] > 0))
    return int(edges[place]), int(stops[place])


def rectangles(view: View, stretch: tuple[int, int], most: int = MOST_RECTANGLES) -> dict[str, Any]:
    """For each workload the spans to draw inside the stretch, `rows`; where both were busy, `both`; `merged` says
    whether neighbours were joined because there are more than `most` kernels: then a span is many.
    """
    rows: dict[str, Union] = {}
    merged = False
    for name, active in view.workloads.items():
        start, end = intervals.within(active.get("start_ns"), active.get("end_ns"), stretch)
        real = end > start
        spans = (start[real], end[real])
        if view.basis == RESIDENCY:
            spans = intervals.intersect(active.busy, intervals.union(*spans))
        if len(spans[0]) > most:
            spans, merged = _joined(intervals.union(*spans), (stretch[1] - stretch[0]) // most), True
        rows[name] = spans
    unions = [intervals.intersect(active.busy, intervals.union(np.array([stretch[0]]), np.array([stretch[1]])))
              for active in view.workloads.values()]  # fmt: skip
    both = intervals.intersect(*unions) if len(unions) == 2 else intervals.none()
    return {"rows": rows, "both": both, "merged": merged}


def _joined(spans: Union, grain_ns: int) -> Union:
    """Spans with holes under `grain_ns` closed, which no picture shows."""
    closed = intervals.union(spans[0], spans[1] + grain_ns)
    return closed[0], closed[1] - grain_ns
