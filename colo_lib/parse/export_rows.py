"""Columns of a SQLite table as numpy arrays, read once, in rowid ranges on all the cores there are.

Making Python objects is what reading costs, and it holds the interpreter's lock; so each range is read by a process
of its own, which needs the standard library alone and hands back plain int64.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np

from colo_lib.errors import InputError
from colo_lib.parse import export_worker, sqlite_file
from colo_lib.traces import Columns, Ints

WORTH_A_PROCESS = 60_000  # rows; fewer are read sooner than a process starts
BLOCK_ROWS = 131_072
LEAST_ROW_BYTES = 8  # no row of an export is shorter; more rowids than that have holes between them
ColumnsT = TypeVar("ColumnsT", bound=Columns)


def read_table(
    file: Path,
    connection: sqlite3.Connection,
    table: str,
    columns: list[str],
    kind: type[ColumnsT],
    make: Callable[[Ints], ColumnsT],
) -> ColumnsT:
    """`make` of every block of the table as one frame in rowid order; a block is int64 [rows, columns].

    `columns` are SQL expressions over the table. What is not a number is `export_worker.MISSING`. Blocks go straight to
    their place in arrays as long as the table: ten million rows are never held twice. `make` is called by one thread at
    a time. Raises InputError where the file is damaged.
    """
    quoted = '"' + table.replace('"', '""') + '"'
    query = f"SELECT {', '.join(columns)} FROM {quoted} WHERE rowid BETWEEN ? AND ?"
    low, high = connection.execute(f"SELECT min(rowid), max(rowid) FROM {quoted}").fetchone()
    if low is None:
        return kind.empty()
    rows = high - low + 1
    if rows > file.stat().st_size // LEAST_ROW_BYTES:  # rowids with holes: a place for each would be too much
        return _gathered(connection, query, (low, high), len(columns), kind, make)
    workers = max(1, min(cores(), rows // WORTH_A_PROCESS))
    edges = [low + rows * place // workers for place in range(workers + 1)]
    store = {name: np.empty(rows, dtype) for name, dtype in kind.dtypes().items()}
    lock = Lock()

    def fill(start: int, stop: int) -> tuple[int, int]:
        """Read [start, stop) to its place in `store`; gives first and last place filled, the last not included."""
        place = first = start - low
        span = (start, stop - 1)
        blocks = (
            _of_worker(file, query, span, len(columns)) if workers > 1 else _own(connection, query, span, len(columns))
        )
        for block in blocks:
            with lock:
                part = make(block)
                for name, column in store.items():
                    column[place : place + len(part)] = getattr(part, name)
                place += len(part)
        return first, place

    with ThreadPoolExecutor(workers) as pool:
        # SQLite's connection belongs to this thread, so one reader is this thread itself.
        filled = list(pool.map(fill, edges, edges[1:])) if workers > 1 else [fill(low, high + 1)]
    return kind(**{name: _closed_up(column, filled) for name, column in store.items()})


def _closed_up(column: np.ndarray, filled: list[tuple[int, int]]) -> np.ndarray:
    """The filled parts of a column moved together, in place."""
    end = 0
    for start, stop in filled:
        if start != end:
            column[end : end + stop - start] = column[start:stop]
        end += stop - start
    return column[:end]


def _gathered(
    connection: sqlite3.Connection,
    query: str,
    span: tuple[int, int],
    width: int,
    kind: type[ColumnsT],
    make: Callable[[Ints], ColumnsT],
) -> ColumnsT:
    parts = [make(block) for block in _own(connection, query, span, width)]
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in kind.dtypes()})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _own(connection: sqlite3.Connection, query: str, span: tuple[int, int], width: int) -> Iterator[Ints]:
    held: list[Ints] = []
    rows = 0
    for block in export_worker.blocks(connection, query, *span):
        held.append(np.frombuffer(block, np.int64).reshape(-1, width))
        rows += len(held[-1])
        if rows >= BLOCK_ROWS:
            yield np.concatenate(held)
            held, rows = [], 0
    if held:
        yield np.concatenate(held)


def _of_worker(file: Path, query: str, span: tuple[int, int], width: int) -> Iterator[Ints]:
    command = [sys.executable, "-I", "-S", export_worker.__file__]
    request = {"address": sqlite_file.address(file), "query": query, "low": span[0], "high": span[1]}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        while block := process.stdout.read(BLOCK_ROWS * width * 8):
            yield np.frombuffer(block, np.int64).reshape(-1, width)
        complaint = sqlite_file.plain(process.stderr.read().decode(errors="replace"))
        if process.wait():
            raise InputError(f"{file}: damaged or not an export: {complaint or 'its reader died'}; export it again")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
