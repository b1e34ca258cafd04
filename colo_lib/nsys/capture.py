"""One capture of a step: both workloads under load below nsys, a recorded window of their steady state, its export.

A capture explains; it is never used for throughput. Whatever goes wrong with it is told in its capture.json and leaves
the trials as they are.

Whether its export holds what it was made for is found out without knowing one table's name: a table with a start and a
`globalPid` or `globalTid` holds events of processes; with a grid or a graph too it holds kernels or launches of graphs
(nsys has lost those of a process and kept what it set and copied). Names and versions of tables are the affair of
`data`.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from colo_lib.errors import ColoError, StepFailed
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import in_words
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import begin_load, collect_frames, connect, settle, wait_steady, watch_window
from colo_lib.launch.pacing import pacing_record
from colo_lib.launch.specs import Specs
from colo_lib.launch.trial import Window, measure_window
from colo_lib.nsys.session import JointFailed, Session, recorded_names
from colo_lib.paths import CAPTURE, PARTIAL
from colo_lib.placement import Placement
from colo_lib.records import CaptureFacts, Clock, ProfiledRates
from colo_lib.steps import MECHANISMS

EXPORT_SUFFIX, REPORT_SUFFIX = ".sqlite", ".nsys-rep"
# A report of this size or less is kept beside its export, for Nsight's own window.
KEPT_REPORT_BYTES = 64 * 2**20
# What an export may need, as a multiple of its report.
EXPORT_GROWTH = 6
LEAST_FREE_BYTES = 512 * 2**20
SHAPES = {"gridX", "graphId"}  # a column that rows of kernels, or of launches of whole graphs, have


def blank(specs: Specs) -> CaptureFacts:
    """The record of a capture of which nothing is known yet."""
    placement = specs.trial.placement
    return CaptureFacts(
        schema_version=SCHEMA_VERSION, step=placement.step, mechanism=placement.mechanism,
        status="failed", reason=None, window_ns=None, clock=None,
        devices=placement.devices_record(), pids={"gen": [], "embed": []}, threads=None,
        traced="cuda" if placement.device == "cuda" else "osrt",
        granularity=specs.capture.graphs if placement.device == "cuda" else None, context_switches=False,
        profiled=ProfiledRates(gen_tokens_per_s=None, embed_sequences_per_s=None),
        pacing=pacing_record(specs.trial.load.pacing, placement),
        visible_devices={}, mechanism_evidence=None, exports=[], nsys_version=None, command=[],
        sessions=None, joint_reason=None,
    )  # fmt: skip


def write_absent(
    specs: Specs, target: Path, reason: str, status: str = "absent", joint_reason: str | None = None
) -> None:
    """A capture folder that says only why there is no capture."""
    target.mkdir(parents=True, exist_ok=True)
    record = blank(specs).joined(status=status, reason=reason, joint_reason=joint_reason)
    record.write(target / CAPTURE)


def capture_step(specs: Specs, session: Session, target: Path) -> CaptureFacts:
    """Record one window of a step into the folder `target`; returns the content of its capture.json.

    The engines run below `session` already. A capture that fails is recorded with its cause and raised as StepFailed,
    as JointFailed where separate sessions may do better.
    The folder gets its name when its record is written.
    """
    assert session.handles is not None
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "logs").mkdir(parents=True)
    record = blank(specs).joined(
        command=session.command,
        sessions="separate" if session.separate else "joint",
        joint_reason=session.joint_reason,
    )
    try:
        with ExitStack() as stack:
            record = record.joined(nsys_version=session.version())
            record = _recorded(specs, session, record, partial, stack)
        record = record.joined(exports=_exported(specs.trial.placement, session, partial, record))
    except (ColoError, OSError, KeyboardInterrupt, ValidationError) as error:
        message = in_words(error) if isinstance(error, ValidationError) else str(error)
        record = record.joined(reason=message or type(error).__name__)
        _close(partial, target, record)
        if isinstance(error, KeyboardInterrupt | JointFailed):
            raise
        raise StepFailed(str(record.reason)) from error
    record = record.joined(status="done")
    _close(partial, target, record)
    return record


def _close(partial: Path, target: Path, record: CaptureFacts) -> None:
    with suppress(OSError):
        record.write(partial / CAPTURE)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def _recorded(specs: Specs, session: Session, record: CaptureFacts, folder: Path, stack: ExitStack) -> CaptureFacts:
    """`record` with what a recorded window of steady state adds."""
    spec, placement, length_ns = specs.trial, specs.trial.placement, int(specs.capture.seconds * 1e9)
    handles = session.handles
    assert handles is not None
    _check_disk(folder, 0)
    frames = session.runtime / f"frames-{placement.step}"
    shutil.rmtree(frames, ignore_errors=True)
    frames.mkdir()
    handles.check_alive()
    loads = connect(spec, handles, session.runtime, folder, stack)
    begin_load(spec, handles, loads, session.runtime, folder, stack)
    wait_steady(spec.window, loads, handles)
    names = recorded_names(placement, session.separate)
    context_switches = session.start(folder, names)
    clock = clock_pair()
    start_ns = time.monotonic_ns()
    pids = {name: [pid for root in roots for pid in engine_tree(root)] for name, roots in handles.pids().items()}
    watch_window(spec.window, loads, handles, start_ns + length_ns)
    evidence = handles.evidence()
    end_ns = start_ns + length_ns
    # Before nsys is told to stop: it waits for every process, and one that has no turn does not answer.
    settle(loads, session.runtime, frames)
    collect_frames(loads, session.runtime, frames)
    session.stop(names)
    facts = measure_window(spec, frames, Window(start_ns, end_ns, None, None, 0.0))
    return record.joined(
        window_ns=[start_ns, end_ns], clock=clock, pids=pids, threads=handles.threads() or None,
        visible_devices=devices_seen(placement, handles), context_switches=context_switches,
        mechanism_evidence=evidence,
        profiled=ProfiledRates(
            gen_tokens_per_s=facts.gen_tokens_per_s, embed_sequences_per_s=facts.embed_sequences_per_s
        ),
    )  # fmt: skip


def devices_seen(placement: Placement, handles: Handles) -> dict[str, list[str]]:
    """pid -> the devices that the process sees, in its own order, for every process of every engine's tree."""
    pids = handles.pids()
    roots = [(root, placement.gen_devices) for root in pids["gen"]]
    roots += list(zip(handles.own_pids()["embed"], placement.embed_devices, strict=False))
    return {str(pid): list(devices) for root, devices in roots for pid in engine_tree(root)}


def clock_pair() -> Clock:
    """The same moment by both clocks: nsys tells its session's start in UTC, everything else here is monotonic."""
    before = time.monotonic_ns()
    utc_ns = time.time_ns()
    return Clock(monotonic_ns=(before + time.monotonic_ns()) // 2, utc_ns=utc_ns)


def engine_tree(root: int) -> list[int]:
    """A process and all below it."""
    with suppress(psutil.Error):
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    return [root]


def _exported(placement: Placement, session: Session, folder: Path, record: CaptureFacts) -> list[str]:
    """Export each report and look whether each workload under load is in the one that is to hold it; the exports."""
    assert record.pids is not None
    assert record.profiled is not None
    rates = {"gen": record.profiled.gen_tokens_per_s, "embed": record.profiled.embed_sequences_per_s}
    running = {name: record.pids[name] for name, rate in rates.items() if rate is not None}
    names = recorded_names(placement, session.separate)
    for name in names:
        report, export = folder / (name + REPORT_SUFFIX), folder / (name + EXPORT_SUFFIX)
        if not report.exists():
            raise StepFailed(_not_imported(session.runtime, folder))
        _check_disk(folder, EXPORT_GROWTH * report.stat().st_size)
        session.export(report, export)
        held = {workload: pids for workload, pids in running.items() if _is_for(name, workload, session)}
        missing = missing_workloads(export, held, on_gpu=placement.device == "cuda")
        if missing:
            what = "GPU activity" if placement.device == "cuda" else "event"
            kernels = " with a kernel" if placement.device == "cuda" else ""
            problem = (
                f"the export {export.name} holds no {what} of {' and '.join(missing)}{kernels}, though they worked"
            )
            raise (StepFailed if session.separate else JointFailed)(f"{problem} in the window")
        if report.stat().st_size > KEPT_REPORT_BYTES:
            report.unlink()
    return [name + EXPORT_SUFFIX for name in names]


def _is_for(name: str, workload: str, session: Session) -> bool:
    in_gen = MECHANISMS[session.specs.trial.placement.mechanism].in_gen
    return not session.separate or in_gen or name.split("-")[1] == workload


def _not_imported(runtime: Path, folder: Path) -> str:
    """Keep what the importer could not read, and say how to read it elsewhere."""
    left = [*folder.glob("*.qdstrm"), *runtime.glob("*.qdstrm")]
    if not left:
        return "nsys stop left no report"
    kept = folder / "trace.qdstrm"
    if left[0] != kept:
        shutil.move(left[0], kept)
    return (
        f"nsys recorded but could not import: {kept.name} is kept, not readable here; "
        "a full Nsight Systems turns it into a report with QdstrmImporter -i"
    )


def _check_disk(folder: Path, more_bytes: int) -> None:
    needed, free = LEAST_FREE_BYTES + more_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise StepFailed(
            f"disk full: {folder} has {free / 2**20:.0f} MiB free, a capture needs {needed / 2**20:.0f}: make room"
        )


def events_by_pid(export: Path, on_gpu: bool) -> dict[int, int]:
    """Events by process; `on_gpu`: kernels and graphs only. Raises StepFailed for a damaged file or no database."""
    if not export.is_file() or export.stat().st_size == 0:
        raise StepFailed(f"nsys left no export, or an empty one: {export.name}")
    events: dict[int, int] = {}
    try:
        with closing(sqlite3.connect(export.absolute().as_uri() + "?mode=ro", uri=True)) as database:
            said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise StepFailed(f"the export {export.name} is damaged: {said}")
            for table, owner in event_tables(database, on_gpu):
                # globalPid and globalTid hold the pid in bits 24 to 47.
                rows = database.execute(f'SELECT ("{owner}" >> 24) & 16777215, COUNT(*) FROM "{table}" GROUP BY 1')
                for pid, count in rows:
                    events[pid] = events.get(pid, 0) + count
    except sqlite3.Error as error:
        raise StepFailed(f"the export {export.name} cannot be read: {error}") from None
    return events


def event_tables(database: sqlite3.Connection, on_gpu: bool) -> list[tuple[str, str]]:
    """(table, column that names its rows' process) of every table of events."""
    tables = []
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}
        owner = next((name for name in ("globalPid", "globalTid") if name in columns), None)
        on_device = {"deviceId", "globalPid"} <= columns and bool(columns & SHAPES)
        if owner and "start" in columns and '"' not in table and (not on_gpu or on_device):
            tables.append((table, owner))
    return tables


def missing_workloads(export: Path, pids: Mapping[str, Sequence[int]], on_gpu: bool) -> list[str]:
    """Workloads (of `pids`, all processes by workload) that have no event in the export."""
    events = events_by_pid(export, on_gpu)
    return [name for name, members in pids.items() if not any(events.get(pid) for pid in members)]
