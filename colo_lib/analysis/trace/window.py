"""One device, one window, gen and embed: what every question about a capture starts from.

Every interval is cut to the window and, where context switches tell it, to the time in which its process's own context
was on the device. `basis` says which of the two it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from colo_lib.analysis.trace import intervals as trace_intervals
from colo_lib.analysis.trace import residency
from colo_lib.analysis.trace.processes import WORKLOADS, assign, launchers
from colo_lib.analysis.trace.residency import RESIDENCY, Basis, decide_basis
from colo_lib.errors import InputError
from colo_lib.trace import Bools, Capture, Copies, Device, Ints, Kernels, Union

if TYPE_CHECKING:
    from colo_lib.params import Params
    from colo_lib.records import CaptureFacts

LONGEST_S = 1e9


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

    def get(self, column: str) -> Any:
        """A column of its rows; taken when asked for, since ten million rows of all columns need not be held twice."""
        return getattr(self.kernels, column)[self.rows]

    def intervals(self) -> tuple[Ints, Ints]:
        """Starts and ends cut to the window, as the rows have them."""
        return trace_intervals.within(self.get("start_ns"), self.get("end_ns"), self.window)


@dataclass(frozen=True)
class Moved:
    """Memory copies and sets of a workload that touch the window: time in it and in residence, and their union."""

    rows: Copies
    active_ns: Ints
    busy: Union

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TraceWindow:
    """What is looked at. `workloads`: those with a kernel in the window. `others`: work of processes that are neither;
    it is in no number but its own. `decided`: what the figures rest on.
    """

    capture: Capture
    device: Device
    device_place: int
    window: tuple[int, int]
    workloads: Mapping[str, Active]
    others: Union
    copies: Mapping[str, Moved]
    decided: Basis
    mechanism: str | None = None
    assignment: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def window_ns(self) -> int:
        """Length of the window."""
        return self.window[1] - self.window[0]

    @cached_property
    def busy(self) -> Union:
        """U(all kernels of all workloads)."""
        return trace_intervals.join(trace_intervals.none(), *(active.busy for active in self.workloads.values()))

    @property
    def basis(self) -> str:
        """`residency.RESIDENCY` or `residency.INTERVALS`."""
        return self.decided.name

    @property
    def basis_words(self) -> str:
        """The basis for a caption; says where it makes an overlap an upper bound."""
        return self.decided.words

    @property
    def upper_bound(self) -> bool:
        """Whether the overlap can only be said to be at most this: a context may have been switched out unseen."""
        return self.decided.upper_bound

    def absent(self) -> dict[str, str]:
        """Workload -> why it has no number here, for each of `assignment` that ran no kernel in the window."""
        kernels = self.capture.kernels
        reasons = {}
        for name in [name for name in self.assignment if name not in self.workloads]:
            here = (kernels.device == self.device_place) & _of(kernels.process, self.assignment[name])
            where = "in this window" if here.any() else "on this device"
            reasons[name] = f"ran no kernel {where}"
        return reasons


def look(
    capture: Capture,
    assignment: Mapping[str, Sequence[int]],
    window_s: tuple[float, float] | None = None,
    device: int | None = None,
    mechanism: str | None = None,
) -> TraceWindow:
    """Look at the workloads of `assignment` (places of processes) on one device.

    `window_s`: seconds on the capture's clock; None: from the first start to the last end of the workloads' kernels.
    `device`: a GPU's number; None: of those on which every workload ran the one with most of gen's work, else the one
    with most of it. Raises InputError for a window outside all work or a device without work.
    """
    place = _device_place(capture, assignment, device)
    kernels = capture.kernels
    here = kernels.device == place
    member = {name: here & _of(kernels.process, places) for name, places in assignment.items()}
    of_any = np.logical_or.reduce(list(member.values()))
    window = _window(capture, of_any, window_s)
    touching = _touching(kernels, window)
    touched = {name: np.flatnonzero(rows & touching) for name, rows in member.items()}
    touched = {name: rows for name, rows in touched.items() if len(rows)}
    holders = _Holders(capture, place)
    matches = {
        name: {process: holders.of(process) for process in np.unique(kernels.process[rows]).tolist()}
        for name, rows in touched.items()
    }
    decided = decide_basis(matches, bool(holders.contexts), mechanism)
    cut = _Cut(window, holders if decided.name == RESIDENCY else None)
    others = np.flatnonzero(here & touching & ~of_any)
    return TraceWindow(
        capture=capture,
        device=capture.devices[place],
        device_place=place,
        window=window,
        workloads={name: _active(kernels, rows, cut) for name, rows in touched.items()},
        others=cut(kernels.start_ns[others], kernels.end_ns[others], kernels.process[others])[1],
        copies={name: _copies(capture, places, place, cut) for name, places in assignment.items()},
        decided=decided,
        mechanism=mechanism,
        assignment=assignment,
    )


@dataclass(frozen=True)
class Asked:
    """What somebody asks to look at: processes of gen and of embed (pids or names, by comma) and START_S:END_S.

    Empty: as the capture's record says, else the likely processes and all of it.
    """

    gen: str = ""
    embed: str = ""
    window: str = ""

    @classmethod
    def of(cls, params: Params) -> Asked:
        """What the parameters ask for."""
        return cls(params.trace_gen, params.trace_embed, params.trace_window)


def view_of(
    capture: Capture, facts: CaptureFacts, asked: Asked, recorded_s: tuple[float, float] | None = None
) -> TraceWindow:
    """Look at `capture`, whose capture.json says `facts`.

    Where no window is asked for it is the recorded one of steady state, `recorded_s`, if there is one.
    """
    window_s = window_of(asked.window) or recorded_s
    return looked_at(capture, facts, {"gen": asked.gen, "embed": asked.embed}, window_s)[0]


def looked_at(
    capture: Capture,
    facts: CaptureFacts,
    asked: Mapping[str, str],
    window_s: tuple[float, float] | None = None,
    device: int | None = None,
    mechanism: str | None = None,
) -> tuple[TraceWindow, bool]:
    """Look at `capture`, and whether a workload's processes were guessed.

    What is not asked for is as `facts`, its capture.json, says: the processes of a workload and the mechanism. A
    workload of which no recorded process launched a kernel is idle, whoever else did.
    """
    asked, recorded, idle = dict(asked), dict[str, Sequence[object]](facts.pids or {}), []
    # Whoever lives in a process of the other's is known by its threads.
    recorded |= {name: [f"{pid}:{tid}" for pid, tid in pairs] for name, pairs in (facts.threads or {}).items()}
    there = [item.process for item in launchers(capture)]
    launched = {str(process.pid) for process in there if process.thread is None} | {process.label for process in there}
    for workload in WORKLOADS:
        if not asked.get(workload, "").strip() and recorded.get(workload):
            # The recorded pids are a whole process tree, of which some launched work.
            its_pids = [str(pid) for pid in recorded[workload] if str(pid) in launched]
            asked[workload] = ",".join(its_pids)
            idle += [] if its_pids else [workload]
    assignment, guessed = assign(capture, asked, idle)
    return look(capture, assignment, window_s, device, mechanism or facts.mechanism), guessed


def views_alone(
    captures: Mapping[str, tuple[Capture, CaptureFacts, tuple[float, float] | None]],
) -> dict[str, TraceWindow]:
    """Workload -> the view of a capture in which it ran alone; a key that is no workload stands for the likely one."""
    windows = {}
    for name, (capture, facts, window_s) in captures.items():
        likely, _ = assign(capture, {})
        places = sorted({place for places_of in likely.values() for place in places_of})
        workload = name if name in WORKLOADS else next(iter(likely))
        windows[workload] = look(capture, {workload: places}, window_s, mechanism=facts.mechanism)
    return windows


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
    member = np.zeros(len(process), np.bool_)
    for place in places:
        member |= process == place
    return member


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
    work = []
    for places in assignment.values():
        rows = _of(kernels.process, places)
        if rows.any():
            work.append(np.bincount(kernels.device[rows], duration[rows] + 1, len(capture.devices)))
    if not work:
        raise InputError("the workloads launched no work in this capture")
    shared = np.logical_and.reduce([by_device > 0 for by_device in work])
    most = np.where(shared, work[0], 0) if shared.any() else work[0]
    # Of equals the lowest number, whatever the order in which the exports were given.
    return max(range(len(most)), key=lambda place: (most[place], -capture.devices[place].number))


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


def _touching(kernels: Kernels | Copies, window: tuple[int, int]) -> Bools:
    """Rows in the window, those without length too; half-open, so not those that ended where it begins."""
    inside = (kernels.start_ns < window[1]) & (kernels.end_ns >= window[0])
    return np.asarray(inside & ~((kernels.end_ns == window[0]) & (kernels.start_ns < window[0])), np.bool_)


class _Holders:
    """The residency of each process on one device, looked for once."""

    def __init__(self, capture: Capture, place: int) -> None:
        self.contexts = residency.contexts(capture.switches)
        self.capture, self.place = capture, place
        self.residencies: dict[int, tuple[residency.Residency | None, str]] = {}

    def of(self, process: int) -> tuple[residency.Residency | None, str]:
        """The residency of the process at that place in the capture's list, else why there is none."""
        if process not in self.residencies:
            who = self.capture.processes[process]
            starts = self._starts(self.capture.kernels, process)
            starts = starts if len(starts) else self._starts(self.capture.copies, process)
            self.residencies[process] = residency.of_process(self.contexts, starts, who.session, self.place, who.pid)
        return self.residencies[process]

    def _starts(self, rows: Kernels | Copies, process: int) -> Ints:
        if not self.contexts:
            return rows.start_ns[:0]
        return rows.start_ns[(rows.process == process) & (rows.device == self.place)]


class _Cut:
    """Cuts rows to the window and, with `holders`, each to the residency of its process where that is known."""

    def __init__(self, window: tuple[int, int], holders: _Holders | None) -> None:
        self.window, self.holders = window, holders

    def __call__(self, start_ns: Ints, end_ns: Ints, process: np.ndarray) -> tuple[Ints, Union]:
        """Each row's time that is left, and the union of what is left."""
        start, end = trace_intervals.within(start_ns, end_ns, self.window)
        if self.holders is None:
            return end - start, trace_intervals.union(start, end)
        left_ns, unions = end - start, [trace_intervals.none()]
        places = np.unique(process).tolist()
        for place in places:
            of_process = process == place if len(places) > 1 else slice(None)
            spans = trace_intervals.union(start[of_process], end[of_process])
            resident, _ = self.holders.of(place)
            if resident is not None:
                left_ns[of_process] = trace_intervals.covered(start[of_process], end[of_process], resident.spans)
                spans = trace_intervals.intersect(spans, resident.spans)
            unions.append(spans)
        return left_ns, unions[1] if len(unions) == 2 else trace_intervals.join(*unions)


def _active(kernels: Kernels, rows: Ints, cut: _Cut) -> Active:
    start, end = kernels.start_ns[rows], kernels.end_ns[rows]
    active_ns, busy = cut(start, end, kernels.process[rows])
    span = busy if cut.holders is None else trace_intervals.union(*trace_intervals.within(start, end, cut.window))
    return Active(kernels=kernels, rows=rows, window=cut.window, active_ns=active_ns, busy=busy, span=span)


def _copies(capture: Capture, places: Sequence[int], device: int, cut: _Cut) -> Moved:
    copies = capture.copies
    rows = _of(copies.process, places) & (copies.device == device) & _touching(copies, cut.window)
    taken = copies.take(np.flatnonzero(rows))
    return Moved(taken, *cut(taken.start_ns, taken.end_ns, taken.process))
