"""Who computes on the run's GPUs and is not the run's: told by the sampler whenever that changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psutil

ANOTHER_NAMESPACE = "NVML names processes that are not here and none of ours: its PID namespace is the host's"


@dataclass
class Strangers:
    """Knows the run's processes by their descent from `owner_pid`, which keeps the engines and the MPS daemon."""

    owner_pid: int
    ours: set[int] = field(default_factory=set)
    named: dict[int, str] = field(default_factory=dict)
    now: frozenset[int] = frozenset()

    def look(self, pids: Iterable[int], t_ns: int) -> dict[str, Any] | None:
        """A line for the sampler's file when who is there has changed, else None.

        `{"t_ns", "strangers": [{"pid", "name"}]}`; `unknown` is set where NVML's pids mean nothing here.
        """
        there = set(pids)
        self.ours |= {pid for pid in there - self.ours - set(self.named) if self._descends(pid)}
        strangers = frozenset(there - self.ours)
        if strangers == self.now:
            return None
        self.now = strangers
        for pid in strangers:
            self.named.setdefault(pid, name_of(pid))
        told = [{"pid": pid, "name": self.named[pid]} for pid in sorted(strangers)]
        line: dict[str, Any] = {"t_ns": t_ns, "strangers": told}
        elsewhere = not (there & self.ours) and not any(psutil.pid_exists(pid) for pid in strangers)
        return line | ({"unknown": ANOTHER_NAMESPACE} if strangers and elsewhere else {})

    def _descends(self, pid: int) -> bool:
        try:
            return pid == self.owner_pid or any(one.pid == self.owner_pid for one in psutil.Process(pid).parents())
        except psutil.Error:
            return False


def name_of(pid: int) -> str:
    """Name and user of a process, or that it cannot be seen from here."""
    try:
        process = psutil.Process(pid)
        return f"{process.name()} of {process.username()}"
    except (psutil.Error, KeyError):
        return "not visible here"


def in_window(lines: list[dict[str, Any]], start_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Strangers that were there at any time in [start_ns, end_ns), each once; pids that mean nothing here left out."""
    found: dict[int, dict[str, Any]] = {}
    ends_ns = [line["t_ns"] for line in lines[1:]] + [end_ns]
    for line, until_ns in zip(lines, ends_ns, strict=False):
        if line["t_ns"] < end_ns and until_ns > start_ns and "unknown" not in line:
            found |= {one["pid"]: one for one in line["strangers"]}
    return [found[pid] for pid in sorted(found)]
