"""Where the time of a decode token went, in a window of a capture.

How many tokens gen decoded in a window of a capture, counted from the CUDA graphs that it replayed.

A decode step of vLLM with full graphs replays one graph, and all of a replay's kernels carry its correlation id. So the
replays in a window are its steps, and a step gives a token to each request in flight. The rate while profiling, over a
longer window than a capture that was cut to be shared, is what is left where replays cannot be told.

Where a workload's time went, per piece of its work: busy by category, and its gaps by what it waited for.

The window is split without rest: the workload's own busy time (union, in residence), by category; `switched_out`,
when its kernels had started but its context was not on the device; and the gaps between its kernels. A gap ends with a
kernel; from that kernel's launch on (the API call joined on process and correlation id) the gap is `waiting` for the
device, before it the `host` had not asked yet. Gaps whose kernel has no recorded launch are `unattributed`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.kernels import OTHER, PATTERNS, Patterns, categorise
from colo_lib.analysis.trace.window import Active, TraceWindow, view_of
from colo_lib.params import Params
from colo_lib.records import CaptureFacts
from colo_lib.trace import Capture, Ints, Kernels, Launches

ALIKE = 0.98  # of the largest replay's kernels; a profiler loses a few
WORST_RATIO = 2.0  # between counted and expected: more is another kind of replay


def replays(kernels: Kernels, rows: Ints) -> float | None:
    """Graph replays among `rows`, which are one process's kernels on one device in order of their start.

    The first and the last are counted by the part of their kernels that is there. None where fewer than three are seen
    (no whole one is certain), or where they differ, as graphs of single layers or of several batch sizes do.
    """
    correlation = kernels.correlation[rows[kernels.node[rows]]]
    _, first, counts = np.unique(correlation, return_index=True, return_counts=True)
    counts = counts[np.argsort(first)]
    whole = counts[1:-1].max(initial=0)
    if not whole or (counts[1:-1] < ALIKE * whole).any():
        return None
    return len(counts) - 2 + float(np.minimum(counts[[0, -1]] / whole, 1.0).sum())


def tokens_of(steps: float | None, expected: float, concurrency: int) -> float:
    """Tokens of `steps` replays with `concurrency` requests in flight, else `expected`, which is rate x window."""
    if steps is None:
        return expected
    counted = steps * concurrency
    return counted if 1 / WORST_RATIO <= counted / expected <= WORST_RATIO else expected


GRAPH = "graph launches"
NO_LAUNCH = intervals.EVER


def decompose_token_time(
    view: TraceWindow, workload: str, launches: Launches, pieces: float, patterns: Patterns = PATTERNS
) -> dict[str, Any]:
    """Nanoseconds per piece of work (a decoded token, an embedded sequence) of which there were `pieces` in the window.

    Keys: window_ns, busy_ns, busy_by_category_ns, switched_out_ns, waiting_ns, host_ns, unattributed_ns; the last four
    and busy_ns add up to window_ns, the categories to busy_ns (kernels that ran beside each other share their time).
    Raises KeyError where the workload has no work in the view; ValueError unless pieces > 0.
    """
    if not pieces > 0:
        raise ValueError(f"pieces of work must be more than 0, not {pieces}")
    active = view.workloads[workload]
    busy_ns = intervals.length(active.busy)
    gaps = intervals.gaps(active.span, view.window)
    waiting, unknown = _waiting(active, gaps, launches)
    length = gaps[1] - gaps[0]
    waiting_ns, unattributed_ns = int(waiting.sum()), int(length[unknown].sum())
    whole = {
        "window_ns": view.window_ns,
        "busy_ns": busy_ns,
        "switched_out_ns": intervals.length(active.span) - busy_ns,
        "waiting_ns": waiting_ns,
        "host_ns": int(length.sum()) - waiting_ns - unattributed_ns,
        "unattributed_ns": unattributed_ns,
    }
    found: dict[str, Any] = {name: value / pieces for name, value in whole.items()}
    shares = _category_shares(active, view.capture.names, patterns)
    return found | {"busy_by_category_ns": {name: share * busy_ns / pieces for name, share in shares.items()}}


def gen_times(
    capture: Capture,
    facts: CaptureFacts,
    recorded_s: tuple[float, float] | None,
    launches: Launches,
    params: Params,
    concurrency: int,
) -> dict[str, Any] | None:
    """`decompose_token_time` of gen per decoded token, with `tokens`, how many those were, and `clipped`.

    `concurrency`: the run's requests in flight. `clipped`: no interval holds time in which gen's context was switched
    out. None for a capture without gen, or whose capture.json has no rate of gen.
    """
    rate = facts.profiled and facts.profiled.gen_tokens_per_s
    view = view_of(capture, facts, params, recorded_s)
    if not rate or "gen" not in view.workloads:
        return None
    alone = len(view.workloads) == 1
    tokens = tokens_of(_replays(view), rate * view.window_ns / 1e9, concurrency)
    found = decompose_token_time(view, "gen", launches, tokens)
    return found | {"tokens": tokens, "clipped": alone or not view.upper_bound}


def _replays(view: TraceWindow) -> float | None:
    rows = view.workloads["gen"].rows
    process = view.capture.kernels.process[rows]
    return replays(view.capture.kernels, rows[process == np.bincount(process).argmax()])


def _waiting(active: Active, gaps: intervals.Union, launches: Launches) -> tuple[Ints, np.ndarray]:
    """Of each gap the ns after its kernel's launch, and whether no launch is known. A gap at the end has no kernel:
    nothing was asked for that started, so all of it is the host's."""
    start = active.get("start_ns")
    order = np.argsort(start, kind="stable")
    place = np.searchsorted(start[order], gaps[1])
    ends_in_kernel = place < len(order)
    rows = order[np.minimum(place, len(order) - 1)]
    launched = launch_times(active, rows, launches)
    known = launched < NO_LAUNCH
    waiting = np.where(ends_in_kernel & known, gaps[1] - np.clip(launched, gaps[0], gaps[1]), 0)
    return waiting, ends_in_kernel & ~known


def launch_times(active: Active, rows: Ints, launches: Launches) -> Ints:
    """When the API call that launched each row of `active` began, ns; `NO_LAUNCH` where none is recorded.

    Of several calls with one correlation id (a runtime call and the driver call below it) the first counts.
    """
    asked = _keys(active.get("process")[rows], active.get("correlation")[rows])
    if not len(launches):
        return np.full(len(asked), NO_LAUNCH)
    keys = _keys(launches.process, launches.correlation)
    order = np.lexsort((launches.start_ns, keys))
    place = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    same = keys[order][place] == asked
    return np.where(same, launches.start_ns[order][place], NO_LAUNCH)


def _keys(process: np.ndarray, correlation: np.ndarray) -> Ints:
    # Correlation ids repeat across processes.
    return process.astype(np.int64) << 32 | correlation.astype(np.int64)


def _category_shares(active: Active, names: list[str], patterns: Patterns) -> dict[str, float]:
    kinds = [*categorise(names, patterns), OTHER, GRAPH]  # UNKNOWN, -1, is moved to the place before the last
    place = np.where(active.get("graph"), len(kinds) - 1, active.get("name"))
    place = np.where(place < 0, len(kinds) - 2, place)
    time_ns = np.bincount(place, active.active_ns, minlength=len(kinds))
    total = float(time_ns.sum())
    found: dict[str, float] = {}
    for kind, value in zip(kinds, time_ns.tolist(), strict=True):
        if value:
            found[kind] = found.get(kind, 0.0) + value / total
    return found
