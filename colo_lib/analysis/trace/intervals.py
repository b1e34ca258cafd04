"""Half-open intervals [start, end) in ns: union, intersection, gaps, and how much of one lies in another.

A union is a pair of arrays (starts, ends): disjoint, sorted, none empty, none touching the next.
"""

from __future__ import annotations

import numpy as np

from colo_lib.trace import Floats, Ints, Union

EVER = 2**62  # beyond every session's clock on both sides; differences still fit 64 bits


def none() -> Union:
    """The empty union."""
    return np.empty(0, np.int64), np.empty(0, np.int64)


def union(start: Ints, end: Ints) -> Union:
    """The union of intervals in any order; touching ones become one, empty ones (end <= start) are nothing.

    With starts and ends each sorted by themselves, a span ends where the next start is later than as many ends as
    there were starts: then all that began has ended.
    """
    real = end > start
    if not real.all():
        start, end = start[real], end[real]
    if not len(start):
        return none()
    start, end = _sorted(start), _sorted(end)
    first = np.ones(len(start), np.bool_)
    first[1:] = start[1:] > end[:-1]
    last = np.ones(len(start), np.bool_)
    last[:-1] = first[1:]
    return start[first], end[last]


def _sorted(times: Ints) -> Ints:
    return np.sort(times, kind="stable") if np.any(times[1:] < times[:-1]) else times


def length(spans: Union) -> int:
    """|U| in ns."""
    return int((spans[1] - spans[0]).sum())


def join(*many: Union) -> Union:
    """The union of unions."""
    return union(np.concatenate([spans[0] for spans in many]), np.concatenate([spans[1] for spans in many]))


def within(start: Ints, end: Ints, window: tuple[int, int]) -> tuple[Ints, Ints]:
    """Every interval cut to the window; one outside becomes empty at the window's edge."""
    return np.clip(start, *window), np.clip(end, *window)


def pieces(start: Ints, end: Ints, spans: Union) -> tuple[Ints, Ints, Ints]:
    """The parts of intervals (in any order, they may overlap) inside a union: whose part it is, its start, its end."""
    first = np.searchsorted(spans[1], start, side="right")
    stop = np.searchsorted(spans[0], end, side="left")
    counts = np.maximum(stop - first, 0)
    owner = np.repeat(np.arange(len(start)), counts)
    before = np.cumsum(counts) - counts
    inside = np.arange(len(owner)) - np.repeat(before - first, counts)
    return owner, np.maximum(start[owner], spans[0][inside]), np.minimum(end[owner], spans[1][inside])


def intersect(left: Union, right: Union) -> Union:
    """Where both are."""
    return pieces(*left, right)[1:]


def gaps(spans: Union, window: tuple[int, int]) -> Union:
    """The holes of a union inside the window, those at its edges included."""
    start, end = within(*spans, window)
    edges_start, edges_end = np.concatenate(([window[0]], end)), np.concatenate((start, [window[1]]))
    real = edges_end > edges_start
    return edges_start[real], edges_end[real]


def covered_before(spans: Union, t_ns: Ints) -> Ints:
    """How much of the union lies before each time, ns."""
    if not len(spans[0]):
        return np.zeros(len(t_ns), np.int64)
    total = np.concatenate(([0], np.cumsum(spans[1] - spans[0])))
    place = np.searchsorted(spans[0], t_ns, side="right")
    inside = np.minimum(t_ns, spans[1][np.maximum(place - 1, 0)]) - spans[0][np.maximum(place - 1, 0)]
    return np.where(place > 0, total[np.maximum(place - 1, 0)] + inside, 0)


def covered(start: Ints, end: Ints, spans: Union) -> Ints:
    """How much of each interval lies in the union, ns."""
    return np.maximum(covered_before(spans, end) - covered_before(spans, start), 0)


def overlap(left: Union, right: Union) -> int:
    """|left ∩ right| in ns."""
    few, many = sorted((left, right), key=lambda spans: len(spans[0]))
    return int(covered(*few, many).sum())


def weight_by_bin(start: Ints, end: Ints, weight: Floats, edges: Ints) -> Floats:
    """Time x weight of the intervals in each of the bins between `edges`, ns: the level of detail of a long capture.

    Every interval adds weight x (its part inside the bin); the sum over bins is the sum over the intervals.
    """
    base = edges[0]
    by_start, by_end = np.argsort(start, kind="stable"), np.argsort(end, kind="stable")
    grown = _ramp(start[by_start] - base, weight[by_start], edges - base)
    return np.diff(grown - _ramp(end[by_end] - base, weight[by_end], edges - base))


def _ramp(t_ns: Ints, weight: Floats, at_ns: Ints) -> Floats:
    """Sum of weight x max(at - t, 0) for every `at`, `t` sorted."""
    place = np.searchsorted(t_ns, at_ns, side="left")
    weights = np.concatenate(([0.0], np.cumsum(weight)))[place]
    moments = np.concatenate(([0.0], np.cumsum(weight * t_ns)))[place]
    return np.asarray(weights * at_ns - moments, np.float64)
