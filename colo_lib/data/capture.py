"""A capture: its exports on one clock, and what the capture.json of a step's folder says of it.

Sessions are aligned on their recorded starts (TARGET_INFO_SESSION_START_TIME). No export says how exact that stamp
is; `UNCERTAINTY_NS` is assumed for it, and everything that depends on it is shown at both ends of that range.

CUDA numbers the GPUs that a process sees from 0. Exports without TARGET_INFO_CUDA_DEVICE (seen with Nsight Systems
2024.2) keep these numbers: of two processes that see one GPU each, both work on "device 0". There the launcher's word
says whose device 0 is which GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib import paths
from colo_lib.data.export import NO_TIME, read_cached, read_launches
from colo_lib.data.nsys_schema import find_table
from colo_lib.data.packed_export import PACKED, lies_at, unpacked
from colo_lib.data.sqlite_reader import opened, tables_of
from colo_lib.data.threads import check_threads, recorded_threads, split_threads, threads_in
from colo_lib.errors import InputError
from colo_lib.records import CaptureFacts
from colo_lib.steps import STEP_IDS
from colo_lib.trace import (
    Alignment,
    Capture,
    Columns,
    Copies,
    Device,
    ExportFacts,
    Kernels,
    Launches,
    Overhead,
    Process,
    Switches,
)

DEFAULT_EXPORT = "trace.sqlite"


@dataclass(frozen=True)
class StepCapture:
    """A step's capture: its activity, and what its capture.json says (mechanism, pids, profiled rates)."""

    step: str
    capture: Capture
    facts: CaptureFacts = field(default_factory=CaptureFacts)
    files: tuple[Path, ...] = ()

    @property
    def mechanism(self) -> str | None:
        """How the two shared the GPU, where that is recorded."""
        return self.facts.mechanism

    @property
    def window_s(self) -> tuple[float, float] | None:
        """The recorded window of steady state on the capture's clock, seconds; None where none is recorded.

        capture.json has the window in monotonic ns, and one moment by both clocks; exports have their start in UTC.
        """
        window, clock, zero = self.facts.window_ns, self.facts.clock, _zero_utc_ns(self.capture)
        if not window or not clock or zero is None:
            return None
        start, end = (moment - clock.monotonic_ns + clock.utc_ns - zero for moment in window)
        return start / 1e9, end / 1e9

    def launches(self) -> Launches:
        """The CUDA API calls of its exports, on its clock; read anew each time, since they are many."""
        return read_step_launches(self.files, self.capture)

    def doubts(self, mechanism: str | None = None) -> list[str]:
        """What a reader must know of its capture.json; `mechanism`: the one that the reader names."""
        doubts = []
        if self.facts.status != "done":
            reason = self.facts.reason or "no reason recorded"
            doubts.append(f"{paths.CAPTURE} says that this capture is {self.facts.status}: {reason}")
        if mechanism and self.mechanism and mechanism != self.mechanism:
            doubts.append(f"{paths.CAPTURE} says that the mechanism was {self.mechanism}, you say {mechanism}")
        return doubts


def read_step_launches(files: Sequence[Path], capture: Capture) -> Launches:
    """The CUDA API calls of the capture's exports, on its clock, `process` being its places."""
    whole = [(place, process) for place, process in enumerate(capture.processes) if process.thread is None]
    by_pid = {(process.session, process.pid): place for place, process in whole}
    starts = sorted(set(capture.alignment.offsets_ns))
    zero = min(export.clock_start_ns for export in capture.exports)
    parts = []
    for file, export, offset in zip(files, capture.exports, capture.alignment.offsets_ns, strict=True):
        launches, pids = read_launches(unpacked(file))
        places = np.array([by_pid.get((starts.index(offset), pid), -1) for pid in pids], np.int16)
        known = places[launches.process] >= 0 if len(places) else np.zeros(0, np.bool_)
        kept = launches.take(known)
        shift = clock_shift(export, zero)
        parts.append(replace(kept, start_ns=kept.start_ns + shift, end_ns=kept.end_ns + shift,
                             process=places[kept.process]))  # fmt: skip
    joined = concatenated(Launches, parts)
    for place, process in enumerate(capture.processes):
        if process.thread is not None:
            its = np.unique(capture.kernels.correlation[capture.kernels.process == place])
            own = (joined.process == by_pid[process.session, process.pid]) & np.isin(joined.correlation, its)
            joined = replace(joined, process=np.where(own, np.int16(place), joined.process))
    return joined.take(np.argsort(joined.start_ns, kind="stable"))


def read_capture(run_folder: str | Path, step: str) -> StepCapture:
    """The capture of a step of a run folder. Raises InputError where the step has none, or it did not succeed."""
    folder = paths.capture_folder(run_folder, step)
    facts = _capture_facts(folder / paths.CAPTURE)
    if facts.status != "done":
        raise InputError(f"{folder}: the capture is {facts.status}: {facts.reason or 'no reason recorded'}")
    names = facts.exports or [DEFAULT_EXPORT]
    files = tuple(_inside(folder, str(name)) for name in names)
    files = tuple(map(lies_at, files))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{step} of {Path(run_folder).name} has no capture: {', '.join(missing)} is not in {folder}")
    capture = on_their_gpus(read_exports([unpacked(file) for file in files]), facts.visible_devices or {})
    return StepCapture(step, split_threads(capture, files, recorded_threads(facts.threads)), facts, files)


def read_files(files: Sequence[str | Path]) -> StepCapture:
    """Exports that somebody names, with what the capture.json beside them says of them.

    It says so where all of them lie in one folder whose capture.json names them. Raises InputError where one cannot be
    read.
    """
    named = tuple(Path(file) for file in files)
    facts = _facts_beside(named)
    capture = on_their_gpus(read_exports([unpacked(file) for file in named]), facts.visible_devices or {})
    capture = split_threads(capture, named, recorded_threads(facts.threads))
    return StepCapture(str(facts.step or ""), capture, facts, named)


def with_threads(captured: StepCapture, *words: str) -> StepCapture:
    """The capture with the threads that words as '777:780' name apart; raises InputError for one without work."""
    threads = threads_in(*words)
    capture = split_threads(captured.capture, captured.files, threads)
    check_threads(capture, threads)
    return replace(captured, capture=capture)


def _facts_beside(files: Sequence[Path]) -> CaptureFacts:
    folders = {file.parent.resolve() for file in files}
    if len(folders) != 1:
        return CaptureFacts()
    facts = _capture_facts(folders.pop() / paths.CAPTURE)
    exports = facts.exports or [DEFAULT_EXPORT]
    return facts if all(file.name.removesuffix(PACKED) in exports for file in files) else CaptureFacts()


def captured_steps(run_folder: str | Path) -> list[str]:
    """Steps of a run folder that have a capture with kernels which can be read, in the order of the steps."""
    captured = []
    for step in STEP_IDS:
        folder = paths.capture_folder(run_folder, step)
        if not folder.is_dir():
            continue
        facts = _capture_facts(folder / paths.CAPTURE)
        names = facts.exports or [DEFAULT_EXPORT]
        good = facts.status == "done" and facts.traced in (None, "cuda")
        files = [lies_at(folder / str(name)) for name in names]
        if good and all(file.is_file() for file in files) and any(_holds_kernels(file) for file in files):
            captured.append(step)
    return captured


def _holds_kernels(file: Path) -> bool:
    """Whether an export has a table of kernels or of graphs, or is damaged, which its reader tells better."""
    try:
        with opened(unpacked(file)) as connection:
            tables = tables_of(connection)
    except InputError:
        return True
    return any(find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}") for kind in ("KERNEL", "GRAPH_TRACE"))


def on_their_gpus(capture: Capture, visible: Mapping[str, Sequence[str]]) -> Capture:
    """The capture with each process's devices replaced by the GPUs that it sees.

    `visible`: pid -> GPUs in the order in which the process sees them, by index or UUID (capture.json's
    `visible_devices`); a process that it does not name keeps its numbers. An export that tells the GPUs itself is left
    as it is.
    """
    if not visible or any(export.tells_gpus for export in capture.exports):
        return capture
    devices, known = list(capture.devices), _known(capture)
    table = np.tile(np.arange(len(devices), dtype=np.int16), (max(1, len(capture.processes)), 1))
    for place, process in enumerate(capture.processes):
        names = visible.get(str(process.pid), ())
        for cuda_place, device in enumerate(capture.devices):
            if device.number < len(names):
                gpu = known.get(names[device.number].removeprefix("GPU-"), device)
                if gpu not in devices:
                    devices.append(gpu)
                table[place, cuda_place] = devices.index(gpu)
    exports = [replace(export, tells_gpus=True) for export in capture.exports]
    kernels = replace(capture.kernels, device=table[capture.kernels.process, capture.kernels.device])
    copies = replace(capture.copies, device=table[capture.copies.process, capture.copies.device])
    return replace(capture, kernels=kernels, copies=copies, devices=devices, exports=exports)


def _known(capture: Capture) -> dict[str, Device]:
    """GPUs by number and by UUID: those that the exports describe, else those that work ran on."""
    described = [gpu for export in capture.exports for gpu in export.gpus]
    return {name: gpu for gpu in (*described, *capture.devices) for name in (str(gpu.number), gpu.key)}


def _zero_utc_ns(capture: Capture) -> int | None:
    starts = [export.session_start_utc_ns for export in capture.exports]
    known = [int(start) for start in starts if start is not None]
    return min(known) if known and len(known) == len(starts) else None


def _inside(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / paths.CAPTURE} names {name!r}, which is outside its folder")
    return file


def _capture_facts(file: Path) -> CaptureFacts:
    return CaptureFacts.read(file) if file.is_file() else CaptureFacts()


UNCERTAINTY_NS = 100_000  # assumed: two readings of a host's clock when a session starts, and GPU-to-host conversion


def read_exports(files: Sequence[str | Path]) -> Capture:
    """Exports as one capture; raises InputError where one cannot be read or two cannot be brought onto one clock."""
    if not files:
        raise InputError("no export given; make one: nsys export --type sqlite REPORT.nsys-rep")
    captures = [read_cached(Path(file)) for file in files]
    starts = _session_starts(captures)
    _check_different(captures, starts)
    zero = min(starts)
    shifts = [start - zero for start in starts]
    sessions = sorted(set(shifts))
    parts = [_shifted(part, _shift(part, zero)) for part in captures]
    several = len(sessions) > 1
    method = f"recorded starts of {len(sessions)} sessions" if several else "one session"
    alignment = Alignment(tuple(shifts), _uncertainty(starts) if several else 0, method)
    merged = _merged(parts, [sessions.index(shift) for shift in shifts])
    return replace(merged, alignment=alignment)


def _session_starts(captures: Sequence[Capture]) -> list[int]:
    """UTC ns of each export's session start; several exports need one each."""
    starts = [part.exports[0].session_start_utc_ns for part in captures]
    if len(captures) > 1 and None in starts:
        name = captures[starts.index(None)].exports[0].file
        raise InputError(f"{name} does not record when its session started, so it cannot be aligned with the others")
    known = [0 if start is None else int(start) for start in starts]
    if max(known) - min(known) > NO_TIME // 4:
        raise InputError("the exports' session starts are decades apart: these are not captures of one run")
    return known


def _check_different(captures: Sequence[Capture], starts: Sequence[int]) -> None:
    """Raise InputError where two files hold the same kernels of one session: every count would double."""
    for first, second in combinations(range(len(captures)), 2):
        left, right = captures[first], captures[second]
        if starts[first] != starts[second] or not len(left.kernels):
            continue
        pids = [[part.processes[place].pid for place in np.unique(part.kernels.process)] for part in (left, right)]
        if sorted(pids[0]) == sorted(pids[1]) and np.array_equal(left.kernels.start_ns, right.kernels.start_ns):
            names = " and ".join(str(part.exports[0].path) for part in (left, right))
            raise InputError(f"{names} hold the same kernels; give one of them")


def _shift(part: Capture, zero: int) -> int:
    part.exports[0] = replace(part.exports[0], clock_start_ns=zero)
    return clock_shift(part.exports[0], zero)


def clock_shift(export: ExportFacts, zero: int) -> int:
    """What to add to an export's times to get ns since `zero` (UTC ns; 0 where no start is recorded)."""
    start = 0 if export.normalised else (export.session_start_utc_ns or 0)
    return int(start - zero - export.time_shift_ns)


def _uncertainty(starts: Sequence[int]) -> int:
    """The assumed error of a recorded start, or the coarseness of the stamps where that is more."""
    grain = 1
    while grain < 10**9 and all(start % (grain * 10) == 0 for start in starts):
        grain *= 10
    return max(UNCERTAINTY_NS, grain)


def _shifted(part: Capture, shift: int) -> Capture:
    if not shift:
        return part
    for frame in (part.kernels, part.copies, part.overhead):
        if len(frame) and abs(int(frame.start_ns[0]) + shift) >= NO_TIME:
            raise InputError(f"{part.exports[0].file}: its times do not fit its recorded session start")
    return replace(
        part,
        kernels=_moved(part.kernels, shift),
        copies=_moved(part.copies, shift),
        overhead=_moved(part.overhead, shift),
        switches=replace(part.switches, t_ns=part.switches.t_ns + shift),
    )


def _moved(frame: Any, shift: int) -> Any:
    return replace(frame, start_ns=frame.start_ns + shift, end_ns=frame.end_ns + shift)


def _merged(parts: Sequence[Capture], sessions: Sequence[int]) -> Capture:
    """Captures on one clock as one; a pid of two sessions is two processes, the same GPU is one device."""
    devices: dict[str, Device] = {}
    processes: dict[tuple[int, int], Process] = {}
    names: dict[str, int] = {}
    # By session and content, not by the order of arguments: labels and ties must not depend on that.
    order = sorted(range(len(parts)), key=lambda place: (sessions[place], _content(parts[place])))
    for place in order:
        part, session = parts[place], sessions[place]
        for device in part.devices:
            devices.setdefault(device.key, device)
        for process in part.processes:
            processes.setdefault((session, process.pid), replace(process, session=session))
        for name in part.names:
            names.setdefault(name, len(names))
    earliest: dict[int, int] = {}
    for session, pid in sorted(processes):
        first = earliest.setdefault(pid, session)
        if session != first:
            process = processes[session, pid]
            processes[session, pid] = replace(process, label=f"{process.label}@{session + 1}")
    renumbered = [_renumbered(parts[place], sessions[place], list(devices), list(processes), names) for place in order]
    if len(parts) == 1 and len(names) == len(parts[0].names):
        return replace(parts[0], omissions=list(parts[0].omissions))
    return Capture(
        kernels=_sorted(Kernels, [part.kernels for part in renumbered]),
        copies=_sorted(Copies, [part.copies for part in renumbered]),
        switches=_switches([part.switches for part in renumbered]),
        overhead=_sorted(Overhead, [part.overhead for part in renumbered]),
        names=list(names),
        devices=list(devices.values()),
        processes=list(processes.values()),
        exports=[part.exports[0] for part in parts],
        omissions=[f"{part.exports[0].file}: {words}" for part in parts for words in part.omissions],
        simulated=any(part.simulated for part in parts),
    )


def _content(part: Capture) -> tuple[Any, ...]:
    first = int(part.kernels.start_ns[0]) if len(part.kernels) else 0
    return sorted(process.pid for process in part.processes), len(part.kernels), first, str(part.exports[0].file)


def _renumbered(
    part: Capture, session: int, devices: list[str], processes: list[tuple[int, int]], names: dict[str, int]
) -> Capture:
    device = np.array([*(devices.index(item.key) for item in part.devices), -1], np.int16)  # UNKNOWN stays the last
    process = np.array([processes.index((session, item.pid)) for item in part.processes], np.int16)
    name = np.array([*(names[item] for item in part.names), -1], np.int32)
    tables: dict[str, Callable[[Any], Any]] = {
        "device": lambda places: device[places],
        "process": lambda places: process[places],
        "name": lambda places: name[places],
    }

    def mapped(frame: Any) -> Any:
        changes = {column: tables[column](getattr(frame, column)) for column in tables if column in frame.dtypes()}
        return replace(frame, **changes) if len(frame) else frame

    return replace(
        part,
        kernels=mapped(part.kernels),
        copies=mapped(part.copies),
        overhead=mapped(part.overhead),
        switches=replace(mapped(part.switches), session=np.full(len(part.switches), session, np.int16)),
    )


def _switches(parts: Sequence[Switches]) -> Switches:
    joined = concatenated(Switches, parts)
    return joined.take(np.lexsort((joined.t_ns, joined.device)))


def _sorted(kind: type[Any], parts: Sequence[Any]) -> Any:
    joined = concatenated(kind, parts)
    return joined.take(np.argsort(joined.start_ns, kind="stable"))


def concatenated(kind: type[Columns], parts: Sequence[Any]) -> Any:
    if not parts:
        return kind.empty()
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in kind.dtypes()})
