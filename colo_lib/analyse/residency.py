"""Which times a process's own context was on the device, from context switches.

A kernel's [start, end) goes on while its context is switched out, so under time-slicing plain intervals of two
processes overlap although they never ran at once. Switch rows carry the pids that the kernel driver sees, which in a
container are not those of the kernels: a context is therefore given to a process by the kernels that start inside it,
since work starts only while its own context is resident. Under MPS all clients start inside the server's context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from colo_lib.analyse import intervals
from colo_lib.traces import Capture, Ints, Switches, Union

LEAST_COVERAGE = 0.9  # of a process's kernels must start inside a context for it to be theirs


@dataclass(frozen=True)
class Residency:
    """A process's spans on one device. `coverage`: the share of its kernels that start inside."""

    spans: Union
    coverage: float
    host_pid: int


def contexts(switches: Switches) -> Mapping[tuple[int, int, int], Union]:
    """(session, device, host pid) -> the spans in which a context of that process was resident.

    A context that leaves without having come was there from the start; one that never leaves stays to the end.
    """
    found: dict[tuple[int, int, int], list[Union]] = {}
    keys = np.stack([switches.session, switches.device, switches.host_pid, switches.context], axis=1)
    for key in np.unique(keys, axis=0) if len(keys) else []:
        rows = np.flatnonzero((keys == key).all(axis=1))
        rows = rows[np.argsort(switches.t_ns[rows], kind="stable")]
        spans = _spans(switches.t_ns[rows], switches.opens[rows])
        found.setdefault((int(key[0]), int(key[1]), int(key[2])), []).append(spans)
    return {key: intervals.join(*spans) for key, spans in found.items()}


def _spans(t_ns: Ints, opens: np.ndarray) -> Union:
    # Of several openings in a row the first holds, of several leavings the first too.
    kept = np.concatenate(([True], opens[1:] != opens[:-1]))
    t_ns, opens = t_ns[kept], opens[kept]
    starts, ends = t_ns[opens], t_ns[~opens]
    if not opens[0]:
        starts = np.concatenate(([-intervals.EVER], starts))
    if opens[-1]:
        ends = np.concatenate((ends, [intervals.EVER]))
    return intervals.union(starts, ends)


def of_process(
    found: Mapping[tuple[int, int, int], Union], starts_ns: Ints, session: int, device: int, pid: int
) -> Residency | None:
    """The residency of the process whose kernels start at `starts_ns`, or None where no context holds them.

    Among contexts that hold them equally well, one of the process's own pid and device is preferred.
    """
    best: tuple[float, bool, bool] = (0.0, False, False)
    chosen = None
    for (of_session, of_device, host_pid), spans in sorted(found.items()):
        if of_session != session or not len(starts_ns):
            continue
        place = np.searchsorted(spans[0], starts_ns, side="right") - 1
        inside = (place >= 0) & (starts_ns < spans[1][np.maximum(place, 0)])
        rank = (round(float(inside.mean()), 3), host_pid == pid, of_device == device)
        if rank[0] >= LEAST_COVERAGE and rank > best:
            best, chosen = rank, Residency(spans, float(inside.mean()), host_pid)
    return chosen


def host_pids(capture: Capture, pids: set[int]) -> set[int]:
    """Pids under which the kernel driver knows the contexts of processes `pids` (under MPS: the server's)."""
    found: set[int] = set()
    known, kernels = contexts(capture.switches), capture.kernels
    for place, process in enumerate(capture.processes):
        own = kernels.process == place
        if process.pid not in pids or not own.any():
            continue
        for device in np.unique(kernels.device[own]).tolist():
            starts = kernels.start_ns[own & (kernels.device == device)]
            match = of_process(known, starts, process.session, device, process.pid)
            found |= {match.host_pid} if match else set()
    return found
