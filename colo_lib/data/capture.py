"""The captures of a run folder: what a step's capture.json says, and its exports on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib import paths
from colo_lib.data.export import read_launches
from colo_lib.data.export_devices import on_their_gpus
from colo_lib.data.nsys_schema import find_table
from colo_lib.data.sessions import clock_shift, concatenated, read_exports
from colo_lib.data.sqlite_reader import opened, tables_of
from colo_lib.errors import InputError
from colo_lib.params import STEPS
from colo_lib.records import CaptureFacts, checked, read_object
from colo_lib.trace import Capture, Launches

DEFAULT_EXPORT = "trace.sqlite"


@dataclass(frozen=True)
class StepCapture:
    """A step's capture: its activity, and what its capture.json says (mechanism, pids, profiled rates)."""

    step: str
    capture: Capture
    facts: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def mechanism(self) -> str | None:
        """How the two shared the GPU, where that is recorded."""
        return self.facts.get("mechanism")

    @property
    def window_s(self) -> tuple[float, float] | None:
        """The recorded window of steady state on the capture's clock, seconds; None where none is recorded.

        capture.json has the window in monotonic ns, and one moment by both clocks; exports have their start in UTC.
        """
        window, clock, zero = self.facts.get("window_ns"), self.facts.get("clock"), _zero_utc_ns(self.capture)
        if not window or not clock or zero is None:
            return None
        start, end = (int(moment) - int(clock["monotonic_ns"]) + int(clock["utc_ns"]) - zero for moment in window)
        return start / 1e9, end / 1e9

    def launches(self) -> Launches:
        """The CUDA API calls of its exports, on its clock; read anew each time, since they are many."""
        return read_step_launches(self.files, self.capture)

    def doubts(self, mechanism: str | None = None) -> list[str]:
        """What a reader must know of its capture.json; `mechanism`: the one that the reader names."""
        told = []
        if self.facts.get("status", "done") != "done":
            reason = self.facts.get("reason") or "no reason recorded"
            told.append(f"{paths.CAPTURE} says that this capture is {self.facts['status']}: {reason}")
        if mechanism and self.mechanism and mechanism != self.mechanism:
            told.append(f"{paths.CAPTURE} says that the mechanism was {self.mechanism}, you say {mechanism}")
        return told


def read_step_launches(files: Sequence[Path], capture: Capture) -> Launches:
    """The CUDA API calls of the capture's exports, on its clock, `process` being its places."""
    by_pid = {(process.session, process.pid): place for place, process in enumerate(capture.processes)}
    starts = sorted(set(capture.alignment.offsets_ns))
    zero = min(export["clock_start_ns"] for export in capture.exports)
    parts = []
    for file, export, offset in zip(files, capture.exports, capture.alignment.offsets_ns, strict=True):
        launches, pids = read_launches(file)
        places = np.array([by_pid.get((starts.index(offset), pid), -1) for pid in pids], np.int16)
        known = places[launches.process] >= 0 if len(places) else np.zeros(0, np.bool_)
        kept = launches.take(known)
        shift = clock_shift(export, zero)
        parts.append(replace(kept, start_ns=kept.start_ns + shift, end_ns=kept.end_ns + shift,
                             process=places[kept.process]))  # fmt: skip
    joined = concatenated(Launches, parts)
    return joined.take(np.argsort(joined.start_ns, kind="stable"))


def read_capture(run_folder: str | Path, step: str) -> StepCapture:
    """The capture of a step of a run folder. Raises InputError where the step has none, or it did not succeed."""
    folder = paths.capture_folder(run_folder, step)
    facts = _capture_facts(folder / paths.CAPTURE)
    if facts.get("status", "done") != "done":
        raise InputError(f"{folder}: the capture is {facts['status']}: {facts.get('reason') or 'no reason recorded'}")
    names = facts.get("exports") or [DEFAULT_EXPORT]
    files = tuple(_inside(folder, str(name)) for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{step} of {Path(run_folder).name} has no capture: {', '.join(missing)} is not in {folder}")
    capture = on_their_gpus(read_exports(files), facts.get("visible_devices") or {})
    return StepCapture(step, capture, facts, files)


def read_files(files: Sequence[str | Path]) -> StepCapture:
    """Exports that somebody names, with what the capture.json beside them says of them.

    It says so where all of them lie in one folder whose capture.json names them. Raises InputError where one cannot be
    read.
    """
    named = tuple(Path(file) for file in files)
    facts = _facts_beside(named)
    capture = on_their_gpus(read_exports(named), facts.get("visible_devices") or {})
    return StepCapture(str(facts.get("step") or ""), capture, facts, named)


def _facts_beside(files: Sequence[Path]) -> dict[str, Any]:
    folders = {file.parent.resolve() for file in files}
    if len(folders) != 1:
        return {}
    facts = _capture_facts(folders.pop() / paths.CAPTURE)
    told = facts.get("exports") or [DEFAULT_EXPORT]
    return facts if all(file.name in told for file in files) else {}


def captured_steps(run_folder: str | Path) -> list[str]:
    """Steps of a run folder that have a capture with kernels which can be read, in the order of the steps."""
    found = []
    for step in STEPS:
        folder = paths.capture_folder(run_folder, step)
        if not folder.is_dir():
            continue
        facts = _capture_facts(folder / paths.CAPTURE)
        names = facts.get("exports") or [DEFAULT_EXPORT]
        good = facts.get("status", "done") == "done" and facts.get("traced", "cuda") == "cuda"
        files = [folder / str(name) for name in names]
        if good and all(file.is_file() for file in files) and any(_holds_kernels(file) for file in files):
            found.append(step)
    return found


def _holds_kernels(file: Path) -> bool:
    """Whether an export has a table of kernels or of graphs, or is damaged, which its reader tells better."""
    try:
        with opened(file) as connection:
            tables = tables_of(connection)
    except InputError:
        return True
    return any(find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}") for kind in ("KERNEL", "GRAPH_TRACE"))


def find_capture(run_folder: str | Path, step: str) -> StepCapture | None:
    """The capture of a step, or None where the run has none of it."""
    return read_capture(run_folder, step) if step in captured_steps(run_folder) else None


def _zero_utc_ns(capture: Capture) -> int | None:
    starts = [export.get("session_start_utc_ns") for export in capture.exports]
    known = [int(start) for start in starts if start is not None]
    return min(known) if known and len(known) == len(starts) else None


def _inside(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / paths.CAPTURE} names {name!r}, which is outside its folder")
    return file


def _capture_facts(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    facts = read_object(file)
    checked(CaptureFacts, facts, file)
    return facts
