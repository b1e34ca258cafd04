"""Make a capture fit to share: a new file with what the workbook reads, and nothing that tells whose machine it was.

Tables, columns and texts are kept by name (`redact_columns`), everything else stays behind. The new file is made
afresh: of the old one's schema (defaults, checks, views, triggers, indexes) and of its free pages nothing comes along.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_lib.errors import InputError
from colo_lib.parse import export_tables as schema
from colo_lib.parse.redact_columns import KEPT, META, TEXTS, kept_columns, shared_value
from colo_lib.parse.scrub import Scrubber
from colo_lib.parse.sqlite_file import check_file, opened, tables_of

PIDS = {"globalpid", "globaltid"}
TIMED = ("start", "timestamp")
ROWS = 20_000


@dataclass
class Redaction:
    """What was removed: `lines` in words, for the user to judge."""

    lines: list[str] = field(default_factory=list)


def redact(
    source: Path,
    target: Path,
    pids: set[int],
    window_s: tuple[float, float] | None = None,
    scrub: Scrubber | None = None,
) -> Redaction:
    """Write a shareable copy of export `source` to `target`, which must not exist; gives what was left out.

    `pids`: processes whose rows are kept, by the pids of kernels and of context switches. `window_s`: keep this part
    alone. `scrub`: what else is shared together with it, so that a GPU keeps its number. Raises InputError for an input
    that cannot be read or an output that exists or cannot be written.
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
                told = _Copier(old, new, pids, window_s, scrub or Scrubber()).copy()
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
    scrub: Scrubber
    strings: set[int] = field(default_factory=set)
    launched: set[tuple[int, int]] = field(default_factory=set)  # (pid, correlation) of the activity that is kept

    def copy(self) -> Redaction:
        tables, told, before = tables_of(self.old), Redaction(), self.scrub.counts.copy()
        words = 0
        self.scrub.secrets |= _secrets(self.old, tables)
        # Activity first: its launches are kept with it, and of the names only those that anything kept refers to.
        for table in sorted(tables, key=lambda name: (name == "StringIds", "RUNTIME" in name)):
            count = int(self.old.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0])
            columns = kept_columns(table, tables[table]) if KEPT.fullmatch(table) else {}
            if not columns:
                if table.startswith("ENUM_"):
                    words += 1
                else:
                    told.lines.append(f"table {table}: {count:,} rows")
                continue
            kept = self._table(table, columns)
            if kept < count:
                told.lines.append(f"{table}: {count - kept:,} of {count:,} rows (other processes, times or names)")
            left = [column for column in tables[table] if column not in columns]
            if left and kept:
                told.lines.append(f"{table}: values of {', '.join(left)}")
        if words:
            told.lines.append(f"lists of words that nothing here reads: {words} tables ENUM_*")
        told.lines += [f"{kind}: {count:,}" for kind, count in (self.scrub.counts - before).items()]
        return told

    def _table(self, table: str, columns: dict[str, str]) -> int:
        kinds = {name: "TEXT" if (table, name.lower()) in TEXTS else "INTEGER" for name in columns.values()}
        key = {"id": " PRIMARY KEY"} if table == "StringIds" else {}
        declared = ", ".join(f"{_quoted(name)} {kind}{key.get(name, '')}" for name, kind in kinds.items())
        self.new.execute(f"CREATE TABLE {_quoted(table)} ({declared})")
        low = [column.lower() for column in columns]
        places = ", ".join("?" * len(columns))
        cursor = self.old.execute(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)}")
        kept = 0
        while rows := cursor.fetchmany(ROWS):
            chosen = [self._row(table, low, row) for row in rows if self._keeps(table, low, row)]
            self.new.executemany(f"INSERT OR REPLACE INTO {_quoted(table)} VALUES ({places})", chosen)
            kept += len(chosen)
        return kept

    def _keeps(self, table: str, columns: list[str], row: tuple[Any, ...]) -> bool:
        values = dict(zip(columns, row, strict=True))
        if table == "StringIds":
            return values.get("id") in self.strings
        if table == "META_DATA_EXPORT":
            return values.get("name") in META
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
        if isinstance(value, int) and (column.endswith("name") or column == "nameid"):
            self.strings.add(value)
        return shared_value(self.scrub, table, column, value)


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
