"""The private folder of a running launcher: sockets and keys that must not enter the run folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PREFIX = "colo-"
OWNER = "owner.json"
# A Unix socket's path holds 107 bytes: the folder stays short whatever TMPDIR says.
ROOT = Path("/tmp")


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
