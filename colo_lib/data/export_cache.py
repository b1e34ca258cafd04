"""A disposable cache of what was read from large exports: reading a million rows costs more than all the analysis.

It lies under the user's cache folder, never beside the input, and is keyed by the file's size, time and samples of its
bytes, and by this workbook's version of reading. `COLO_EXPORT_CACHE` names another folder, or turns it off when empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib.data.export import read_export
from colo_lib.data.sqlite_reader import check_file
from colo_lib.errors import InputError
from colo_lib.trace import Capture, Columns, Copies, Device, Kernels, Overhead, Process, Switches

VERSION = 3  # of what reading makes; raise it when that changes
WORTH_ROWS = 200_000
KEPT_ENTRIES = 8
SAMPLES, SAMPLE_BYTES = 32, 4096
FRAMES: dict[str, type[Columns]] = {"kernels": Kernels, "copies": Copies, "switches": Switches, "overhead": Overhead}


def read_cached(file: Path) -> Capture:
    """`read_export`, or what the cache has of the very same file; raises InputError as that does."""
    folder = _folder()
    if folder is None:
        return read_export(file)
    check_file(file)
    entry = folder / _key(file)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        capture = _load(entry)
        os.utime(entry)
        capture.exports[0] |= {"file": file.name, "path": str(file)}
        return capture
    capture = read_export(file)
    if len(capture.kernels) + len(capture.copies) >= WORTH_ROWS:
        with contextlib.suppress(OSError):  # a full disk costs the next reader some seconds, no more
            _store(entry, capture)
            _forget_oldest(folder)
    return capture


def _folder() -> Path | None:
    given = os.environ.get("COLO_EXPORT_CACHE")
    if given is not None:
        return Path(given) if given else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "colo" / "exports"


def _key(file: Path) -> str:
    digest = hashlib.sha256(f"{VERSION}".encode())
    try:
        status = file.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            for place in range(SAMPLES):
                stream.seek(status.st_size * place // SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:40]


def _store(entry: Path, capture: Capture) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".new-"))
    try:
        for frame, kind in FRAMES.items():
            for column in kind.dtypes():
                np.save(made / f"{frame}.{column}.npy", getattr(getattr(capture, frame), column))
        rest: dict[str, Any] = {
            "names": capture.names,
            "devices": [asdict(device) for device in capture.devices],
            "processes": [asdict(process) for process in capture.processes],
            "exports": capture.exports,
            "omissions": capture.omissions,
            "simulated": capture.simulated,
        }
        (made / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
        if entry.exists():
            shutil.rmtree(entry)
        made.rename(entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _load(entry: Path) -> Capture:
    rest = json.loads((entry / "rest.json").read_text(encoding="utf-8"))
    frames = {}
    for frame, kind in FRAMES.items():
        columns = {name: np.load(entry / f"{frame}.{name}.npy", mmap_mode="r") for name in kind.dtypes()}
        if any(columns[name].dtype != np.dtype(wanted) for name, wanted in kind.dtypes().items()):
            raise ValueError(f"{entry}: another layout")
        frames[frame] = kind(**columns)
    return Capture(
        kernels=frames["kernels"],  # type: ignore[arg-type]
        copies=frames["copies"],  # type: ignore[arg-type]
        switches=frames["switches"],  # type: ignore[arg-type]
        overhead=frames["overhead"],  # type: ignore[arg-type]
        names=[str(name) for name in rest["names"]],
        devices=[Device(**device) for device in rest["devices"]],
        processes=[Process(**process) for process in rest["processes"]],
        exports=rest["exports"],
        omissions=rest["omissions"],
        simulated=bool(rest["simulated"]),
    )


def _forget_oldest(folder: Path) -> None:
    entries = sorted((item for item in folder.iterdir() if item.is_dir()), key=lambda item: item.stat().st_mtime)
    for entry in entries[:-KEPT_ENTRIES]:
        shutil.rmtree(entry, ignore_errors=True)
