"""Start a step's engines on a host whose name means its outer address, and tell what they listen at: a line of JSON.

python -m tests.launch.listens PARAMS.yaml STEP LOGS
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from colo_lib.launch.engines import engines_for
from colo_lib.launch.specs import specs_of
from colo_lib.params import load
from colo_lib.placement import placement_of
from tests.sockets import listening

NEW_HOST_NAME = 0x04000000  # CLONE_NEWUTS


def outer_address() -> str | None:
    """An address of this host that others may reach, None where it has none."""
    addresses = [one for card in psutil.net_if_addrs().values() for one in card if one.family == socket.AF_INET]
    return next((one.address for one in addresses if not one.address.startswith("127.")), None)


def rename_host(address: str | None) -> bool:
    """Call this process's host by `address`, as where /etc/hosts resolves the name so; whether that was allowed."""
    if address is None or ctypes.CDLL(None, use_errno=True).unshare(NEW_HOST_NAME):
        return False
    with suppress(OSError):
        socket.sethostname(address)
    return socket.gethostname() == address


def main() -> None:
    """Look all the while: what is closed again once the ranks have met was open too."""
    renamed = rename_host(outer_address())
    params = load(sys.argv[1])
    placement = placement_of(sys.argv[2], params)
    done = threading.Event()
    seen: set[tuple[str, str]] = set()

    def look() -> None:
        while not done.wait(0.05):
            pids = [process.pid for process in psutil.Process(os.getpid()).children(recursive=True)]
            seen.update((protocol, host) for _, protocol, host, _ in listening(pids))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with engines_for(specs_of(params, placement).engines, Path(sys.argv[3])) as handles:
            trees = {name: [psutil.Process(pid) for pid in pids] for name, pids in handles.pids().items()}
            pids = [
                one.pid for roots in trees.values() for root in roots for one in [root, *root.children(recursive=True)]
            ]
            found = listening(pids)
    finally:
        done.set()
        watcher.join()
    print(json.dumps({"renamed": renamed, "ready": found, "seen": sorted(seen), "processes": len(pids)}))


if __name__ == "__main__":
    main()
