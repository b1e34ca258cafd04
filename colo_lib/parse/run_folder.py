"""Open a finished run folder: nothing is read before its manifest's sizes and checksums hold.

The layout stands in docs/run-folder.md, the frames' columns in colo_lib/schema.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.params import RUN_ID, STEPS, Params, check_recorded
from colo_lib.parse.json_file import read_object
from colo_lib.parse.trials import trials_frame
from colo_lib.schema import FRAMES, SCHEMA_VERSION

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
# Reports of Nsight Systems: large, kept for its own window, never read here; who removes them loses no number.
REMOVABLE = ".nsys-rep"
MANIFEST_KEYS = {
    "run_id": str,
    "params": dict,
    "machine": dict,
    "models": dict,
    "budget": list,
    "trials": list,
    "files": dict,
}


@dataclass(frozen=True)
class Run:
    """A finished run whose files are what its manifest says they are.

    `trials` has a row a trial in the order in which they ran, with the columns of `parse.trials.COLUMNS`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    params: Params
    trials: pd.DataFrame

    @property
    def run_id(self) -> str:
        """The run's name, which its folder carries."""
        return str(self.manifest["run_id"])

    @property
    def stand_in(self) -> bool:
        """True where cores stood in for GPUs."""
        return bool(self.manifest["machine"].get("stand_in"))

    @property
    def simulated(self) -> bool:
        """True where no engine ran at all: the numbers are planted."""
        return bool(self.manifest["machine"].get("simulated"))

    def frame(self, step: str, trial: int, name: str) -> pd.DataFrame | None:
        """One frame of a trial (a key of `schema.FRAMES`), or None where the trial has none.

        Raises InputError naming the file and the columns that are not as `schema` says.
        """
        file = paths.frame_file(paths.trial_folder(self.folder, step, trial), name)
        if file.relative_to(self.folder).as_posix() not in self.manifest["files"]:
            return None
        return read_frame(file, name)


def open_run(folder: str | Path) -> Run:
    """Check and open a finished run. Raises InputError for one that is unfinished, changed or of another layout."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no run folder {root}; `colo list` names the runs")
    if root.name.endswith(paths.PARTIAL) or not (root / paths.MANIFEST).is_file():
        raise InputError(f"{root} is unfinished; colo run --resume {root} completes it")
    root = root.resolve()
    manifest = _read_manifest(root / paths.MANIFEST)
    _check_files(root, manifest["files"])
    params = check_recorded(manifest["params"], f"params of {root.name}")
    return Run(root, manifest, params, trials_frame(_trial_records(root, manifest)))


def read_frame(file: Path, name: str) -> pd.DataFrame:
    """A parquet file as a frame, checked against `schema.FRAMES[name]`; raises InputError naming what differs."""
    try:
        table = pq.read_table(file)
    except (ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file: {error}") from None
    wanted, found = FRAMES[name], {field.name: _type_name(field.type) for field in table.schema}
    problems = [f"column {column!r} is missing" for column in wanted if column not in found]
    problems += [f"column {column!r} is not in the schema" for column in found if column not in wanted]
    for column, kind in wanted.items():
        if column in found and found[column] != kind.rstrip("?"):
            problems.append(f"column {column!r} is {found[column]}, not {kind.rstrip('?')}")
        elif column in found and not kind.endswith("?") and table[column].null_count:
            problems.append(f"column {column!r} has {table[column].null_count} null values")
    if problems:
        raise InputError(f"{file}: " + "; ".join(problems))
    # Times are exact ns: a nullable integer column must not become a float on its way.
    frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}.get)
    return frame.astype({column: kind for column, kind in wanted.items() if kind in ("int32", "int64")})


def _type_name(kind: pa.DataType) -> str:
    return {"double": "float64", "large_string": "string"}.get(str(kind), str(kind))


def find_runs(runs_dir: str | Path) -> list[Path]:
    """Folders of finished runs, newest first by the manifest's own time; unfinished ones are left out."""
    found = []
    for folder in _folders(runs_dir):
        if (folder / paths.MANIFEST).is_file() and not folder.name.endswith(paths.PARTIAL):
            try:
                manifest = json.loads((folder / paths.MANIFEST).read_text(encoding="utf-8"))
                found.append((str(manifest.get("created_utc", "")), folder.name, folder))
            except (OSError, ValueError, AttributeError):
                found.append(("", folder.name, folder))
    return [folder for _, _, folder in sorted(found, reverse=True)]


def find_unfinished(runs_dir: str | Path) -> list[Path]:
    """Folders that hold a run that did not end, by name."""
    return [
        folder
        for folder in _folders(runs_dir)
        if folder.name.endswith(paths.PARTIAL)
        or ((folder / "steps").is_dir() and not (folder / paths.MANIFEST).is_file())
    ]


def newest_run(runs_dir: str | Path) -> Path | None:
    """The newest finished run, or None."""
    return next(iter(find_runs(runs_dir)), None)


def _folders(runs_dir: str | Path) -> list[Path]:
    root = Path(runs_dir)
    if not root.is_dir():
        return []
    name = re.compile(rf"{RUN_ID}({re.escape(paths.PARTIAL)})?")
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and name.fullmatch(folder.name))


def _read_manifest(file: Path) -> dict[str, Any]:
    manifest = read_object(file, MAX_MANIFEST_BYTES)
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema version {version!r}, this workbook reads {SCHEMA_VERSION}")
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{file}: {key!r} is missing or is not a {kind.__name__}")
    paths.check_run_id(manifest["run_id"])
    return manifest


def _check_files(root: Path, files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        plain = PurePosixPath(name)
        file = root / plain
        if plain.is_absolute() or ".." in plain.parts or not file.resolve().is_relative_to(root):
            raise InputError(f"{root.name}: the manifest names {name!r}, which is outside the run folder")
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
            raise InputError(f"{root.name}: the manifest has no size and sha256 for {name}")
        if not file.exists() and file.suffix == REMOVABLE:
            continue
        if not file.is_file():
            raise InputError(f"{root.name}: {name} is missing, though the manifest lists it")
        if file.stat().st_size != entry["bytes"] or _sha256(file) != entry["sha256"]:
            raise InputError(f"{root.name}: {name} is not the file that was recorded (size or sha256 differs)")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _trial_records(root: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = []
    for row in manifest["trials"]:
        step, trial = row.get("step"), row.get("trial")
        if step not in STEPS or not isinstance(trial, int):
            raise InputError(f"{root.name}: the manifest lists a trial of an unknown step: {step!r} {trial!r}")
        file = paths.trial_folder(root, step, trial) / paths.TRIAL
        listed = file.relative_to(root).as_posix() in manifest["files"]
        if not listed and row.get("status") == "done":
            raise InputError(
                f"{root.name}: {step} trial {trial} counts as done but its {paths.TRIAL} is not in the manifest"
            )
        record = read_object(file) if listed else {}
        # The stricter of the two words holds: what either of them rules out does not count.
        status = row.get("status") if record.get("status", "done") == "done" else record["status"]
        records.append({**record, **row, "status": status, "reason": row.get("reason") or record.get("reason")})
    return records
