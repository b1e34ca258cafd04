"""Orders to a process of ours over its Unix socket: one JSON line there, one JSON line back."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

ORDER_TIMEOUT_S = 130.0


@dataclass(frozen=True)
class Handle:
    """How to reach a process from any other process of this run."""

    socket: str
    pid: int
    log: str


def order(handle: Handle, do: str, timeout_s: float = ORDER_TIMEOUT_S, **more: Any) -> dict[str, Any]:
    """One order, one answer. Raises OSError when the process cannot be reached or is silent."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(handle.socket)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps({"do": do, **more}) + "\n")
            stream.flush()
            line = stream.readline()
    if not line:
        raise OSError(f"process {handle.pid} hung up on the order {do!r}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def answers(handle: Handle) -> bool:
    """Whether it answers a status order within seconds."""
    with suppress(OSError):
        return bool(order(handle, "status", timeout_s=5.0))
    return False
