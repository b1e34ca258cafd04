"""Kernel overlap: |U(gen) n U(embed)| on one device, and how sure the alignment of two sessions lets one be of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analyse import intervals
from colo_lib.analyse.clock_range import Range, overlap_range
from colo_lib.analyse.view import Active, View, look
from colo_lib.traces import Union


def summarise(view: View) -> dict[str, Any]:
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
class Clocks:
    """What an overlap may be as far as the clocks of two sessions are known: least and most of `ns`, `of_gen`,
    `of_embed` (None where that one was never busy). `exact`: both ends are reached; else no clock lies outside.
    """

    ns: tuple[int, int]
    of_gen: tuple[float, float] | None
    of_embed: tuple[float, float] | None
    exact: bool


def alignment_range(view: View) -> Clocks | None:
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
        name: (found.low_ns / whole[name], found.high_ns / whole[name]) if whole[name] else None
        for name, found in ranges.items()
    }
    exact = all(found.exact for found in ranges.values())
    return Clocks((ranges["gen"].low_ns, ranges["gen"].high_ns), shares["gen"], shares["embed"], exact)


def _sessions(view: View, active: Active) -> set[int]:
    return {view.capture.processes[place].session for place in np.unique(active.get("process")).tolist()}


def _beyond(view: View, error_ns: int) -> dict[str, Union]:
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
