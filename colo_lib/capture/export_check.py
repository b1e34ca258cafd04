"""Whether an export holds what a capture was made for, found out without knowing one table's name.

A table with a start and a `globalPid` or `globalTid` holds events of processes; with a `deviceId` too it holds what a
GPU did. The names and versions of the tables are `parse`'s affair.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from colo_lib.errors import StepFailed


def events_by_pid(export: Path, on_gpu: bool) -> dict[int, int]:
    """Events by process; `on_gpu`: of the GPU only. Raises StepFailed for a file that is damaged or no database."""
    if not export.is_file() or export.stat().st_size == 0:
        raise StepFailed(f"nsys left no export, or an empty one: {export.name}")
    found: dict[int, int] = {}
    try:
        with closing(sqlite3.connect(export.absolute().as_uri() + "?mode=ro", uri=True)) as database:
            said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise StepFailed(f"the export {export.name} is damaged: {said}")
            for table, owner in event_tables(database, on_gpu):
                # globalPid and globalTid hold the pid in bits 24 to 47.
                rows = database.execute(f'SELECT ("{owner}" >> 24) & 16777215, COUNT(*) FROM "{table}" GROUP BY 1')
                for pid, count in rows:
                    found[pid] = found.get(pid, 0) + count
    except sqlite3.Error as error:
        raise StepFailed(f"the export {export.name} cannot be read: {error}") from None
    return found


def event_tables(database: sqlite3.Connection, on_gpu: bool) -> list[tuple[str, str]]:
    """(table, column that names its rows' process) of every table of events."""
    found = []
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}
        owner = next((name for name in ("globalPid", "globalTid") if name in columns), None)
        if owner and "start" in columns and '"' not in table and (not on_gpu or {"deviceId", "globalPid"} <= columns):
            found.append((table, owner))
    return found


def missing_workloads(export: Path, pids: Mapping[str, Sequence[int]], on_gpu: bool) -> list[str]:
    """Workloads (of `pids`, all processes by workload) that have no event in the export."""
    events = events_by_pid(export, on_gpu)
    return [name for name, members in pids.items() if not any(events.get(pid) for pid in members)]
