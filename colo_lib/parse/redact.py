"""Make a capture fit to share: a new file with what the workbook reads, and nothing that tells whose machine it was.

Tables are kept by name, everything else stays behind: an unknown table of a newer export is left out, not leaked.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from colo_lib.errors import InputError
from colo_lib.parse import export_tables as schema
from colo_lib.parse.sqlite_file import check_file, opened, tables_of

KEPT = re.compile(
    r"CUPTI_ACTIVITY_KIND_(KERNEL|GRAPH_TRACE|MEMCPY|MEMSET|RUNTIME)(_V\d+)?|GPU_CONTEXT_SWITCH_EVENTS|PROFILER_OVERHEAD"
    r"|CUDA_GRAPH_EVENTS|TARGET_INFO_(GPU|CUDA_GPU|CUDA_DEVICE|CUDA_CONTEXT_INFO|CUDA_STREAM|SESSION_START_TIME)"
    r"|ANALYSIS_DETAILS|PROCESSES|StringIds|META_DATA_EXPORT|ENUM_\w+"
)
BLANKED = {"uuid", "luid", "localtime", "utctime", "ctxswdevpath", "ctrldevpath", "callchainid"}  # lower case
KEPT_META = re.compile(r"EXPORT_(PRODUCT|SCHEMA|PARAM_TIME|CONFIG_TIME)_\w+|EXPORT_PLATFORM|EXPORT_ARCH")
PATH = re.compile(r"""(?:(?<=[\s"'=:,(])|^)(?:~|[A-Za-z]:)?(?:[/\\][\w.+@ -]+){2,}[/\\]?""")
PIDS = {"globalpid", "globaltid"}
TIMED = ("start", "timestamp")
HIDDEN = "(removed)"
ROWS = 20_000


@dataclass
class Redaction:
    """What was removed: `lines` in words, for the user to judge."""

    lines: list[str] = field(default_factory=list)


def redact(source: Path, target: Path, pids: set[int], window_s: tuple[float, float] | None = None) -> Redaction:
    """Write a shareable copy of export `source` to `target`, which must not exist; gives what was left out.

    `pids`: processes whose rows are kept, by the pids of kernels and of context switches. `window_s`: keep this part
    alone. Raises InputError for an input that cannot be read or an output that exists or cannot be written.
    """
    check_file(source)
    if target.exists():
        raise InputError(f"{target} exists; give the name of a new file")
    made = target.with_name(f".{target.name}.new")
    try:
        made.unlink(missing_ok=True)
        with opened(source) as old:
            new = sqlite3.connect(made)
            try:
                told = _Copier(old, new, pids, window_s).copy()
                new.commit()
                new.execute("VACUUM")
            finally:
                new.close()
        made.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        made.unlink(missing_ok=True)
    return told


@dataclass
class _Copier:
    old: sqlite3.Connection
    new: sqlite3.Connection
    pids: set[int]
    window_s: tuple[float, float] | None
    strings: set[int] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)
    launched: set[tuple[int, int]] = field(default_factory=set)  # (pid, correlation) of the activity that is kept
    hidden: int = 0

    def copy(self) -> Redaction:
        tables, told = tables_of(self.old), Redaction()
        self.secrets = _secrets(self.old, tables)
        # Activity first: its launches are kept with it, and of the names only those that anything kept refers to.
        for table in sorted(tables, key=lambda name: (name == "StringIds", "RUNTIME" in name)):
            count = int(self.old.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])
            if not KEPT.fullmatch(table):
                told.lines.append(f"table {table}: {count:,} rows")
                continue
            kept = self._table(table, tables[table])
            if kept < count:
                told.lines.append(f"{table}: {count - kept:,} of {count:,} rows (other processes, times or names)")
            blanked = [column for column in tables[table] if column.lower() in BLANKED]
            if blanked and kept:
                told.lines.append(f"{table}: values of {', '.join(blanked)}")
        if self.hidden:
            told.lines.append(f"{self.hidden:,} names that held a path, a host or a user")
        return told

    def _table(self, table: str, columns: tuple[str, ...]) -> int:
        sql = self.old.execute("SELECT sql FROM sqlite_master WHERE type='table' AND name=?", (table,)).fetchone()[0]
        self.new.execute(re.sub(r"/\*.*?\*/|--[^\n]*", "", str(sql), flags=re.DOTALL))
        low = [column.lower() for column in columns]
        places = ", ".join("?" * len(columns))
        cursor = self.old.execute(f"SELECT * FROM {_quoted(table)}")
        kept = 0
        while rows := cursor.fetchmany(ROWS):
            chosen = [self._row(table, low, row) for row in rows if self._keeps(table, low, row)]
            self.new.executemany(f"INSERT INTO {_quoted(table)} VALUES ({places})", chosen)
            kept += len(chosen)
        return kept

    def _keeps(self, table: str, columns: list[str], row: tuple[Any, ...]) -> bool:
        values = dict(zip(columns, row, strict=True))
        if table == "StringIds":
            return values.get("id") in self.strings
        if table == "META_DATA_EXPORT":
            return bool(KEPT_META.fullmatch(str(values.get("name"))))
        for name in PIDS & set(columns):
            serial = values[name]
            if isinstance(serial, int) and (serial >> 24) & 0xFFFFFF not in self.pids:
                return False
        if "processid" in values and values["processid"] not in self.pids:
            return False
        return self._in_window(table, values)

    def _in_window(self, table: str, values: dict[str, Any]) -> bool:
        if table.startswith("CUPTI_ACTIVITY") and "RUNTIME" in table and self._launch(values) in self.launched:
            return True
        time = next((values[name] for name in TIMED if name in values), None)
        if self.window_s is None or not isinstance(time, int) or table == "CUDA_GRAPH_EVENTS":
            return True
        end = values.get("end", time)
        start_ns, end_ns = (round(second * 1e9) for second in self.window_s)
        return time < end_ns and (end if isinstance(end, int) else time) > start_ns

    def _launch(self, values: dict[str, Any]) -> tuple[int, int]:
        serial = values.get("globalpid", values.get("globaltid"))
        pid = (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else 0
        return pid, values.get("correlationid") or 0

    def _row(self, table: str, columns: list[str], row: tuple[Any, ...]) -> tuple[Any, ...]:
        if table.startswith("CUPTI_ACTIVITY") and "RUNTIME" not in table:
            self.launched.add(self._launch(dict(zip(columns, row, strict=True))))
        return tuple(self._value(table, name, value) for name, value in zip(columns, row, strict=True))

    def _value(self, table: str, column: str, value: Any) -> Any:
        if column in BLANKED:
            return "" if isinstance(value, str) else 0 if column == "luid" else None
        if isinstance(value, int) and (column.endswith("name") or column == "nameid"):
            self.strings.add(value)
        if not isinstance(value, str):
            return value
        if table == "PROCESSES":
            value = PurePosixPath(value.split()[0]).name if value.split() else ""
        shown = PATH.sub(HIDDEN, value)
        for secret in self.secrets:
            shown = shown.replace(secret, HIDDEN)
        self.hidden += shown != value
        return shown


def _secrets(connection: sqlite3.Connection, tables: schema.Tables) -> set[str]:
    """Host and user names that the export itself tells, to be taken out wherever else they stand."""
    found = set()
    for table in ("TARGET_INFO_SYSTEM_ENV", "META_DATA_CAPTURE"):
        for row in schema.rows_of(connection, tables, table):
            words = " ".join(str(row.get(key, "")) for key in ("name", "nameEnum", "devStateName")).lower()
            value = row.get("value")
            if isinstance(value, str) and len(value) > 2 and re.search(r"host|user|login|home", words):
                found.add(value)
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
