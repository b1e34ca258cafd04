"""The proof that engines are clients of our MPS server, from any process of the run: by pid, against its list."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from colo_lib.errors import StepFailed
from colo_lib.gpu_look import look_at_gpus, mps_clients
from colo_lib.launch.logs import tail
from colo_lib.launch.mechanisms.base import Tenants, identity, lives
from colo_lib.launch.mechanisms.control import Control

REMEDY = "; see that the engines inherit CUDA_MPS_PIPE_DIRECTORY and run as the daemon's user"


def check(facts: Mapping[str, Any]) -> None:
    """Raises StepFailed when the daemon, or a server that was seen, is gone. Cheap: asks nobody."""
    gone = [int(who[0]) for who in [facts["daemon"], *facts.get("servers", [])] if who is None or not lives(who)]
    if gone:
        raise StepFailed(
            f"mps: the daemon or its server (pid {gone}) ended: both workloads' results are void; MPS is started "
            f"again before the next trial\n{last_words(facts)}"
        )


def prove(facts: Mapping[str, Any], tenants: Tenants) -> dict[str, Any]:
    """Evidence that every engine is a client of our server, by pid against the server's own list.

    Raises StepFailed (the trial is void) when a process that computes is not on it, when the server is another
    user's or in the state FAULT, or when it is not the server that was seen before.
    """
    check(facts)
    control = Control(Path(facts["pipe"]), Path(facts["log"]))
    servers = control.servers()
    if not servers:
        check(facts)  # one that was seen has ended just now: that is the cause
        raise StepFailed(f"void: mps not attached: the daemon has no server, so no engine is its client{REMEDY}")
    for server in servers:
        _check_server(control, server, facts)
    clients = sorted({pid for server in servers for pid in control.clients(server)})
    attached = attached_pids(tenants, clients)
    known = {pid for pids in attached.values() for pid in pids}
    return {
        "mechanism": facts["mechanism"],
        "daemon_pid": int(facts["daemon"][0]),
        "servers": [identity(server) for server in servers],
        "clients": clients,
        "attached": attached,
        "other_clients": sorted(set(clients) - known),
        "limits": facts["limits"],
        "partition": facts.get("partition"),
        "gpus": facts["gpus"],
        "nvml_lists_them": nvml_lists(known),
    }


def attached_pids(tenants: Tenants, clients: list[int]) -> dict[str, list[int]]:
    """Which of the server's clients are whose; raises StepFailed for an engine with fewer of them than its GPUs."""
    attached: dict[str, list[int]] = {}
    for name, trees in tenants.trees().items():
        attached[name] = []
        for tree in trees:
            found = sorted(set(tree) & set(clients))
            if len(found) < tenants.gpus_each[name]:
                raise StepFailed(
                    f"void: mps not attached: {name} (pids {tree}) has {len(found)} of {tenants.gpus_each[name]} "
                    f"processes among the server's clients {clients}: it ran time-sliced{REMEDY}"
                )
            attached[name] += found
    return attached


def _check_server(control: Control, server: int, facts: Mapping[str, Any]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        uid = psutil.Process(server).uids().real
        if uid != os.getuid():
            raise StepFailed(
                f"mps: the server (pid {server}) runs as uid {uid}, we are uid {os.getuid()}: our clients wait for "
                "that user's to end; run everything as one user"
            )
    status = control.status(server)
    if "FAULT" in status:
        raise StepFailed(
            f"mps: the server (pid {server}) is in the state FAULT: a fatal error of one client ended them all; both "
            f"workloads are void, and the server is started again before the next trial\n{last_words(facts)}"
        )


def last_words(facts: Mapping[str, Any]) -> str:
    """The end of what the daemon and its server said."""
    return tail(Path(facts["output"]))


def nvml_lists(pids: set[int]) -> bool | str:
    """Whether NVML lists these as MPS clients too; in words where it could not be asked."""
    listed = mps_clients(look_at_gpus())
    return listed if isinstance(listed, str) else pids <= set(listed)
