"""One device, one window, gen and embed: what every question about a capture starts from.

Every interval is cut to the window and, where context switches tell it, to the time in which its process's own context
was on the device. `basis` says which of the two it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from colo_lib.analyse import intervals, residency
from colo_lib.errors import InputError
from colo_lib.traces import Capture, Copies, Device, Ints, Kernels, Union

RESIDENCY, INTERVALS = "residency", "kernel intervals"
LONGEST_S = 1e9
CONCURRENT = {"mps", "sm-partition", "mig", "none"}  # mechanisms under which no context is switched out


@dataclass(frozen=True)
class Active:
    """One workload on the device in the window.

    `rows`: places of its kernels and graph launches in `kernels`, those of the capture; `active_ns`: each one's time
    in the window and in residence; `busy`: their union; `span`: the union without residency, as the rows have it.
    """

    kernels: Kernels
    rows: Ints
    window: tuple[int, int]
    active_ns: Ints
    busy: Union
    span: Union
    resident: residency.Residency | None
    unmatched: bool = False  # switches were recorded, but no context holds this workload's kernels

    def get(self, column: str) -> Any:
        """A column of its rows; taken when asked for, since ten million rows of all columns need not be held twice."""
        return getattr(self.kernels, column)[self.rows]

    def intervals(self) -> tuple[Ints, Ints]:
        """Starts and ends cut to the window, as the rows have them."""
        return intervals.within(self.get("start_ns"), self.get("end_ns"), self.window)


@dataclass(frozen=True)
class View:
    """What is looked at. `others`: work of processes that are neither; it is in no number but its own."""

    capture: Capture
    device: Device
    device_place: int
    window: tuple[int, int]
    workloads: Mapping[str, Active]
    others: Union
    copies: Mapping[str, Copies]
    basis: str
    mechanism: str | None = None
    assignment: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def window_ns(self) -> int:
        """Length of the window."""
        return self.window[1] - self.window[0]

    @cached_property
    def busy(self) -> Union:
        """U(all kernels of all workloads)."""
        return intervals.join(intervals.none(), *(active.busy for active in self.workloads.values()))

    @property
    def upper_bound(self) -> bool:
        """Whether the overlap can only be said to be at most this: a context may have been switched out unseen."""
        return self.basis != RESIDENCY and self.mechanism not in CONCURRENT


def look(
    capture: Capture,
    assignment: Mapping[str, Sequence[int]],
    window_s: tuple[float, float] | None = None,
    device: int | None = None,
    mechanism: str | None = None,
) -> View:
    """Look at the workloads of `assignment` (places of processes) on one device.

    `window_s`: seconds on the capture's clock; None: from the first start to the last end of the workloads' kernels.
    `device`: a GPU's number; None: the one with most of gen's work, else of all. Raises InputError for a window that
    holds nothing or a device without work.
    """
    place = _device_place(capture, assignment, device)
    kernels = capture.kernels
    here = kernels.device == place
    member = {name: here & _of(kernels.process, places) for name, places in assignment.items()}
    window = _window(capture, np.logical_or.reduce(list(member.values())), window_s)
    touching = (kernels.start_ns < window[1]) & (kernels.end_ns >= window[0])
    contexts = residency.contexts(capture.switches)
    workloads = {}
    for name, rows in member.items():
        if rows.any():
            workloads[name] = _active(capture, rows, touching, window, place, contexts)
    others = here & touching & ~np.logical_or.reduce(list(member.values()))
    spans = intervals.union(*intervals.within(kernels.start_ns[others], kernels.end_ns[others], window))
    clipped = [active.resident is not None for active in workloads.values()]
    return View(
        capture=capture,
        device=capture.devices[place],
        device_place=place,
        window=window,
        workloads=workloads,
        others=spans,
        copies={name: _copies(capture, places, place, window) for name, places in assignment.items()},
        basis=RESIDENCY if clipped and all(clipped) else INTERVALS,
        mechanism=mechanism,
        assignment=assignment,
    )


def window_of(text: str) -> tuple[float, float] | None:
    """START_S:END_S as seconds, None where nothing is asked; raises InputError for anything else."""
    if not text.strip():
        return None
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise InputError(f"window {text!r}: write START_S:END_S, as in 4.0:4.5") from None
    if not (math.isfinite(start) and math.isfinite(end) and max(abs(start), abs(end)) < LONGEST_S):
        raise InputError(f"window {text!r}: no session is that long; give seconds after the session's start")
    return start, end


def _of(process: np.ndarray, places: Sequence[int]) -> np.ndarray:
    found = np.zeros(len(process), np.bool_)
    for place in places:
        found |= process == place
    return found


def _device_place(capture: Capture, assignment: Mapping[str, Sequence[int]], number: int | None) -> int:
    kernels = capture.kernels
    if number is not None:
        for place, device in enumerate(capture.devices):
            if device.number == number:
                return place
        there = ", ".join(str(item) for item in sorted(device.number for device in capture.devices))
        raise InputError(f"no work on device {number}; there is some on: {there}")
    if len(capture.devices) == 1 and len(kernels):
        return 0
    duration = (kernels.end_ns - kernels.start_ns).astype(np.float64)
    for name in assignment:
        rows = _of(kernels.process, assignment[name])
        if rows.any():
            return int(np.bincount(kernels.device[rows], duration[rows] + 1).argmax())
    raise InputError("the workloads launched no work in this capture")


def _window(capture: Capture, rows: np.ndarray, asked: tuple[float, float] | None) -> tuple[int, int]:
    kernels = capture.kernels
    if not rows.any():
        raise InputError("the workloads launched no work on this device")
    first, last = int(kernels.start_ns[rows].min()), int(kernels.end_ns[rows].max())
    if asked is None:
        if first == last:
            raise InputError("every kernel has the length 0: there is no window to look at")
        return first, last
    start, end = (round(second * 1e9) for second in asked)
    known = f"the workloads ran from {first / 1e9:.6f} to {last / 1e9:.6f} s"
    if end <= start:
        raise InputError(f"window {asked[0]:g}:{asked[1]:g} is empty or inverted; {known}")
    if end <= first or start >= last:
        raise InputError(f"window {asked[0]:g}:{asked[1]:g} holds no work; {known}")
    return start, end


def _active(
    capture: Capture,
    rows: np.ndarray,
    touching: np.ndarray,
    window: tuple[int, int],
    place: int,
    contexts: Mapping[tuple[int, int, int], Union],
) -> Active:
    """A workload's part; with several processes each is cut to its own context's residency."""
    kernels = capture.kernels
    found = _residencies(capture, rows, place, contexts)
    chosen = np.flatnonzero(rows & touching & ~_ends_at(kernels, window))
    start, end = intervals.within(kernels.start_ns[chosen], kernels.end_ns[chosen], window)
    active_ns, busy = end - start, []
    for process, resident in found.items():
        own = kernels.process[chosen] == process if len(found) > 1 else slice(None)
        spans = intervals.union(start[own], end[own])
        if resident is not None:
            active_ns[own] = intervals.covered(start[own], end[own], resident.spans)
            spans = intervals.intersect(spans, resident.spans)
        busy.append(spans)
    weakest = min((item for item in found.values() if item), key=lambda item: item.coverage, default=None)
    every = all(item is not None for item in found.values())
    return Active(
        kernels=kernels,
        rows=chosen,
        window=window,
        active_ns=active_ns,
        busy=busy[0] if len(busy) == 1 else intervals.join(*busy),
        span=busy[0] if len(busy) == 1 and not any(found.values()) else intervals.union(start, end),
        resident=weakest if every else None,
        unmatched=bool(contexts) and not every,
    )


def _ends_at(kernels: Kernels, window: tuple[int, int]) -> np.ndarray:
    """Kernels that ended just where the window begins: half-open, so they are not in it."""
    return (kernels.end_ns == window[0]) & (kernels.start_ns < window[0])


def _residencies(
    capture: Capture, rows: np.ndarray, place: int, contexts: Mapping[tuple[int, int, int], Union]
) -> dict[int, residency.Residency | None]:
    kernels, found = capture.kernels, {}
    for process in np.unique(kernels.process[rows]).tolist():
        who = capture.processes[process]
        starts = kernels.start_ns[rows & (kernels.process == process)] if contexts else kernels.start_ns[:0]
        number = residency.of_process(contexts, starts, who.session, place, who.pid)
        found[process] = number
    return found


def _copies(capture: Capture, places: Sequence[int], device: int, window: tuple[int, int]) -> Copies:
    copies = capture.copies
    rows = _of(copies.process, places) & (copies.device == device)
    rows &= (copies.start_ns < window[1]) & (copies.end_ns > window[0])
    return copies.take(np.flatnonzero(rows))
