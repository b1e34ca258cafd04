"""Where built-in examples are written: a folder that goes with the process it was made for."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

PREFIX = "colo-example-"
_kept: list[tempfile.TemporaryDirectory[str]] = []


def example_folder() -> Path:
    """A fresh folder below the system's temporary one that lives as long as this process: readers are lazy.

    Those of kernels that were killed, and could not remove their own, are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # somebody else removes it too
            pid = left.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)) and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
    _kept.append(tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-"))
    return Path(_kept[-1].name)
