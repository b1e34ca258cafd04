"""What a figure of a capture rests on, decided in one place for `colo trace`, notebooks, pages and the verdict.

`residency`: every interval is cut to the time in which its process's own context was on the device. Else `kernel
intervals`, as recorded: then a context may have been switched out unseen, and an overlap is an upper bound, unless the
mechanism is one under which no context of the two is ever switched out for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colo_lib.analysis.trace.residency import Residency

RESIDENCY, INTERVALS = "residency", "kernel intervals"
# Mechanisms under which no context is switched out for the other workload's; "none": a workload alone on its device.
CONCURRENT = {"mps", "sm-partition", "mig"}
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
    for workload, own in matches.items():
        for _, why in own.values():
            if why and f"{workload}: {why}" not in reasons:
                reasons.append(f"{workload}: {why}")
    if reasons:
        return "; ".join(reasons)
    holders = [{item.host_pid for item, _ in own.values() if item} for own in matches.values()]
    if mechanism == TIME_SLICED and len(holders) > 1 and set.intersection(*holders):
        return "one context holds the kernels of both, which cannot be while they take turns"
    return ""
