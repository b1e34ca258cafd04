"""Kernel overlap: |U(gen) ∩ U(embed)| on one device, and how sure the alignment of two sessions lets one be of it.

As far as two clocks are known against each other there is a least and a most. overlap(s) = |(G + s) ∩ E|, with gen's
busy time G moved by s against embed's E, is linear between the shifts at which a boundary of G meets one of E: its
slope grows by 1 where a start meets an end, and falls by 1 where like meets like. So its extremes over [-error, error]
lie at those shifts or at the ends, and all of them are gone through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.window import Active, TraceWindow, look
from colo_lib.records import CaptureFacts
from colo_lib.trace import Ints, Union


def overlap_summary(view: TraceWindow) -> dict[str, Any]:
    """overlap_ns, overlap_of_gen, overlap_of_embed; every value None where one of the two has no work in the window."""
    gen, embed = (view.workloads.get(name) for name in ("gen", "embed"))
    if gen is None or embed is None:
        return {"overlap_ns": None, "overlap_of_gen": None, "overlap_of_embed": None}
    both = intervals.overlap(gen.busy, embed.busy)
    return {
        "overlap_ns": both,
        "overlap_of_gen": _share(both, gen.busy),
        "overlap_of_embed": _share(both, embed.busy),
    }


@dataclass(frozen=True)
class MeasuredOverlap:
    """The overlap of a capture as far as it is sure: a fraction of gen's busy time, on `basis`.

    `upper_bound`: it can only be said to be at most this. `range`: least and most of it as the clocks of two sessions
    allow, None where they do not matter. `profiled_ratio`: gen's rate while it was captured / its rate in the
    unprofiled trials, None where it is not known.
    """

    fraction_of_gen: float
    basis: str
    upper_bound: bool
    range: tuple[float, float] | None = None
    profiled_ratio: float | None = None


def verdict_overlap(
    view: TraceWindow, facts: CaptureFacts | None = None, unprofiled_tokens_per_s: float | None = None
) -> MeasuredOverlap | None:
    """What `verdict.judge` takes as the overlap of a capture of step 2; None where it has only one workload.

    With the capture.json and the rate of step 2's trials, profiled_ratio says how much the capture slowed gen.
    """
    share = overlap_summary(view)["overlap_of_gen"]
    if share is None:
        return None
    rate = facts and facts.profiled and facts.profiled.gen_tokens_per_s
    moved, base = alignment_range(view), unprofiled_tokens_per_s
    ratio = rate / base if rate and base and base == base else None
    return MeasuredOverlap(share, view.basis, view.upper_bound, moved.of_gen if moved else None, ratio)


@dataclass(frozen=True)
class Clocks:
    """What an overlap may be as far as the clocks of two sessions are known: least and most of `ns`, `of_gen`,
    `of_embed` (None where that one was never busy). `exact`: both ends are reached; else no clock lies outside.
    """

    ns: tuple[int, int]
    of_gen: tuple[float, float] | None
    of_embed: tuple[float, float] | None
    exact: bool


def alignment_range(view: TraceWindow) -> Clocks | None:
    """The overlap's range as one session is moved against the other by the alignment's uncertainty either way.

    A workload's busy time in the window is moved as a whole, and meets what the other did beyond the window's edge too.
    None where no uncertainty lies between gen and embed: one session, or one workload.
    """
    gen, embed = (view.workloads.get(name) for name in ("gen", "embed"))
    error_ns = view.capture.alignment.uncertainty_ns
    if gen is None or embed is None or not error_ns:
        return None
    sessions = [_sessions(view, active) for active in (gen, embed)]
    if len(sessions[0] | sessions[1]) == 1:
        return None
    busy = {"gen": gen.busy, "embed": embed.busy}
    whole = {name: intervals.length(spans) for name, spans in busy.items()}
    if not (len(sessions[0]) == len(sessions[1]) == 1):  # parts of one side move against each other too
        ranges = dict.fromkeys(busy, Range(0, min(whole.values()), exact=False))
    else:
        beyond = _beyond(view, error_ns)
        of_gen = overlap_range(gen.busy, beyond["embed"], error_ns)
        nothing_beyond = all(beyond[name] is busy[name] for name in busy)
        ranges = {
            "gen": of_gen,
            "embed": of_gen if nothing_beyond else overlap_range(embed.busy, beyond["gen"], error_ns),
        }
    shares = {
        name: (reach.low_ns / whole[name], reach.high_ns / whole[name]) if whole[name] else None
        for name, reach in ranges.items()
    }
    exact = all(reach.exact for reach in ranges.values())
    return Clocks((ranges["gen"].low_ns, ranges["gen"].high_ns), shares["gen"], shares["embed"], exact)


def _sessions(view: TraceWindow, active: Active) -> set[int]:
    return {view.capture.processes[place].session for place in np.unique(active.get("process")).tolist()}


def _beyond(view: TraceWindow, error_ns: int) -> dict[str, Union]:
    """The workloads' busy time in the window and as far beyond its edges as a clock may move."""
    kernels, (start, end) = view.capture.kernels, view.window
    busy = {name: active.busy for name, active in view.workloads.items()}
    here = kernels.device == view.device_place
    if not (here & ((kernels.start_ns < start) | (kernels.end_ns > end))).any():
        return busy
    wider = (start - error_ns) / 1e9, (end + error_ns) / 1e9
    looked = look(view.capture, view.assignment, wider, view.device.number, view.mechanism)
    if looked.basis != view.basis:
        return busy
    return busy | {name: active.busy for name, active in looked.workloads.items()}


def _share(part_ns: int, of: Union) -> float | None:
    whole = intervals.length(of)
    return part_ns / whole if whole else None


MOST_PAIRS = 200_000_000  # pairs of boundaries that are gone through: some seconds
MOST_LISTED = 20_000_000  # of them, where the range is too wide for a place a ns
MOST_PLACES = 8_000_000  # ns of range for which a place each is held
CHUNK_PAIRS = 4_000_000


@dataclass(frozen=True)
class Range:
    """`low_ns` to `high_ns` of overlap; `exact`: both are reached. Where not, no shift lies outside of them."""

    low_ns: int
    high_ns: int
    exact: bool = True


def overlap_range(moved: Union, still: Union, error_ns: int) -> Range:
    """The range of |(moved + s) ∩ still| over all s in [-error_ns, error_ns].

    Beyond `MOST_PAIRS` of boundaries it is what holds for any shift: 0 to the shorter of the two.
    """
    if not error_ns or not len(moved[0]) or not len(still[0]):
        at_rest = intervals.overlap(moved, still)
        return Range(at_rest, at_rest)
    pairs, first, counts = _meetings(moved, still, error_ns)
    dense = 2 * error_ns + 1 <= MOST_PLACES
    if pairs > (MOST_PAIRS if dense else MOST_LISTED):
        return Range(0, min(intervals.length(moved), intervals.length(still)), exact=False)
    start_ns = _shifted_overlap(moved, still, -error_ns)
    # No boundary meets another between two whole ns: the first slope is the first difference.
    slope = _shifted_overlap(moved, still, 1 - error_ns) - start_ns
    if dense:
        change = np.zeros(2 * error_ns + 1, np.int64)
        for shift, step in _changes(moved, still, first, counts):
            change += np.bincount(shift + error_ns, step, len(change)).astype(np.int64)
        change[0] = 0  # it is in the first slope already
        overlaps = start_ns + np.concatenate(([0], np.cumsum(slope + np.cumsum(change[:-1]))))
    else:
        parts = list(_changes(moved, still, first, counts))
        shifts = np.concatenate([np.array([-error_ns]), *(shift for shift, _ in parts), np.array([error_ns])])
        steps = np.concatenate([[0], *(step for _, step in parts), [0]]).astype(np.int64)
        steps[shifts == -error_ns] = 0
        order = np.argsort(shifts, kind="stable")
        slopes = slope + np.cumsum(steps[order])
        overlaps = start_ns + np.concatenate(([0], np.cumsum(slopes[:-1] * np.diff(shifts[order]))))
    return Range(int(overlaps.min()), int(overlaps.max()))


def _shifted_overlap(moved: Union, still: Union, shift_ns: int) -> int:
    return intervals.overlap((moved[0] + shift_ns, moved[1] + shift_ns), still)


def _meetings(moved: Union, still: Union, error_ns: int) -> tuple[int, Ints, Ints]:
    """How many pairs of boundaries meet within the error; each boundary of `moved`: its first partner, how many."""
    ours, theirs = _boundaries(moved), _boundaries(still)
    first = np.searchsorted(theirs, ours - error_ns, side="left")
    counts = np.searchsorted(theirs, ours + error_ns, side="right") - first
    return int(counts.sum()), first, counts


def _boundaries(spans: Union) -> Ints:
    """Starts and ends in order of time; disjoint spans alternate, so even places are starts."""
    return np.stack(spans, axis=1).ravel()


def _changes(moved: Union, still: Union, first: Ints, counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Shifts at which boundaries meet, and by how much the slope changes there, in pieces."""
    ours, theirs = _boundaries(moved), _boundaries(still)
    before = np.concatenate(([0], np.cumsum(counts)))
    row = 0
    while row < len(ours):
        stop = max(int(np.searchsorted(before, before[row] + CHUNK_PAIRS, side="right")) - 1, row + 1)
        boundary = np.repeat(np.arange(row, stop), counts[row:stop])
        partner = np.arange(len(boundary)) - np.repeat(
            before[row:stop] - before[row] - first[row:stop], counts[row:stop]
        )
        unlike = (boundary + partner) % 2  # 1 where a start meets an end
        yield theirs[partner] - ours[boundary], 2 * unlike - 1
        row = stop
