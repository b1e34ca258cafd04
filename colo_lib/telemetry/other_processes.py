"""What other processes do beside a run: on its GPUs, as the sampler tells on each change, and to the cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

ANOTHER_NAMESPACE = "NVML names processes that are not here and none of ours: its PID namespace is the host's"


@dataclass(frozen=True)
class OtherProcess:
    """A process that is not the run's, with its name and user in words."""

    pid: int
    name: str


@dataclass(frozen=True)
class Seen:
    """Who computed beside the run from `t_ns` on; `unknown` says why, where NVML's pids mean nothing here."""

    t_ns: int
    strangers: tuple[OtherProcess, ...]
    unknown: str | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Seen:
        """As it was before it became a line of the sampler's file."""
        return cls(
            plain["t_ns"], tuple(OtherProcess(**process) for process in plain["strangers"]), plain.get("unknown")
        )


@dataclass
class OtherProcesses:
    """Knows the run's processes by their descent from `owner_pid`, which keeps the engines and the MPS daemon."""

    owner_pid: int
    ours: set[int] = field(default_factory=set)
    named: dict[int, str] = field(default_factory=dict)
    now: frozenset[int] = frozenset()

    def look(self, pids: Iterable[int], t_ns: int) -> Seen | None:
        """Who is there, when that has changed, else None."""
        there = set(pids)
        self.ours |= {pid for pid in there - self.ours - set(self.named) if self._descends(pid)}
        strangers = frozenset(there - self.ours)
        if strangers == self.now:
            return None
        self.now = strangers
        for pid in strangers:
            self.named.setdefault(pid, process_in_words(pid))
        listed = tuple(OtherProcess(pid, self.named[pid]) for pid in sorted(strangers))
        elsewhere = not (there & self.ours) and not any(psutil.pid_exists(pid) for pid in strangers)
        return Seen(t_ns, listed, ANOTHER_NAMESPACE if strangers and elsewhere else None)

    def _descends(self, pid: int) -> bool:
        try:
            return pid == self.owner_pid or any(
                parent.pid == self.owner_pid for parent in psutil.Process(pid).parents()
            )
        except psutil.Error:
            return False


def process_in_words(pid: int) -> str:
    """Name and user of a process, or that it cannot be seen from here."""
    try:
        process = psutil.Process(pid)
        return f"{process.name()} of {process.username()}"
    except (psutil.Error, KeyError):
        return "not visible here"


def in_window(lines: list[Seen], start_ns: int, end_ns: int) -> list[OtherProcess]:
    """Strangers that were there at any time in [start_ns, end_ns), each once; pids that mean nothing here left out."""
    present: dict[int, OtherProcess] = {}
    ends_ns = [line.t_ns for line in lines[1:]] + [end_ns]
    for line, until_ns in zip(lines, ends_ns, strict=False):
        if line.t_ns < end_ns and until_ns > start_ns and line.unknown is None:
            present |= {process.pid: process for process in line.strangers}
    return [present[pid] for pid in sorted(present)]


def busy_cpu_s() -> float:
    """Seconds of CPU that all processes together have used since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def trees_cpu_s(roots: list[int]) -> dict[int, float]:
    """Seconds of CPU used so far by each process of these trees, by pid."""
    used: dict[int, float] = {}
    for root in {*roots, os.getpid()}:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root)
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = member.cpu_times()
                    used[member.pid] = times.user + times.system
    return used


class OtherProcessesMeter:
    """Cores that processes outside our trees used between `start` and `stop`."""

    def __init__(self, roots: list[int]) -> None:
        self.roots = roots

    def start(self, now_s: float) -> None:
        """Take the first reading at monotonic time `now_s`."""
        self.began_s, self.busy_s, self.trees_s = now_s, busy_cpu_s(), trees_cpu_s(self.roots)

    def stop(self, now_s: float) -> float:
        """Cores used by strangers on average; never negative."""
        busy_s, after = busy_cpu_s() - self.busy_s, trees_cpu_s(self.roots)
        trees_s = sum(total - self.trees_s.get(pid, 0.0) for pid, total in after.items())
        return max(0.0, (busy_s - trees_s) / max(1e-9, now_s - self.began_s))
