"""What the launcher's tests ask of the system: who lives, and who carries a token of ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

from colo_lib.launch.child import TOKEN_NAME

MARK = "COLO_MARK"


def pids() -> set[int]:
    """Every process of this machine."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def token_carriers(passed_over: Collection[int] = ()) -> dict[int, str]:
    """Living processes that these tests started under any guardian: pid to command line."""
    mark = f"\0{MARK}={os.environ[MARK]}\0".encode()
    found = {}
    for name in pids() - {os.getpid(), *passed_over}:
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                held = b"\0" + environ.read() + b"\0"
            carries = f"\0{TOKEN_NAME}=".encode() in held and mark in held
            with open(f"/proc/{name}/stat", "rb") as stat:
                zombie = stat.read().rpartition(b")")[2].split()[0] == b"Z"
            with open(f"/proc/{name}/cmdline", "rb") as cmdline:
                words = cmdline.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if carries and not zombie:
            found[name] = words
    return found


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> bool:
    """Whether the condition came to hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
