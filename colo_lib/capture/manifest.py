"""The manifest: written last, it makes a folder a run."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from colo_lib.errors import InputError
from colo_lib.params import STEPS
from colo_lib.paths import CAPTURE, MANIFEST, PARTIAL, START, TRIAL, capture_folder
from colo_lib.schema import SCHEMA_VERSION

LOCK = ".lock"


def now_utc() -> str:
    """Wall-clock time, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or nothing: temporary name, fsync, rename."""
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


def trial_records(folder: Path) -> list[dict[str, Any]]:
    """Every trial's record, in the order in which the trials ran."""
    found = []
    for step in STEPS:
        for file in sorted((folder / "steps" / step).glob(f"trial-*/{TRIAL}")):
            if not file.parent.name.endswith(PARTIAL):
                found.append(json.loads(file.read_text()) | {"folder": str(file.parent.relative_to(folder))})
    return sorted(found, key=lambda record: record.get("window_start_ns") or 0)


def capture_records(folder: Path) -> list[dict[str, Any]]:
    """Step, status, reason and folder of every capture that was tried."""
    found = []
    for step in STEPS:
        file = capture_folder(folder, step) / CAPTURE
        if file.is_file():
            told, where = json.loads(file.read_text()), str(file.parent.relative_to(folder))
            found.append({"step": step, "status": told["status"], "reason": told["reason"], "folder": where})
    return found


def remove_half_written(folder: Path) -> None:
    """Remove what `write_json` had begun when its process was killed."""
    for left in folder.rglob("*.json.tmp"):
        left.unlink()


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of the folder, the manifest aside, by relative path."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and not file.is_symlink() and name not in (MANIFEST, LOCK):
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = {"bytes": file.stat().st_size, "sha256": digest}
    return found


def seal(folder: Path) -> Path:
    """Write the manifest of a `.partial` folder and give the folder its name; returns it.

    Raises InputError when a folder of that name is there already.
    """
    start = json.loads((folder / START).read_text())
    final = folder.with_name(folder.name.removesuffix(PARTIAL))
    if final.exists():
        raise InputError(f"{final} is there already: remove it, or give the run another name")
    # Else the manifest would list its own beginning, which its end replaces.
    remove_half_written(folder)
    records = trial_records(folder)
    for left in folder.glob(f"steps/*/*{PARTIAL}"):
        left.rename(left.with_name(left.name.replace(PARTIAL, ".interrupted")))
    captures = capture_records(folder)
    listed = ("step", "trial", "block", "status", "reason", "folder")
    write_json(
        folder / MANIFEST,
        {"schema_version": SCHEMA_VERSION, "run_id": final.name, "status": "done"}
        | start
        | {
            "finished_utc": now_utc(),
            "trials": [{name: record.get(name) for name in listed} for record in records],
            "captures": captures,
            "measured_s": sum(record.get("window_s") or 0.0 for record in records),
            "files": checksums(folder),
        },
    )
    (folder / LOCK).unlink(missing_ok=True)
    folder.rename(final)
    return final
