"""How much of the machine somebody else used during a window."""

from __future__ import annotations

import contextlib
import os

import psutil


def busy_cpu_s() -> float:
    """Seconds of CPU that all processes together have used since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def own_cpu_s(roots: list[int]) -> dict[int, float]:
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


class StrangerMeter:
    """Cores that processes outside our trees used between `start` and `stop`."""

    def __init__(self, roots: list[int]) -> None:
        self.roots = roots

    def start(self, now_s: float) -> None:
        """Take the first reading at monotonic time `now_s`."""
        self.began_s, self.busy_s, self.own_s = now_s, busy_cpu_s(), own_cpu_s(self.roots)

    def stop(self, now_s: float) -> float:
        """Cores used by strangers on average; never negative."""
        busy_s, after = busy_cpu_s() - self.busy_s, own_cpu_s(self.roots)
        own_s = sum(total - self.own_s.get(pid, 0.0) for pid, total in after.items())
        return max(0.0, (busy_s - own_s) / max(1e-9, now_s - self.began_s))
