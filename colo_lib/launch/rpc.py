"""How processes of a run find and call each other: a private folder, and one JSON line each way.

The folder holds sockets and keys that must not enter the run folder. An order goes to a process of ours over its Unix
socket: one JSON line there, one back.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PREFIX = "colo-"
OWNER = "owner.json"
# A Unix socket's path holds 107 bytes: the folder stays short whatever TMPDIR says.
ROOT = Path("/tmp")
ORDER_TIMEOUT_S = 130.0


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """A fresh folder of mode 0700, removed at the end; those of killed launchers are removed first."""
    remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ROOT))
    me = psutil.Process()
    (folder / OWNER).write_text(json.dumps({"pid": me.pid, "started": me.create_time()}))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Remove runtime folders of ours whose owner, by pid and start time, lives no more, and end what still uses one.

    A daemon that outlived its launcher and its guardian would otherwise hold the GPU without anybody knowing it.
    """
    for folder in ROOT.glob(PREFIX + "*"):
        try:
            if folder.stat().st_uid == os.getuid() and not _alive(json.loads((folder / OWNER).read_text())):
                end_users(folder)
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError, KeyError):
            continue


def end_users(folder: Path) -> None:
    """SIGKILL every process of ours whose environment says that it listens in a folder of a launcher that is gone."""
    needle = f"CUDA_MPS_PIPE_DIRECTORY={folder}/".encode()
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if needle in Path(f"/proc/{process.pid}/environ").read_bytes():
                process.kill()


def _alive(owner: dict[str, float]) -> bool:
    try:
        return abs(psutil.Process(int(owner["pid"])).create_time() - owner["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Handle:
    """How to reach a process from any other process of this run."""

    socket: str
    pid: int
    log: str


@dataclass(frozen=True)
class ClientJob:
    """What gen's load client is started with, as JSON: the server's port, how many requests at once, of which shape."""

    socket: str
    port: int
    model: str
    """As the server calls it."""
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    seed: int
    stagger: bool = False
    """Whether the first output of every slot has a random length, so that requests do not end all at once."""
    processes: int = 1
    process: int = 0
    """This one, of so many that share the load."""


@dataclass(frozen=True)
class Gaps:
    """The client's answer to `gaps`: how many there were, those not seen yet, and how long the slowest stream waits."""

    seen: int
    gaps_ms: list[float]
    open_ms: float


def call(handle: Handle, do: str, timeout_s: float = ORDER_TIMEOUT_S, **more: Any) -> dict[str, Any]:
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
        return bool(call(handle, "status", timeout_s=5.0))
    return False
