"""What every mechanism offers its owner, and what a proof is told about the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from colo_lib.params import Params

# A process's start time is read in clock ticks: two readings of the same process differ by less than this.
SAME_START_S = 0.5


@dataclass(frozen=True)
class Tenants:
    """The engines' processes: root pids by workload, and on how many GPUs each root computes."""

    pids: Mapping[str, Sequence[int]]
    gpus_each: Mapping[str, int]

    def trees(self) -> dict[str, list[list[int]]]:
        """Living pids of each root's tree, the root first, by workload."""
        return {name: [tree(root) for root in roots] for name, roots in self.pids.items()}


class Mechanism:
    """The owner's side: exists from before the engines start until after they have ended."""

    name: str

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """Additions to the environment of the `number`-th process of a workload."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Plain values from which any process of the run can prove that the mechanism is in force.

        `mechanism` is its name, `witness` the proof that applies (`mps`, `time-sliced`, `mig`).
        """
        raise NotImplementedError

    def adjusted(self, params: Params) -> Params:
        """The parameters that the engines are started with."""
        return params

    def change(self, params: Params) -> None:
        """Take other limits for the embedding processes that are started next; those that run keep theirs.

        Raises StepFailed when they cannot be had.
        """

    def embed_job(self) -> dict[str, Any]:
        """Additions to the embedding process's job."""
        return {}

    def close(self) -> None:
        """End it; nothing of it lives or lies about afterwards. Raises StepFailed for what even SIGKILL leaves."""


def tree(root: int) -> list[int]:
    """Pids of a process and everything below it; empty when it is gone."""
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def identity(pid: int) -> list[float] | None:
    """[pid, start time]: names a process once and for all, also after its pid was given to another; None when gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return [pid, process.create_time()]
    except psutil.NoSuchProcess:
        return None


def lives(who: Sequence[float]) -> bool:
    """Whether the process that `identity` named still runs."""
    now = identity(int(who[0]))
    return now is not None and abs(now[1] - who[1]) < SAME_START_S
