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
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from colo_lib.errors import InputError
from colo_lib.parse import export_worker, sqlite_file
from colo_lib.traces import Ints

WORTH_A_PROCESS = 60_000  # rows; fewer are read sooner than a process starts
BLOCK_ROWS = 131_072
Made = TypeVar("Made")


def read_rows(
    file: Path, connection: sqlite3.Connection, table: str, columns: list[str], make: Callable[[Ints], Made]
) -> list[Made]:
    """`make` of every block of the table, in rowid order; a block is int64 [rows, columns].

    `columns` are SQL expressions over the table. What is not a number is `export_worker.MISSING`.
    Raises InputError where the file is damaged.
    """
    if not columns:
        return []
    quoted = '"' + table.replace('"', '""') + '"'
    query = f"SELECT {', '.join(columns)} FROM {quoted} WHERE rowid BETWEEN ? AND ?"
    low, high = connection.execute(f"SELECT min(rowid), max(rowid) FROM {quoted}").fetchone()
    if low is None:
        return []
    workers = min(cores(), (high - low) // WORTH_A_PROCESS)
    if workers < 2:
        return [make(block) for block in _own(connection, query, low, high, len(columns))]
    edges = [low + (high + 1 - low) * place // workers for place in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        asked = [
            pool.submit(_of_worker, file, query, start, stop - 1, len(columns), make) for start, stop in pairwise(edges)
        ]
        return [made for answer in asked for made in answer.result()]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _own(connection: sqlite3.Connection, query: str, low: int, high: int, width: int) -> Iterator[Ints]:
    held: list[Ints] = []
    rows = 0
    for block in export_worker.blocks(connection, query, low, high):
        held.append(np.frombuffer(block, np.int64).reshape(-1, width))
        rows += len(held[-1])
        if rows >= BLOCK_ROWS:
            yield np.concatenate(held)
            held, rows = [], 0
    if held:
        yield np.concatenate(held)


def _of_worker(file: Path, query: str, low: int, high: int, width: int, make: Callable[[Ints], Made]) -> list[Made]:
    command = [sys.executable, "-I", "-S", export_worker.__file__]
    request = {"address": sqlite_file.address(file), "query": query, "low": low, "high": high}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        made = []
        while block := process.stdout.read(BLOCK_ROWS * width * 8):
            made.append(make(np.frombuffer(block, np.int64).reshape(-1, width)))
        complaint = process.stderr.read().decode(errors="replace").strip()
        if process.wait():
            raise InputError(f"{file}: damaged or not an export: {complaint or 'its reader died'}; export it again")
        return made
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
