"""Which times a process's own context was on the device, from context switches; and what a figure rests on.

A kernel's [start, end) goes on while its context is switched out, so under time-slicing plain intervals of two
processes overlap although they never ran at once. Switch rows carry the pids that the kernel driver sees, which in a
container are not those of the kernels: a context is therefore given to a process by the kernels that start inside it,
since work starts only while its own context is resident. Under MPS all clients start inside the server's context.

What cannot be given to a process on a device is nobody's residency: rows without a process or a GPU, contexts of other
GPUs, contexts of which a row cannot be read.

The basis of a figure is decided here for `colo trace`, notebooks, pages and the verdict. `residency`: every interval is
cut to the time in which its process's own context was on the device. Else `kernel intervals`, as recorded: then a
context may have been switched out unseen, and an overlap is an upper bound, unless the mechanism is one under which no
context of the two is ever switched out for the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.steps import MECHANISMS, WORKLOADS
from colo_lib.trace import UNKNOWN, Capture, Ints, Switches, Union

LEAST_COVERAGE = 0.9  # of a process's kernels must start inside a context for it to be theirs
MOST_ASTRAY = 0.01  # of a process's kernels may start outside its context while one of nobody is resident
Place = tuple[int, int]  # session, device


@dataclass(frozen=True)
class Residency:
    """A process's spans on one device. `coverage`: the share of its kernels that start inside."""

    spans: Union
    coverage: float
    host_pid: int


@dataclass(frozen=True)
class Contexts:
    """Whose context was resident when, as far as the switches tell it.

    `spans`: (session, device, host pid) -> spans. `broken`: those of `spans` that lack switches, since some row of
    their context names no process or cannot be read. `nobodys`: (session, device) -> spans of contexts that no row
    gives to a process. `nameless` and `rows`: how many rows of a session's device name no process, and how many there
    are. `astray`: sessions in which rows do not say on which GPU.
    """

    spans: Mapping[tuple[int, int, int], Union] = field(default_factory=dict)
    broken: frozenset[tuple[int, int, int]] = frozenset()
    nobodys: Mapping[Place, Union] = field(default_factory=dict)
    nameless: Mapping[Place, int] = field(default_factory=dict)
    rows: Mapping[Place, int] = field(default_factory=dict)
    astray: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rows)


def contexts(switches: Switches) -> Contexts:
    """The contexts of all sessions and devices.

    One that leaves without having come was there from the start; one that never leaves stays to the end.
    """
    named: dict[tuple[int, int, int], list[Union]] = {}
    nobodys: dict[Place, list[Union]] = {}
    broken: set[tuple[int, int, int]] = set()
    nameless: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    astray = set()
    for (session, device, _), rows in _grouped(switches.session, switches.device, switches.context):
        place = int(session), int(device)
        known = switches.host_pid[rows] != UNKNOWN
        readable = switches.readable[rows]
        counts[place] = counts.get(place, 0) + len(rows)
        nameless[place] = nameless.get(place, 0) + int((~known).sum())
        if device == UNKNOWN:
            astray.add(place[0])
            continue
        pids = np.unique(switches.host_pid[rows][known]).tolist()
        if not pids:
            spans = _spans(switches, rows[readable])
            nobodys.setdefault(place, []).append(spans if readable.all() else _always())
        for pid in pids:
            key = (*place, int(pid))
            of_pid = rows[readable & (switches.host_pid[rows] == pid)]
            named.setdefault(key, []).append(_spans(switches, of_pid))
            if not (known.all() and readable.all()):
                broken.add(key)
    return Contexts(
        spans={key: intervals.join(*spans) for key, spans in named.items()},
        broken=frozenset(broken),
        nobodys={place: intervals.join(*spans) for place, spans in nobodys.items()},
        nameless=nameless,
        rows=counts,
        astray=frozenset(astray),
    )


def _grouped(*keys: np.ndarray) -> Iterator[tuple[tuple[int, ...], Ints]]:
    """Each combination of keys that there is, and its rows in order."""
    order = np.lexsort(keys[::-1])
    if not len(order):
        return
    table = np.stack([key[order].astype(np.int64) for key in keys], axis=1)
    edges = np.flatnonzero((table[1:] != table[:-1]).any(axis=1)) + 1
    for rows in np.split(np.arange(len(order)), edges):
        yield tuple(table[rows[0]].tolist()), np.sort(order[rows])


def _always() -> Union:
    return np.array([-intervals.EVER]), np.array([intervals.EVER])


def _spans(switches: Switches, rows: Ints) -> Union:
    """The spans of one context; of several openings in a row the first holds, of several leavings the first too."""
    rows = rows[np.argsort(switches.t_ns[rows], kind="stable")]
    t_ns, opens = switches.t_ns[rows], switches.opens[rows]
    if not len(rows):
        return intervals.none()
    kept = np.concatenate(([True], opens[1:] != opens[:-1]))
    t_ns, opens = t_ns[kept], opens[kept]
    starts, ends = t_ns[opens], t_ns[~opens]
    if not opens[0]:
        starts = np.concatenate(([-intervals.EVER], starts))
    if opens[-1]:
        ends = np.concatenate((ends, [intervals.EVER]))
    return intervals.union(starts, ends)


def of_process(known: Contexts, starts_ns: Ints, session: int, device: int, pid: int) -> tuple[Residency | None, str]:
    """The residency on a device of the process whose kernels start there at `starts_ns`; else None, and why.

    A context of the process's own pid is its own; where it has none on any device, the one that holds its kernels.
    """
    place = session, device
    if session in known.astray:
        return None, "context switches do not say on which GPU they were"
    of_its_pid = [key for key in known.spans if key[0] == session and key[2] == pid]
    there = [key for key in (of_its_pid or known.spans) if key[:2] == place]
    held = {key: _inside(known.spans[key], starts_ns) for key in sorted(there)}
    best = max(held, key=lambda key: float(held[key].mean()) if len(starts_ns) else 0.0, default=None)
    nameless = known.nameless.get(place, 0)
    nobodys = f"{nameless:,} of {known.rows.get(place, 0):,} context switches on this device name no process"
    unread = nobodys if nameless else "a context switch of its context cannot be read"
    if best is None or (len(starts_ns) and held[best].mean() < LEAST_COVERAGE):
        doubtful = nameless or any(key in known.broken for key in there)
        return None, unread if doubtful else "no context on this device holds its kernels"
    if not of_its_pid and not len(starts_ns):
        return None, "nothing tells which context is its own"
    if best in known.broken:
        return None, unread
    outside = ~held[best]
    if place in known.nobodys and len(starts_ns):
        outside = outside & _inside(known.nobodys[place], starts_ns)
        if outside.mean() > MOST_ASTRAY:
            return None, nobodys
    coverage = float(held[best].mean()) if len(starts_ns) else 1.0
    return Residency(known.spans[best], coverage, best[2]), ""


def _inside(spans: Union, t_ns: Ints) -> np.ndarray:
    if not len(spans[0]):
        return np.zeros(len(t_ns), np.bool_)
    place = np.searchsorted(spans[0], t_ns, side="right") - 1
    return np.asarray((place >= 0) & (t_ns < spans[1][np.maximum(place, 0)]), np.bool_)


def host_pids(capture: Capture, pids: set[int]) -> set[int]:
    """Pids under which the kernel driver knows the contexts of processes `pids` (under MPS: the server's)."""
    of_driver: set[int] = set()
    known, kernels = contexts(capture.switches), capture.kernels
    for place, process in enumerate(capture.processes):
        its_kernels = kernels.process == place
        if process.pid not in pids or not its_kernels.any():
            continue
        for device in np.unique(kernels.device[its_kernels]).tolist():
            starts = kernels.start_ns[its_kernels & (kernels.device == device)]
            match, _ = of_process(known, starts, process.session, device, process.pid)
            of_driver |= {match.host_pid} if match else set()
    return of_driver


RESIDENCY, INTERVALS = "residency", "kernel intervals"
# Mechanisms under which no context is switched out for the other workload's; "none": a workload alone on its device.
CONCURRENT = {row.id for row in MECHANISMS.values() if row.concurrent}
ALONE, TIME_SLICED = "none", "time-sliced"
Matches = Mapping[int, tuple[Residency | None, str]]  # process -> its residency, else why it has none


@dataclass(frozen=True)
class Basis:
    """`name`: RESIDENCY or INTERVALS. `upper_bound`: an overlap can only be said to be at most this. `reason`: why it
    is not residency, empty where it is.
    """

    name: str
    upper_bound: bool
    reason: str = ""

    @property
    def words(self) -> str:
        """The basis as captions and tables name it."""
        return self.name + (", an upper bound" if self.upper_bound else "")


def decide_basis(matches: Mapping[str, Matches], recorded: bool, mechanism: str | None) -> Basis:
    """The basis of a device and window in which the workloads of `matches` ran.

    `recorded`: whether there are any context switches. `mechanism`: how the two shared the GPU, None where unknown.
    """
    reason = _doubt(matches, mechanism) if recorded else "no context switches were recorded"
    if not reason and matches:
        return Basis(RESIDENCY, False)
    bounded = mechanism in CONCURRENT or len(matches) < 2
    return Basis(INTERVALS, not bounded, reason)


def _doubt(matches: Mapping[str, Matches], mechanism: str | None) -> str:
    reasons = []
    for workload, residencies in matches.items():
        for _, why in residencies.values():
            if why and f"{WORKLOADS[workload]}: {why}" not in reasons:
                reasons.append(f"{WORKLOADS[workload]}: {why}")
    if reasons:
        return "; ".join(reasons)
    holders = [{item.host_pid for item, _ in residencies.values() if item} for residencies in matches.values()]
    if mechanism == TIME_SLICED and len(holders) > 1 and set.intersection(*holders):
        return "one context holds the kernels of both, which cannot be while they take turns"
    return ""
