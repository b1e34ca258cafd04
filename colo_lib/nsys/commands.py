"""Nsight Systems' command lines and what its answers mean: pure functions, tried with nsys 2024.2 on CPU and GPU hosts.

One session holds everything that is started below `nsys launch`; it records only between `start` and `stop`, so the
engines load and warm up untraced. A second `nsys launch` into a running session is refused by nsys itself, hence one
process that starts both workloads (`nsys.engine_host`).

Whether an export holds what a capture was made for, found out without knowing one table's name.

A table with a start and a `globalPid` or `globalTid` holds events of processes; with a grid or a graph too it holds
kernels or launches of graphs: nsys has lost those of a process and kept what it set and copied. The names and versions
of the tables are the affair of `data`.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from colo_lib.errors import StepFailed

USUAL_PLACES = (
    "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
    "/opt/nvidia/nsight-systems-cli/*/target-linux-x64/nsys",
    "/usr/local/cuda*/bin/nsys",
)
# Calls of the C library shorter than this say nothing and cost much: ns.
OSRT_THRESHOLD_NS = 10_000
NO_CONTEXT_SWITCHES = re.compile(r"context switch\w* (tracing|trace) (is not|isn't|was not)|--gpuctxsw", re.IGNORECASE)


def find_nsys() -> Path | None:
    """The nsys on PATH, else the newest where NVIDIA's packages put it, else None."""
    on_path = shutil.which("nsys")
    if on_path:
        return Path(on_path)
    for pattern in USUAL_PLACES:
        matches = sorted(Path("/").glob(pattern.lstrip("/")))
        if matches:
            return matches[-1]
    return None


def version_command(nsys: Path) -> list[str]:
    """Asks for the version."""
    return [str(nsys), "--version"]


def parse_version(said: str) -> str | None:
    """`2024.2.3.38` of 'NVIDIA Nsight Systems version 2024.2.3.38-…'; None when it says something else."""
    match = re.search(r"version (\d{4}\.\d+(?:\.\d+)*)", said)
    return match[1] if match else None


def launch_command(nsys: Path, session: str, device: str, graph_trace: str, command: Sequence[str]) -> list[str]:
    """Starts `command` in a new session in which nothing is recorded yet.

    `device` cuda: CUDA and NVTX, CUDA graphs by `graph_trace` (node: every kernel; graph: each graph as a whole);
    cpu: the C library's calls, which is all there is to trace.
    """
    words = [str(nsys), "launch", f"--session-new={session}", "--wait=primary", "--show-output=true"]
    if device == "cpu":
        return [*words, "--trace=osrt", f"--osrt-threshold={OSRT_THRESHOLD_NS}", *command]
    return [*words, "--trace=cuda,nvtx", f"--cuda-graph-trace={graph_trace}", *command]


def start_command(nsys: Path, session: str, report: Path, context_switches: bool) -> list[str]:
    """Begins to record into `report` (without suffix); CPU sampling stays off, it would disturb what is measured."""
    words = [str(nsys), "start", f"--session={session}", f"--output={report}", "--force-overwrite=true"]
    words += ["--sample=none", "--cpuctxsw=none", "--stop-on-exit=true"]
    return words + (["--gpuctxsw=true"] if context_switches else [])


def stop_command(nsys: Path, session: str) -> list[str]:
    """Ends recording and has the report written; the session and its processes stay."""
    return [str(nsys), "stop", f"--session={session}"]


def export_command(nsys: Path, report: Path, sqlite: Path) -> list[str]:
    """Writes a report as SQLite."""
    return [str(nsys), "export", "--type=sqlite", "--force-overwrite=true", f"--output={sqlite}", str(report)]


def context_switches_granted(said: str) -> bool:
    """Whether `start` with context switches was carried out as asked, by what it said."""
    return not NO_CONTEXT_SWITCHES.search(said)


def conflicting_words(words: Sequence[str]) -> list[str]:
    """Server arguments that make a torch profiler subscribe to CUPTI, which serves one subscriber at a time."""
    return [word for word in words if re.match(r"--?(profiler[-_.]config|torch[-_]profiler|profile)", word)]


SHAPES = {"gridX", "graphId"}  # a column that rows of kernels, or of launches of whole graphs, have


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
