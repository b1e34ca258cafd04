"""Kernel overlap: |U(gen) n U(embed)| on one device, and how sure the alignment of two sessions lets one be of it."""

from __future__ import annotations

from typing import Any

from colo_lib.analyse import intervals
from colo_lib.analyse.view import View
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


def alignment_range(view: View) -> tuple[float, float] | None:
    """Least and most of overlap_of_gen as gen's session is moved by the alignment's uncertainty either way.

    None where there is one session, or one workload.
    """
    error_ns = view.capture.alignment.uncertainty_ns
    gen, embed = (view.workloads.get(name) for name in ("gen", "embed"))
    if gen is None or embed is None or not error_ns:
        return None
    shares = [
        _share(intervals.overlap((gen.busy[0] + shift, gen.busy[1] + shift), embed.busy), gen.busy) or 0.0
        for shift in (-error_ns, -error_ns // 2, 0, error_ns // 2, error_ns)
    ]
    return min(shares), max(shares)


def _share(part_ns: int, of: Union) -> float | None:
    whole = intervals.length(of)
    return part_ns / whole if whole else None
