"""Open a run folder: its records and frames, read once its manifest's sizes and checksums hold.

The layout stands in docs/run-folder.md, the frames' columns in colo_lib/frames.py. What an unfinished run holds so far
is checked before it is taken up again: nobody repairs it on the way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from colo_lib import paths
from colo_lib.data.capture import StepCapture, captured_steps, read_capture
from colo_lib.data.checks import column_problems, contradictions, misplaced_frames, row_problems
from colo_lib.data.unchanged import HeldFrames, State, state_of
from colo_lib.errors import InputError
from colo_lib.frames import FRAMES, SCHEMA_VERSION
from colo_lib.json_records import checked, damaged, read_object
from colo_lib.params import STEPS, Params, check_recorded
from colo_lib.paths import frame_file
from colo_lib.records import CaptureFacts, ListedFile, ListedTrial, Manifest, Start, Trial

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
# Reports of Nsight Systems: large, kept for its own window, never read here; who removes them loses no number.
REMOVABLE = ".nsys-rep"
MOST_ROWS = 200_000_000
# Parts of a workload's device memory, GiB a process; the rest of gen is activations and context, of embed the context.
MEMORY_PARTS = (
    ("gen", "weights"), ("gen", "kv_cache"), ("gen", "graphs"), ("gen", "rest"),
    ("embed", "weights"), ("embed", "activations"), ("embed", "cached"), ("embed", "rest"),
)  # fmt: skip
DEMAND = (("demanded_per_s", "rate"), ("due", "due"))
# column -> where it stands in trial.json; a dot leads into a nested object
TRIAL_COLUMNS = {
    "step": "step",
    "trial": "trial",
    "block": "block",
    "mechanism": "mechanism",
    "status": "status",
    "reason": "reason",
    "window_start_ns": "window_start_ns",
    "window_end_ns": "window_end_ns",
    "recorded_gen_tokens_per_s": "gen_tokens_per_s",
    "server_gen_tokens_per_s": "gen_server_tokens_per_s",
    "recorded_embed_sequences_per_s": "embed_sequences_per_s",
    "clock_disagreement": "clock_disagreement",
    "gen_drift_fraction": "drift_fraction.gen",
    "embed_drift_fraction": "drift_fraction.embed",
    "gen_start": "engine_starts.gen",
    "embed_start": "engine_starts.embed",
    "gen_devices": "devices.gen",
    "embed_devices": "devices.embed",
    "gen_memory_gib": "memory_gib.gen",
    "embed_memory_gib": "memory_gib.embed",
    "free_memory_gib": "memory_gib.free",
    **{f"{workload}_{part}_memory_gib": f"memory_parts_gib.{workload}.{part}" for workload, part in MEMORY_PARTS},
    "neighbour": "neighbour",
    "latency_clock": "latency_clock",
    "telemetry_cpu_fraction": "telemetry_cost.cpu_fraction",
    "telemetry_absent": "telemetry.absent",
    "telemetry_gaps": "telemetry.gaps",
    "pacing": "pacing.kind",
    "marks": "marks",
    "gen_client_cores": "gen_load.client_busiest_cores",
    "gen_waiting": "gen_load.waiting",
    "gen_preemptions": "gen_load.preemptions",
    **{f"{name}_{what}": f"demand.{name}.{field}" for name in ("gen", "embed") for what, field in DEMAND},
}
TRIAL_NUMBERS = [name for name in TRIAL_COLUMNS if name.endswith(("_per_s", "_gib", "_fraction", "_disagreement"))]
TRIAL_NUMBERS += ["gen_client_cores", "gen_waiting", "gen_preemptions", "gen_due", "embed_due"]


@dataclass(frozen=True)
class Run:
    """A finished run whose files are what its manifest says they are.

    `trials` has a row a trial in the order in which they ran, with the columns of `TRIAL_COLUMNS`.
    """

    folder: Path
    manifest: Manifest
    params: Params
    trials: pd.DataFrame
    state: State = field(default=(), repr=False, compare=False)  # of its files when they were checked
    # What was computed of it, by name: whoever analyses it again need not compute it again.
    computed: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def run_id(self) -> str:
        """The run's name, which its folder carries."""
        return self.manifest.run_id

    @property
    def stand_in(self) -> bool:
        """True where cores stood in for GPUs."""
        return bool(self.manifest.machine.stand_in)

    @property
    def simulated(self) -> bool:
        """True where no engine ran at all: the numbers are planted."""
        return bool(self.manifest.machine.simulated)

    def frame(self, step: str, trial: int, name: str) -> pd.DataFrame | None:
        """One frame of a trial (a key of `frames.FRAMES`), or None where the trial has none.

        Raises InputError naming the file and the columns that are not as `frames` says.
        """
        file = frame_file(paths.trial_folder(self.folder, step, trial), name)
        entry = self.manifest.files.get(file.relative_to(self.folder).as_posix())
        return None if entry is None else read_frame(file, name, sha256=entry.sha256)

    @property
    def captured_steps(self) -> list[str]:
        """Steps with a capture of GPU work that can be read, in the order of the steps."""
        return captured_steps(self.folder)

    def capture(self, step: str) -> StepCapture:
        """The capture of a step. Raises InputError where the run has none of it, or it did not succeed."""
        return read_capture(self.folder, step)


_OPENED: WeakValueDictionary[Path, Run] = WeakValueDictionary()
_HELD = HeldFrames()
_CHECKED: set[tuple[str, str, tuple[int, int] | None]] = set()  # contents that may stand in a window


def open_run(folder: str | Path) -> Run:
    """Check and open a finished run. Raises InputError for one that is unfinished, changed or of another layout.

    One that somebody has open already, and whose files are as they were, is given as it is.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no run folder {root}; `colo list` names the runs")
    if root.name.endswith(paths.PARTIAL) or not (root / paths.MANIFEST).is_file():
        raise InputError(f"{root} is unfinished; colo run --resume {root} completes it")
    root = root.resolve()
    opened = _OPENED.get(root)
    if opened is not None and opened.state == _state(root, opened.manifest):
        return opened
    manifest = _read_manifest(root / paths.MANIFEST)
    state = _state(root, manifest)
    _check_files(root, manifest.files)
    _check_records(root, manifest.files)
    params = check_recorded(manifest.params, f"params of {root.name}")
    run = Run(root, manifest, params, trials_frame(_trial_records(root, manifest, params)), state)
    _OPENED[root] = run
    return run


def _state(root: Path, manifest: Manifest) -> State:
    return state_of([root / paths.MANIFEST, *(root / name for name in manifest.files)])


def find_runs(runs_dir: str | Path) -> list[Path]:
    """Folders of finished runs, newest first by the manifest's own time; unfinished ones are left out."""
    runs = []
    for folder in _folders(runs_dir):
        if (folder / paths.MANIFEST).is_file() and not folder.name.endswith(paths.PARTIAL):
            try:
                manifest = read_object(folder / paths.MANIFEST, MAX_MANIFEST_BYTES)
                runs.append((str(manifest.get("created_utc", "")), folder.name, folder))
            except InputError:
                runs.append(("", folder.name, folder))
    return [folder for _, _, folder in sorted(runs, reverse=True)]


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
    name = re.compile(rf"{paths.RUN_ID}({re.escape(paths.PARTIAL)})?")
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and name.fullmatch(folder.name))


def _read_manifest(file: Path) -> Manifest:
    loaded = read_object(file, MAX_MANIFEST_BYTES)
    version = loaded.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema version {version!r}, this workbook reads {SCHEMA_VERSION}")
    return checked(Manifest, loaded, file)


def _check_files(root: Path, files: Mapping[str, ListedFile]) -> None:
    for name, entry in files.items():
        plain = PurePosixPath(name)
        file = root / plain
        try:
            if plain.is_absolute() or ".." in plain.parts or not file.resolve().is_relative_to(root):
                raise damaged(root, f"the manifest names {name!r}, which is outside the run folder")
            if not file.exists() and file.suffix == REMOVABLE:
                continue
            if not file.is_file():
                raise damaged(root, f"{name} is missing, though the manifest lists it")
            if file.stat().st_size != entry.bytes or _sha256(file) != entry.sha256:
                raise damaged(root, f"{name} is not the file that was recorded (size or sha256 differs)")
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle, no permission
            raise damaged(root, f"{name[:80]} cannot be read: {error}") from None


def _check_records(root: Path, files: Mapping[str, ListedFile]) -> None:
    """Raises InputError for a start record or a capture's record of another shape; whoever reads them need not ask."""
    if paths.START in files:
        Start.read(root / paths.START)
    for step in STEPS:
        file = paths.capture_folder(root, step) / paths.CAPTURE
        if file.relative_to(root).as_posix() in files:
            CaptureFacts.read(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def planned_trials(params: Params, run_id: str) -> list[tuple[str, int]]:
    """(step, trial) of every trial that a run with these parameters holds when it is finished.

    What one notebook made by itself is named after its step and holds that step alone.
    """
    named = [step for step in params.step_names() if run_id.endswith(f"-{step.lower()}")]
    blocks = [params.block] if params.block else range(1, params.blocks + 1)
    return [(step, block) for step in named or params.step_names() for block in blocks]


def _trial_records(root: Path, manifest: Manifest, params: Params) -> list[Trial]:
    """Every trial's record, checked with its frames; raises InputError for one that is planned and not there."""
    listed = [(row.step, row.trial) for row in manifest.trials]
    if len(set(listed)) < len(listed):
        raise damaged(root, f"the manifest lists a trial twice: {max(listed, key=listed.count)}")
    for step, trial in planned_trials(params, manifest.run_id):
        if (step, trial) not in listed:
            raise damaged(root, f"{step} trial {trial} is missing: its parameters plan it, its manifest has it not")
    return [_trial_record(root, manifest, row) for row in manifest.trials]


def _trial_record(root: Path, manifest: Manifest, row: ListedTrial) -> Trial:
    folder = paths.trial_folder(root, row.step, row.trial)
    place = folder.relative_to(root).as_posix()
    if f"{place}/{paths.TRIAL}" not in manifest.files:
        raise damaged(root, f"{place}/{paths.TRIAL} is not in the manifest, though it lists the trial as {row.status}")
    record = Trial.read(folder / paths.TRIAL)
    if (record.step, record.trial) != (row.step, row.trial):
        raise damaged(folder / paths.TRIAL, f"is the record of {record.step} trial {record.trial}")
    listed = {name: manifest.files.get(f"{place}/{name}.parquet") for name in FRAMES}
    _check_frames(folder, record, {name: entry.sha256 for name, entry in listed.items() if entry is not None})
    # The stricter of the two words holds: what either of them rules out does not count.
    status = row.status if record.status == "done" else record.status
    return record.joined(row, status=status, reason=row.reason or record.reason)


def _check_frames(folder: Path, record: Trial, there: Mapping[str, str]) -> None:
    """Raises InputError for a frame that is missing or does not belong, is damaged, or differs from the record.

    `there`: the frames that the trial's folder, or its manifest, holds, with the digests that the manifest tells.
    """
    if not record.measured:
        return
    for name, problem in misplaced_frames(record, there).items():
        raise damaged(frame_file(folder, name), problem)
    assert record.window_start_ns is not None
    assert record.window_end_ns is not None
    window_ns = (record.window_start_ns, record.window_end_ns)
    frames = {name: read_frame(frame_file(folder, name), name, window_ns, sha256) for name, sha256 in there.items()}
    if problems := contradictions(frames, record, window_ns):
        raise damaged(folder, "; ".join(problems))


def read_frame(file: Path, name: str, window_ns: tuple[int, int] | None = None, sha256: str = "") -> pd.DataFrame:
    """A Parquet file as a frame, checked against `frames.FRAMES[name]` and `frames.ROWS[name]`.

    Its times lie within `REACH_S` of `window_ns` where that is told. Content of a known `sha256` is read and checked
    once. Raises InputError naming what differs.
    """
    held = _HELD.get((sha256, name)) if sha256 else None
    frame = _read_table(file, name) if held is None else held
    if held is None or (window_ns is not None and (sha256, name, window_ns) not in _CHECKED):
        if problems := row_problems(frame, name, window_ns):
            raise damaged(file, "; ".join(problems))
        if sha256:
            _HELD.put((sha256, name), frame)
            _CHECKED.add((sha256, name, window_ns))
    return frame


def _read_table(file: Path, name: str) -> pd.DataFrame:
    try:
        # Not `read_table`: it would take a folder's name that holds '=' for a column. From memory and in this thread:
        # a report's notebooks are forked from a process that has read, which must not have started Arrow's pools.
        with pq.ParquetFile(pa.BufferReader(file.read_bytes()), page_checksum_verification=True) as parquet:
            if parquet.metadata.num_rows > MOST_ROWS:
                raise ValueError(f"{parquet.metadata.num_rows} rows, which no trial has")
            table = parquet.read(use_threads=False)
        if problems := column_problems(table, name):
            raise damaged(file, "; ".join(problems))
        # Times are exact ns: a nullable integer column must not become a float on its way.
        # What pandas once noted of its own types is not asked: the file's types were.
        frame = table.replace_schema_metadata().to_pandas(
            types_mapper={pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}.get, use_threads=False
        )
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        raise damaged(file, f"not a readable parquet file: {error}") from None
    return frame.astype({column: kind for column, kind in FRAMES[name].items() if kind in ("int32", "int64")})


def trials_frame(records: Iterable[Trial]) -> pd.DataFrame:
    """A row a trial with the columns of `TRIAL_COLUMNS`; absent values are null, rates are per second, memory in GiB.

    Raises InputError for a trial that counts but has no window.
    """
    plain = [record.plain() for record in records]
    rows = [
        {name: _lookup(record, place) for name, place in TRIAL_COLUMNS.items()} | _starts(record) for record in plain
    ]
    frame = pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))
    for name in TRIAL_NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name in ("window_start_ns", "window_end_ns"):
        # From the rows: beside a null, the frame has made floats of them, which do not hold every ns.
        frame[name] = pd.array([None if row[name] is None else int(row[name]) for row in rows], dtype="Int64")
    for name in ("gen_devices", "embed_devices"):
        frame[name] = [_flat(value) for value in frame[name]]
    counted = frame[frame["status"] == "done"]
    wrong = counted[~(counted["window_end_ns"] > counted["window_start_ns"]).fillna(False)]
    if len(wrong):
        first = wrong.iloc[0]
        raise InputError(f"{first['step']} trial {first['trial']}: counts as done but its window is empty or absent")
    return frame


def _starts(record: Mapping[str, Any]) -> dict[str, str]:
    """gen_start, embed_start: names of the starts of the engines that a trial ran on, empty where nothing tells them.

    Records of the first runs have the engines' pids alone.
    """
    return {
        f"{workload}_start": str(_lookup(record, f"engine_starts.{workload}") or _pids(record, workload))
        for workload in ("gen", "embed")
    }


def _pids(record: Mapping[str, Any], workload: str) -> str:
    pids = _lookup(record, f"pids.{workload}")
    return "+".join(map(str, pids)) if isinstance(pids, list) else ""


def _flat(devices: Any) -> tuple[str, ...]:
    """Names of devices, each once: a workload of several processes records a list of devices for each of them."""
    if not isinstance(devices, list | tuple):
        return () if devices is None else (str(devices),)
    return tuple(dict.fromkeys(name for item in devices for name in _flat(item)))


def _lookup(record: Mapping[str, Any], place: str) -> Any:
    value: Any = record
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_unfinished(folder: Path) -> None:
    """Raises InputError with the remedy for a record or a frame of `folder` that is not as the launcher leaves it.

    A trial that failed is measured again anyway, and has no frames to be checked.
    """
    Start.read(folder / paths.START)
    for file in sorted(folder.glob(f"steps/*/trial-*/{paths.TRIAL}")):
        if not file.parent.name.endswith(paths.PARTIAL):
            try:
                _check_trial(file)
            except InputError as error:
                raise InputError(f"{error}; without the folder {file.parent} the trial is measured again") from None
    for file in sorted(folder.glob(f"steps/*/capture/{paths.CAPTURE}")):
        CaptureFacts.read(file)


def _check_trial(file: Path) -> None:
    record = Trial.read(file)
    if (record.step, f"trial-{record.trial}") != (file.parent.parent.name, file.parent.name):
        raise damaged(file, f"is the record of {record.step} trial {record.trial}")
    _check_frames(file.parent, record, {name: "" for name in FRAMES if frame_file(file.parent, name).is_file()})
