"""One Nsight Systems SQLite export to a `trace.Capture`, read-only, few columns, once; large ones through a cache.

Reading a million rows costs as much as all the analysis.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from colo_lib.data import export_cache
from colo_lib.data import nsys_schema as schema
from colo_lib.data.nsys_pages import PagedTable, blocks_of, paged_launches, paged_tables
from colo_lib.data.sqlite_file import DAMAGE, check_file
from colo_lib.data.sqlite_pages import Pages, Unusual, opened_pages
from colo_lib.data.sqlite_reader import (
    MISSING,
    cores,
    looked_through,
    opened,
    read_table,
    tables_of,
)
from colo_lib.errors import InputError
from colo_lib.trace import (
    SET,
    UNKNOWN,
    Bools,
    Capture,
    Copies,
    ExportFacts,
    Ints,
    Kernels,
    Launches,
    Overhead,
    Process,
    load_capture,
    save_capture,
)

NO_TIME = 2**62  # 146 years: no session's clock shows it, and differences below it cannot overflow
LONGEST_NAME = 16_384  # characters; patterns are searched in every name
LONGEST_NS = 2**50  # 13 days
PID_BITS, PID_MASK = 24, 0xFFFFFF
UNNAMED = "(unnamed)"
DENSE = 1_000_000


@dataclass
class Reader:
    """What is collected while one file is read. `pids` and `name_ids`: place -> the file's own number."""

    file: Path
    connection: sqlite3.Connection
    tables: schema.Tables
    device_map: schema.DeviceMap
    pages: Pages | None = None
    paged: Mapping[str, PagedTable] = field(default_factory=dict)
    pids: dict[int, int] = field(default_factory=dict)
    name_ids: dict[int, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def rows(self, name: str, kind: type[Any], make: Callable[[schema.Columns], Any]) -> Any:
        """The rows of activity `name` as a frame of `kind`; rows without a usable time are left out."""
        try:
            source = schema.activity_source(self.tables, name)
        except InputError as error:
            raise InputError(f"{self.file}: {error}") from None
        if source is None:
            return kind.empty()

        def narrow(block: Ints) -> Any:
            columns = {column: block[:, place] for place, column in enumerate(source.columns)}
            return make(schema.unpacked(self._timed(name, columns)))

        blocks = None
        if self.pages is not None and source.table in self.paged:
            blocks = blocks_of(self.pages, self.paged[source.table], cores())
        return read_table(self.file, self.connection, source.table, list(source.columns.values()), kind, narrow, blocks)

    def _timed(self, kind: str, columns: dict[str, Ints]) -> dict[str, Ints]:
        start, end, owner = columns["start_ns"], columns["end_ns"], columns["owner"]
        checks = {"have no time": (start == MISSING) | (end == MISSING)}
        if kind == "GRAPH_TRACE":
            checks["have no time"] = checks["have no time"] | ((start == 0) & (end == 0))
        checks["have a time that no session's clock shows"] = (np.abs(start) >= NO_TIME) | (np.abs(end) >= NO_TIME)
        checks["end before they start"] = end < start
        # Differences of what is left cannot overflow, nor their sums over as many rows as a file can hold.
        checks["last longer than any session"] = (
            (np.abs(start) < NO_TIME) & (np.abs(end) < NO_TIME) & (end - start > LONGEST_NS)
        )
        if kind != "RUNTIME":
            checks["name no device"] = owner == MISSING
        bad = np.zeros(len(start), np.bool_)
        for reason, wrong in checks.items():
            self._drop(f"{ROW_WORDS[kind]} {reason}", wrong & ~bad)
            bad |= wrong
        return {name: column[~bad] for name, column in columns.items()} if bad.any() else columns

    def _drop(self, words: str, wrong: Bools) -> None:
        count = int(wrong.sum())
        if count:
            self.dropped[words] = self.dropped.get(words, 0) + count

    def processes(self, pid: Ints) -> np.ndarray:
        """Places of the processes of pids, in the order in which they are met; pid 0 stands for none."""
        return _places(pid, self.pids).astype(np.int16)

    def devices(self, number: Ints, process: np.ndarray) -> np.ndarray:
        """Places of the devices of the processes' numbers."""
        return self.device_map.places(number, process, self.pids)

    def names(self, name_id: Ints) -> np.ndarray:
        """Places of the names of string ids."""
        return _places(name_id, self.name_ids).astype(np.int32)


ROW_WORDS = {
    "KERNEL": "kernels",
    "GRAPH_TRACE": "graph launches",
    "MEMCPY": "memory copies",
    "MEMSET": "memory sets",
    "RUNTIME": "CUDA API calls",
}


def read_export(file: Path) -> Capture:
    """Everything of one export but its API calls, times as the file has them.

    `exports[0]` holds the facts on which sessions are aligned. Raises InputError naming what is wrong with the file.
    """
    return _by_pages_or_sqlite(file, _read, paged_tables)


ReadT = TypeVar("ReadT")
Paged = Mapping[str, PagedTable]


def _by_pages_or_sqlite(
    file: Path,
    read: Callable[[Path, sqlite3.Connection, Pages | None, Paged], ReadT],
    paged: Callable[[sqlite3.Connection, schema.Tables, Pages], Paged],
) -> ReadT:
    """`read` by the pages of tables that `paged` finds; of what is not plain, or damaged, SQLite has the last word."""
    check_file(file)
    with (
        contextlib.suppress(Unusual, InputError, OSError, IndexError, *DAMAGE),
        opened(file) as connection,
        opened_pages(file) as pages,
    ):
        return read(file, connection, pages, paged(connection, tables_of(connection), pages))
    with opened(file) as connection:
        return read(file, connection, None, {})


def _read(file: Path, connection: sqlite3.Connection, pages: Pages | None, paged: Paged) -> Capture:
    """`read_export` of an open file; the rows of `paged` tables come from its pages, which check them as well."""
    with looked_through(file, partial(_odd_numbers, checked=paged), paged) as odd:
        tables = tables_of(connection)
        if not any(schema.find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}") for kind in schema.ACTIVITY):
            raise InputError(f"{file} {_what_it_lacks(tables)}")
        reader = Reader(file, connection, tables, schema.read_devices(connection, tables), pages, paged)
        make = {"KERNEL": _kernels(reader), "GRAPH_TRACE": _graphs(reader)}
        kernels = _joined(Kernels, [reader.rows(name, Kernels, make[name]) for name in make])
        copies = _joined(Copies, [reader.rows(name, Copies, _copies(reader)) for name in ("MEMCPY", "MEMSET")])
        overhead = _read_overhead(reader)
        capture = Capture(
            kernels=kernels,
            copies=copies,
            switches=schema.read_switches(connection, tables, reader.device_map),
            overhead=overhead,
            names=_names(reader),
            devices=reader.device_map.devices,
            processes=_processes(reader),
            exports=[_facts(reader)],
            omissions=[f"{count:,} {words}: left out" for words, count in reader.dropped.items()],
            simulated=schema.export_facts(connection, tables).get("EXPORT_PRODUCT_NAME") == "SIMULATED",
        )
    return replace(capture, exports=[replace(capture.exports[0], doubts=tuple(odd))])


def read_launches(file: Path) -> tuple[Launches, list[int]]:
    """CUDA API calls of an export, sorted by start, times as the file has them; and the pid of each process place."""
    return _by_pages_or_sqlite(file, _launches, paged_launches)


def _launches(
    file: Path, connection: sqlite3.Connection, pages: Pages | None, paged: Paged
) -> tuple[Launches, list[int]]:
    reader = Reader(file, connection, tables_of(connection), schema.DeviceMap([], {}), pages, paged)

    def make(c: schema.Columns) -> Launches:
        return Launches(c["start_ns"], c["end_ns"], reader.processes(c["pid"]), c["correlation"])

    made = reader.rows("RUNTIME", Launches, make)
    return _joined(Launches, [made]), list(reader.pids)


def _odd_numbers(connection: sqlite3.Connection, checked: Collection[str] = ()) -> list[str]:
    """Rows that hold text, fractions or sizes out of range, in words; of these SQL makes other numbers in silence."""
    tables, doubts = tables_of(connection), []
    for kind in schema.ACTIVITY:
        table = schema.find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}")
        if table is None or table in checked or not (columns := schema.number_columns(tables, table)):
            continue
        # Text is more than any number, and a sum with a fraction in it is one; quicker than asking each for its type.
        odd = " OR ".join([*(f"{column} >= ''" for column in columns), f"typeof({' + '.join(columns)}) = 'real'",
                           *schema.out_of_range(tables, table)])  # fmt: skip
        (count,) = connection.execute(f'SELECT count(*) FROM "{table}" WHERE {odd}').fetchone()
        if count:
            doubts.append(f"{count:,} {ROW_WORDS[kind]} hold text, fractions or sizes that cannot be")
    return doubts


def _what_it_lacks(tables: schema.Tables) -> str:
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        return "has CUDA API calls but no GPU activity: no kernel ran while it was recorded, or tracing lost them"
    if "StringIds" in tables or "META_DATA_EXPORT" in tables:
        return "is an export without any CUDA activity; record with `nsys profile --trace cuda`"
    return "is a SQLite database but not an Nsight Systems export; make one: nsys export --type sqlite REPORT.nsys-rep"


def _kernels(reader: Reader) -> Callable[[schema.Columns], Kernels]:
    def make(c: schema.Columns) -> Kernels:
        process = reader.processes(c["pid"])
        return Kernels(
            start_ns=c["start_ns"],
            end_ns=c["end_ns"],
            graph=np.zeros(len(process), np.bool_),
            node=c["node"],
            process=process,
            device=reader.devices(c["device"], process),
            stream=c["stream"],
            correlation=c["correlation"],
            name=reader.names(c["name"]),
            blocks=np.maximum(c["blocks"], 0),
            threads=c["threads"],
            registers=c["registers"],
            shared_bytes=c["shared_bytes"],
        )

    return make


def _graphs(reader: Reader) -> Callable[[schema.Columns], Kernels]:
    def make(c: schema.Columns) -> Kernels:
        process, none = reader.processes(c["pid"]), np.zeros(len(c["start_ns"]), np.int64)
        return Kernels(
            start_ns=c["start_ns"],
            end_ns=c["end_ns"],
            graph=none == 0,
            node=none == 1,
            process=process,
            device=reader.devices(c["device"], process),
            stream=c["stream"],
            correlation=c["correlation"],
            name=np.full(len(none), UNKNOWN, np.int32),
            blocks=none,
            threads=none.astype(np.int32),
            registers=none.astype(np.int16),
            shared_bytes=none.astype(np.int32),
        )

    return make


def _copies(reader: Reader) -> Callable[[schema.Columns], Copies]:
    def make(c: schema.Columns) -> Copies:
        process = reader.processes(c["pid"])
        kind = _bounded(c["kind"], np.int16) if "kind" in c else np.full(len(process), SET, np.int16)
        device = reader.devices(c["device"], process)
        size = np.maximum(c["size_bytes"], 0)
        return Copies(c["start_ns"], c["end_ns"], process, device, c["stream"], kind, size)

    return make


def _read_overhead(reader: Reader) -> Overhead:
    if not reader.tables.get("PROFILER_OVERHEAD"):
        return Overhead.empty()
    source = schema.source(reader.tables, "PROFILER_OVERHEAD", schema.OVERHEAD_COLUMNS)

    def make(block: Ints) -> Overhead:
        c = schema.unpacked({name: block[:, place] for place, name in enumerate(source.columns)})
        good = (c["start_ns"] > -NO_TIME) & (c["end_ns"] < NO_TIME) & (c["end_ns"] >= c["start_ns"])
        c = {name: column[good] for name, column in c.items()}
        process, name = reader.processes(c["pid"]), reader.names(c["name"])
        return Overhead(c["start_ns"], c["end_ns"], process, name)

    columns = list(source.columns.values())
    return read_table(reader.file, reader.connection, source.table, columns, Overhead, make)


def _names(reader: Reader) -> list[str]:
    wanted, names = reader.name_ids, {}
    if wanted and "StringIds" in reader.tables:
        for number, value in reader.connection.execute("SELECT id, value FROM StringIds"):
            if number in wanted and isinstance(value, str) and value:
                names[number] = value[:LONGEST_NAME]
    return [names.get(number, UNNAMED if number == MISSING else f"(name {number})") for number in wanted]


def _processes(reader: Reader) -> list[Process]:
    rows = schema.rows_of(reader.connection, reader.tables, "PROCESSES")
    names = {}
    for row in rows:
        serial, pid = row.get("globalPid"), row.get("pid")
        number = (serial >> PID_BITS) & PID_MASK if isinstance(serial, int) else pid
        if isinstance(number, int) and isinstance(row.get("name"), str):
            names[number] = str(row["name"])
    return [Process(pid, str(pid) if pid else "unknown", names.get(pid, "")) for pid in reader.pids]


def _facts(reader: Reader) -> ExportFacts:
    meta = schema.export_facts(reader.connection, reader.tables)
    start = schema.first_row(reader.connection, reader.tables, "TARGET_INFO_SESSION_START_TIME").get("utcEpochNs")
    shift = meta.get("EXPORT_PARAM_TIME_SHIFT", "0")
    return ExportFacts(
        file="".join(char if char.isprintable() else ascii(char)[1:-1] for char in reader.file.name),
        path=str(reader.file),
        product_version=meta.get("EXPORT_PRODUCT_VERSION"),
        schema_version=meta.get("EXPORT_SCHEMA_VERSION"),
        session_start_utc_ns=start if isinstance(start, int) and 0 < start < NO_TIME else None,
        normalised=meta.get("EXPORT_PARAM_TIME_NORMALIZE") == "true",
        time_shift_ns=int(shift) if shift.lstrip("-").isdigit() else 0,
        gpus=tuple((reader.device_map.known or {}).values()),
        tells_gpus=bool(reader.device_map.numbers),
    )


def _joined(kind: type[Any], parts: list[Any]) -> Any:
    """One frame sorted by start of several; column by column, since ten million rows are ordinary."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return kind.empty()
    columns = [{name: getattr(part, name) for name in kind.dtypes()} for part in parts]
    parts.clear()
    joined = columns[0] if len(columns) == 1 else {}
    for name in kind.dtypes() if not joined else ():
        joined[name] = np.concatenate([part.pop(name) for part in columns])
    start = joined["start_ns"]
    if np.any(start[1:] < start[:-1]):
        order = np.argsort(start, kind="stable")
        for name in joined:
            joined[name] = joined[name][order]
    return kind(**joined)


def _places(values: Ints, known: dict[int, int]) -> Ints:
    """Each value's place in `known`, which grows by the new ones."""
    if not len(values):
        return np.empty(0, np.int64)
    lowest, highest = int(values.min()), int(values.max())
    if highest - lowest > DENSE:
        distinct, inverse = np.unique(values, return_inverse=True)
    else:  # a table of what is there is quicker than sorting
        inverse = values - lowest
        distinct = np.arange(lowest, highest + 1)
        distinct = distinct[np.bincount(inverse) > 0]
        inverse = np.searchsorted(distinct, values) if len(distinct) < highest - lowest + 1 else inverse
    return np.array([known.setdefault(value, len(known)) for value in distinct.tolist()], np.int64)[inverse]


def _bounded(values: Ints, kind: Any) -> np.ndarray:
    limits = np.iinfo(kind)
    return np.where(values == MISSING, 0, np.clip(values, limits.min, limits.max)).astype(kind)


WORTH_ROWS = 200_000


def read_cached(file: Path) -> Capture:
    """`read_export`, or what the cache has of the very same file; raises InputError as that does."""
    folder = export_cache.folder()
    if folder is None:
        return read_export(file)
    check_file(file)
    entry = folder / export_cache.key_of(file)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        capture = load_capture(entry)
        os.utime(entry)
        return replace(capture, exports=[replace(capture.exports[0], file=file.name, path=str(file))])
    capture = read_export(file)
    if worth_keeping(capture):
        with contextlib.suppress(OSError):  # a full disk costs the next reader some seconds, no more
            export_cache.store(entry, lambda made: save_capture(made, capture))
    return capture


def worth_keeping(capture: Capture) -> bool:
    """Whether reading it took so long that the next reader should be spared it."""
    return len(capture.kernels) + len(capture.copies) >= WORTH_ROWS
