"""SQLite files of somebody else's: opened so that nothing appears beside them, columns read on all cores.

They are opened read-only and immutable: SQLite looks neither at locks nor at journals; both are therefore looked at
here first.

Columns become numpy arrays, read once, in rowid ranges on all the cores there are. Making Python objects is what
reading costs, and it holds the interpreter's lock; so each range is read by a process of its own. That runs this file
(`main`) with the standard library alone, and hands back plain int64.
"""

from __future__ import annotations

import gc
import json
import math
import sqlite3
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

if __name__ != "__main__":  # what a reader of one range needs none of: it has to start soon
    import os
    import subprocess
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from threading import Lock

    import numpy as np

    from colo_lib.data.sqlite_file import DAMAGE, plain
    from colo_lib.errors import InputError
    from colo_lib.trace import Columns, Ints

MOST_BYTES = 16 * 2**20  # of one text; names are some thousand bytes long, and a row is held whole
GUARDS = ("PRAGMA query_only=ON", "PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON")


@contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A guarded, immutable connection to a file that `check_file` passed; SQLite's errors become InputError."""
    connection = None
    try:
        connection = sqlite3.connect(address(file), uri=True)
        # What is no UTF-8 is shown as its bytes, \xff, so that two such names stay two.
        connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
        for guard in GUARDS:
            connection.execute(guard)
        yield connection
    except sqlite3.DataError:
        raise InputError(f"{file}: holds a text of more than {MOST_BYTES >> 20} MiB, which no name is") from None
    except DAMAGE as error:
        raise InputError(f"{file}: damaged or not an export: {plain(error)}; export it again") from None
    finally:
        if connection is not None:
            connection.close()


@contextmanager
def looked_through(
    file: Path, more: Callable[[sqlite3.Connection], list[str]], checked: Collection[str] = ()
) -> Iterator[list[str]]:
    """Look through all pages of `file` while something reads it; raises InputError naming what SQLite finds damaged.

    Reading alone does not notice a page that only drops rows, or that no query touches. What a damaged page makes the
    reader raise gives way to what names the page. The list is filled with what `more` finds, when all is done. Tables
    that are `checked` otherwise are left out; then whether every page is used once has to be seen otherwise as well.
    """
    doubts: list[str] = []
    with ThreadPoolExecutor(1) as pool:  # SQLite lets go of the interpreter while it looks
        looking = pool.submit(_look_through, file, more, checked)
        try:
            yield doubts
        finally:
            said, more_doubts = looking.result()
            if said != "ok":
                raise InputError(
                    f"{file} is damaged: SQLite's quick_check says: {plain(said)}; copy or export it again"
                )
            doubts += more_doubts


def _look_through(
    file: Path, more: Callable[[sqlite3.Connection], list[str]], checked: Collection[str]
) -> tuple[str, list[str]]:
    try:
        with opened(file) as connection:
            names = ["sqlite_master", *tables_of(connection)] if checked else []
            quoted = ['"' + name.replace('"', '""') + '"' for name in names if name not in checked]
            looks = (connection.execute(f"PRAGMA quick_check({what})").fetchone()[0] for what in quoted or ["1"])
            said = next((str(words) for words in looks if words != "ok"), "ok")
            return said, more(connection) if said == "ok" else []
    except InputError:
        return "ok", []  # the reader meets the same, and says it


def address(file: Path) -> str:
    """The URI that opens `file` without locks, journals or anything written beside it."""
    return f"{file.resolve().as_uri()}?mode=ro&immutable=1"


def tables_of(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Real tables (no views, no virtual ones) and their columns."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type='table'").fetchall()
    names = [str(name) for name, sql in rows if not str(sql or "").upper().startswith("CREATE VIRTUAL")]
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
    return {name: tuple(row[1] for row in connection.execute(f"PRAGMA table_info({quoted[name]})")) for name in names}


WORTH_A_PROCESS = 60_000  # rows; fewer are read sooner than a process starts
BLOCK_ROWS = 131_072
LEAST_ROW_BYTES = 8  # no row of an export is shorter; more rowids than that have holes between them
ColumnsT = TypeVar("ColumnsT", bound="Columns")
MISSING = -(2**63)  # stands for NULL and for anything that is not a whole number
LARGEST = 2**62
ROWS = 1024


def read_table(
    file: Path,
    connection: sqlite3.Connection,
    table: str,
    columns: list[str],
    kind: type[ColumnsT],
    make: Callable[[Ints], ColumnsT],
    blocks: Iterator[Ints] | None = None,
) -> ColumnsT:
    """`make` of every block of the table as one frame in rowid order; a block is int64 [rows, columns].

    `columns` are SQL expressions over the table. What is not a whole number is `MISSING`. Blocks go straight to
    their place in arrays as long as the table: ten million rows are never held twice. `make` is called by one thread at
    a time. `blocks` are the same rows, where they are not to be asked of SQLite. Raises InputError where the file is
    damaged.
    """
    quoted = '"' + table.replace('"', '""') + '"'
    query = f"SELECT {', '.join(columns)} FROM {quoted} WHERE rowid BETWEEN ? AND ?"
    # One by one SQLite takes them from the ends of the table; both at once it goes through all rows for.
    ends = (f"SELECT {which}(rowid) FROM {quoted}" for which in ("min", "max"))
    low, high = (connection.execute(end).fetchone()[0] for end in ends)
    if low is None:
        return kind.empty()
    rows = high - low + 1
    if rows > file.stat().st_size // LEAST_ROW_BYTES:  # rowids with holes: a place for each would be too much
        return _gathered(blocks or _own(connection, query, (low, high), len(columns)), kind, make)
    workers = max(1, min(cores(), rows // WORTH_A_PROCESS)) if blocks is None else 1
    edges = [low + rows * place // workers for place in range(workers + 1)]
    store = {name: np.empty(rows, dtype) for name, dtype in kind.dtypes().items()}
    lock = Lock()

    def fill(start: int, stop: int) -> tuple[int, int]:
        """Read [start, stop) to its place in `store`; gives first and last place filled, the last not included."""
        place = first = start - low
        span = (start, stop - 1)
        for block in blocks or (
            _of_worker(file, query, span, len(columns)) if workers > 1 else _own(connection, query, span, len(columns))
        ):
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


def _gathered(blocks: Iterator[Ints], kind: type[ColumnsT], make: Callable[[Ints], ColumnsT]) -> ColumnsT:
    parts = [make(block) for block in blocks]
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in kind.dtypes()})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _own(connection: sqlite3.Connection, query: str, span: tuple[int, int], width: int) -> Iterator[Ints]:
    held: list[Ints] = []
    rows = 0
    for block in row_blocks(connection, query, *span):
        held.append(np.frombuffer(block, np.int64).reshape(-1, width))
        rows += len(held[-1])
        if rows >= BLOCK_ROWS:
            yield np.concatenate(held)
            held, rows = [], 0
    if held:
        yield np.concatenate(held)


def _of_worker(file: Path, query: str, span: tuple[int, int], width: int) -> Iterator[Ints]:
    command = [sys.executable, "-I", "-S", __file__]
    request = {"address": address(file), "query": query, "low": span[0], "high": span[1]}
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
        complaint = plain(process.stderr.read().decode(errors="replace"))
        if process.wait():
            raise InputError(f"{file}: damaged or not an export: {complaint or 'its reader died'}; export it again")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def row_blocks(connection: sqlite3.Connection, query: str, low: int, high: int) -> Iterator[array[int]]:
    """Blocks of int64, row after row, of the rows with low <= rowid <= high."""
    cursor = connection.execute(query, (low, high))
    while rows := cursor.fetchmany(ROWS):
        block = array("q")
        try:
            block.extend(chain.from_iterable(rows))
        except (TypeError, OverflowError):
            block = array("q", _careful(chain.from_iterable(rows)))
        yield block


def _careful(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, float) and (value.is_integer() or math.isinf(value)):
            # SQLite turns an integer product that does not fit into a float. A fraction is no time and nobody's id.
            yield int(min(max(value, -LARGEST), LARGEST))
        else:
            yield MISSING


def main() -> int:
    """Serve the one request on standard input, a JSON object (address, query, low, high), to standard output.

    A row becomes as many int64 as the query has columns, in the machine's byte order.
    """
    gc.disable()  # rows hold no cycles, and looking for them costs a tenth of the reading
    request = json.load(sys.stdin)
    connection = sqlite3.connect(request["address"], uri=True)
    connection.text_factory = bytes  # text is no number whatever its bytes are: not decoded, it cannot fail to be
    try:
        for block in row_blocks(connection, request["query"], request["low"], request["high"]):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the second where SQLite's message is no UTF-8
        print(error, file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
