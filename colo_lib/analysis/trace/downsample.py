"""A capture at every level of detail: busy time, overlap and kernel counts by bins, fine to coarse, and single kernels.

Detail is left out by adding up, never by dropping rows: at every level the bins' busy_ns add up to |U|, their
overlap_ns to |U(gen) ∩ U(embed)|, and their starts to the number of kernels, exactly. Times are ns.

A picture shows a stretch that is like the whole, and no more rectangles than it can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.residency import RESIDENCY
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.trace import Floats, Ints, Union

FACTOR = 4  # bins of one level that make one of the next
ROUND = (1, 2, 5)


@dataclass(frozen=True)
class Level:
    """Equally long bins from the window's start; the last is cut by the window's end.

    Every array has shape (bins,). `busy_ns`: workload -> |U ∩ bin|; `starts`: workload -> kernels that start in the
    bin, those that ran when the window began in the first; `overlap_ns`: |U(gen) ∩ U(embed) ∩ bin|, 0 where one ran.
    """

    bin_ns: int
    busy_ns: Mapping[str, Ints]
    starts: Mapping[str, Ints]
    overlap_ns: Ints

    def __len__(self) -> int:
        return len(self.overlap_ns)

    def width_ns(self, window_ns: int) -> Ints:
        """How long each bin is, shape (bins,)."""
        edges = np.minimum(np.arange(len(self) + 1) * self.bin_ns, window_ns)
        return np.diff(edges)


@dataclass(frozen=True)
class Rows:
    """Kernels of one workload one by one, sorted by start; times since the window's start, not cut by it.

    Shape (kernels,) each. `name`: place in the capture's names, UNKNOWN where it has none; `graph`: a graph launched
    whole; `blocks`: 0 where unknown. `out_ns`: starts and ends of the spans in which kernels of the workload had
    begun and not ended, but its context was switched out; empty where no context switches were recorded.
    """

    start_ns: Ints
    duration_ns: Ints
    name: Ints
    graph: Ints
    blocks: Ints
    out_ns: Union

    def __len__(self) -> int:
        return len(self.start_ns)


def every_level(view: TraceWindow, bin_ns: int) -> list[Level]:
    """The levels of a view, finest first; its bins are `bin_ns` long."""
    work = {name: (active.get("start_ns"), active.busy) for name, active in view.workloads.items()}
    return levels(work, view.window, bin_ns)


def levels(work: Mapping[str, tuple[Ints, Union]], window: tuple[int, int], bin_ns: int) -> list[Level]:
    """Levels from bins of `bin_ns` up to a single bin; `work`: workload -> starts of its kernels, U inside the window.

    Raises ValueError for an empty window or bins without length.
    """
    if window[1] <= window[0] or bin_ns <= 0:
        raise ValueError(f"window {window} or bins of {bin_ns} ns have no length")
    finest_first = [_finest(work, window, bin_ns)]
    while len(finest_first[-1]) > 1:
        finest_first.append(_coarser(finest_first[-1]))
    return finest_first


def finest_bin_ns(window_ns: int, most_bins: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … ns of which at most `most_bins` fill the window."""
    decade = 1
    while True:
        for digit in ROUND:
            if -(-window_ns // (digit * decade)) <= most_bins:
                return digit * decade
        decade *= 10


def stretch_of(view: TraceWindow, centre_ns: int, most: int) -> tuple[int, int] | None:
    """The longest stretch about `centre_ns` that at most `most` kernels touch; the whole window if that holds no more.

    Times are the capture's. None where even the kernels of one moment are more.
    """
    spans = [intervals.none(), *(_spans(active) for active in view.workloads.values())]
    starts, ends = (np.sort(np.concatenate(side)) for side in zip(*spans, strict=True))
    if len(starts) <= most:
        return view.window
    low, high = 0, view.window_ns
    while high - low > 1:  # half its length, ns: touched kernels grow with it
        half = (low + high) // 2
        start, end = _about(centre_ns, half, view.window)
        # What has begun before the end and had not ended by the start.
        touched = int(np.searchsorted(starts, end)) - int(np.searchsorted(ends, start, side="right"))
        low, high = (half, high) if touched <= most else (low, half)
    return _about(centre_ns, low, view.window) if low else None


def rows_of(view: TraceWindow, stretch: tuple[int, int]) -> dict[str, Rows]:
    """Workload -> the kernels that touch the stretch."""
    return {name: _rows(active, stretch, view.window[0]) for name, active in view.workloads.items()}


def _about(centre_ns: int, half_ns: int, window: tuple[int, int]) -> tuple[int, int]:
    return max(centre_ns - half_ns, window[0]), min(centre_ns + half_ns, window[1])


def _finest(work: Mapping[str, tuple[Ints, Union]], window: tuple[int, int], bin_ns: int) -> Level:
    edges = np.minimum(np.arange(window[0], window[1] + bin_ns, bin_ns, dtype=np.int64), window[1])
    count = len(edges) - 1
    unions = [spans for _, spans in work.values()]
    both = intervals.intersect(*unions) if len(unions) == 2 else intervals.none()
    places = {
        name: (np.clip(starts, window[0], window[1] - 1) - window[0]) // bin_ns for name, (starts, _) in work.items()
    }
    return Level(
        bin_ns,
        {name: _by_bin(spans, edges) for name, (_, spans) in work.items()},
        {name: np.bincount(place, minlength=count).astype(np.int64) for name, place in places.items()},
        _by_bin(both, edges),
    )


def _by_bin(spans: Union, edges: Ints) -> Ints:
    return np.diff(intervals.covered_before(spans, edges))


def _coarser(level: Level) -> Level:
    groups = np.arange(0, len(level), FACTOR)
    add = lambda values: np.add.reduceat(values, groups)  # noqa: E731
    return Level(
        level.bin_ns * FACTOR,
        {name: add(values) for name, values in level.busy_ns.items()},
        {name: add(values) for name, values in level.starts.items()},
        add(level.overlap_ns),
    )


def _spans(active: Active) -> Union:
    """Starts and ends; a kernel without length counts as one of 1 ns, so that it is somewhere."""
    start = active.get("start_ns")
    return start, np.maximum(active.get("end_ns"), start + 1)


def _rows(active: Active, stretch: tuple[int, int], zero_ns: int) -> Rows:
    start, end = _spans(active)
    touching = np.flatnonzero((start < stretch[1]) & (end > stretch[0]))
    touching = touching[np.argsort(start[touching], kind="stable")]
    taken = lambda column: active.get(column)[touching].astype(np.int64)  # noqa: E731
    whole = intervals.union(np.array([stretch[0]]), np.array([stretch[1]]))
    out = intervals.intersect(intervals.intersect(active.span, intervals.gaps(active.busy, active.window)), whole)
    return Rows(
        start[touching] - zero_ns,
        taken("end_ns") - start[touching],
        taken("name"),
        taken("graph"),
        taken("blocks"),
        (out[0] - zero_ns, out[1] - zero_ns),
    )


def equal_bins(window: tuple[int, int], bins: int) -> Ints:
    """Edges of `bins` equal parts of the window, ns; fewer where the window has fewer ns."""
    edges: Ints = np.unique(np.linspace(window[0], window[1], bins + 1).round().astype(np.int64))
    return edges


@dataclass(frozen=True)
class BusyOverTime:
    """`busy`: workload -> share of a bin in which it ran, (bins,); `edges_s`: since the window began, (bins + 1,)."""

    edges_s: Floats
    busy: Mapping[str, Floats]


def busy_over_time(view: TraceWindow, bins: int = 200) -> BusyOverTime:
    """Share of time in which each workload ran, in `bins` equal parts of the window."""
    edges = equal_bins(view.window, bins)
    shares = {}
    for name, active in view.workloads.items():
        busy = intervals.weight_by_bin(*active.busy, np.ones(len(active.busy[0])), edges) / np.diff(edges)
        shares[name] = np.clip(busy, 0, 1)
    return BusyOverTime((edges - view.window[0]) / 1e9, shares)


MOST_RECTANGLES = 4000


def typical_stretch(view: TraceWindow, length_ns: int) -> tuple[int, int]:
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


@dataclass(frozen=True)
class Rectangles:
    """Workload -> the spans to draw, `rows`; where both were busy, `both`. `merged`: neighbours were joined, so that a
    span is many kernels.
    """

    rows: Mapping[str, Union]
    both: Union
    merged: bool


def rectangles(view: TraceWindow, stretch: tuple[int, int], most: int = MOST_RECTANGLES) -> Rectangles:
    """What to draw inside the stretch; neighbours are joined where a workload has more than `most` kernels in it."""
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
    return Rectangles(rows, both, merged)


def _joined(spans: Union, grain_ns: int) -> Union:
    """Spans with holes under `grain_ns` closed, which no picture shows."""
    closed = intervals.union(spans[0], spans[1] + grain_ns)
    return closed[0], closed[1] - grain_ns
