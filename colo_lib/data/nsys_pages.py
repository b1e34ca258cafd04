"""The large tables of an export read from their pages: which columns, by what formulas, on all cores.

The formulas are those that `nsys_schema` has as SQL. A number that SQL would treat in a way of its own (too large for
its place, a product out of range) is left to SQL by raising `Unusual`.
"""

from __future__ import annotations

import mmap
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from colo_lib.data import nsys_schema as schema
from colo_lib.data.sqlite_pages import (
    ANY,
    INTEGER,
    TEXT,
    Column,
    Ints,
    Pages,
    Tree,
    Unusual,
    check_every_page_is_used_once,
    decoded,
    overflow_pages,
    walk,
)

LEAST_LEAVES = 200  # pages; of fewer, SQLite makes rows before this has begun
SLOTS = 2  # blocks that a worker may be ahead
WORD = 8
MOST_FACTOR = 2**20  # of a grid; the product of three fits an int64 and SQL's integer
MOST_BYTES = 2**40
ODD_WORDS = re.compile(r"\b(CHECK|STRICT|WITHOUT|GENERATED|AS|UNIQUE|PRIMARY)\b", re.IGNORECASE)
COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
Raw = Mapping[str, Any]  # column in lower case -> int64, or one number for all rows


@dataclass(frozen=True)
class PagedTable:
    """A table whose rows are read from its pages, as int64 columns in the order of its kind in `nsys_schema`."""

    kind: str
    tree: Tree
    columns: list[Column]


def paged_tables(connection: sqlite3.Connection, tables: schema.Tables, pages: Pages) -> dict[str, PagedTable]:
    """The activity tables of `LEAST_LEAVES` pages and more; raises Unusual where there are none, or other than plain.

    Every page of the file is seen to belong to one table. What is in the pages of other tables is not looked at.
    """
    if pages.count < LEAST_LEAVES:
        raise Unusual("a small file")
    roots: dict[str, int] = {}
    texts: dict[str, str] = {}
    for kind, name, root, sql in connection.execute("SELECT type, name, rootpage, sql FROM sqlite_master"):
        if kind == "table" and isinstance(root, int) and root > 0 and name not in roots:
            roots[name], texts[name] = root, COMMENTS.sub(" ", str(sql))
        elif kind != "view":
            raise Unusual("an index, a trigger, or a table that is none")
    wanted = {schema.find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}"): kind for kind in schema.ACTIVITY}
    trees = {name: walk(pages, root) for name, root in {"": 1, **roots}.items()}
    used, found = [], {}
    for name, tree in trees.items():
        used.append(tree.pages)
        if name in wanted and name is not None and len(tree.leaves) >= LEAST_LEAVES:
            found[name] = _plain_table(connection, tables, name, wanted[name], texts[name], tree)
        else:  # rows of a paged table that go on elsewhere are refused while they are decoded
            used.append(np.array(overflow_pages(pages, tree), np.int64))
    check_every_page_is_used_once(pages, used)
    if not found:
        raise Unusual("small tables")
    return found


def paged_launches(connection: sqlite3.Connection, tables: schema.Tables, pages: Pages) -> dict[str, PagedTable]:
    """The table of CUDA API calls, by its name; raises Unusual where it is small, absent, or other than plain.

    Its own pages are seen to be sound; whether the rest of the file is, was seen when its activity was read.
    """
    name = schema.find_table(tables, "CUPTI_ACTIVITY_KIND_RUNTIME")
    row = connection.execute("SELECT rootpage, sql FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
    root, sql = row.fetchone() or (0, "")
    tree = walk(pages, root) if name else None
    if name is None or tree is None or len(tree.leaves) < LEAST_LEAVES:
        raise Unusual("a small table")
    return {name: _plain_table(connection, tables, name, "RUNTIME", COMMENTS.sub(" ", str(sql)), tree)}


def _plain_table(
    connection: sqlite3.Connection, tables: schema.Tables, name: str, kind: str, sql: str, tree: Tree
) -> PagedTable:
    if ODD_WORDS.search(sql):
        raise Unusual("a table with rules of its own")
    return PagedTable(kind, tree, _columns(connection, tables, name, kind))


def _columns(connection: sqlite3.Connection, tables: schema.Tables, table: str, kind: str) -> list[Column]:
    names = _needed(tables, table, kind)
    columns = []
    for _, name, declared, not_null, _, key, hidden in connection.execute(f'PRAGMA table_xinfo("{table}")'):
        lower = name.lower()
        affinity = _affinity(str(declared).upper())
        if key or hidden or (lower in names and affinity == TEXT):
            raise Unusual("a table with a key, or texts for numbers")
        columns.append(Column(lower, affinity, bool(not_null), lower in names, lower == "graphnodeid"))
    if len({column.name for column in columns}) != len(columns):
        raise Unusual("columns of one name")
    return columns


def _affinity(declared: str) -> str:
    """https://www.sqlite.org/datatype3.html, section 3.1; raises Unusual for numbers that are no integers."""
    if "INT" in declared:
        return INTEGER
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return TEXT
    if not declared or "BLOB" in declared:
        return ANY
    raise Unusual("columns of fractions")


def _needed(tables: schema.Tables, table: str, kind: str) -> set[str]:
    """The columns that the kind's expressions name and those whose numbers have to fit a place, in lower case."""
    source = schema.activity_source(tables, kind)
    if source is None or source.table != table:
        raise Unusual("another table")
    have = {column.lower() for column in tables[table]}
    words = {word.lower() for text in source.columns.values() for word in schema.WORDS.findall(text)}
    words |= {column.strip('"').lower() for column in schema.number_columns(tables, table)}
    return words & have - {word.lower() for word in schema.SQL_WORDS}


def packed(kind: str, raw: Raw) -> list[Any]:
    """The columns of a kind (`nsys_schema.COLUMNS`) from the table's own, packed as its SQL packs them."""
    made = []
    for ours in schema.COLUMNS[kind]:
        if ours in ("start_ns", "end_ns"):
            made.append(raw[ours.removesuffix("_ns")])
        elif (formula := PACKED.get(f"{kind} {ours}", PACKED.get(ours))) is not None:
            made.append(formula(raw))
        else:
            raise Unusual(f"no formula for {ours}")
    return made


def _owner(raw: Raw) -> Any:
    device = _within(raw.get("deviceid", 0), 0, schema.RANGES["deviceId"])
    return raw.get("globalpid", 0) & np.int64(-16777216) | device


def _link(raw: Raw) -> Any:
    if not {"correlationid", "streamid"} <= raw.keys():
        return 0
    return raw["correlationid"] & 0xFFFFFFFF | raw["streamid"] << np.int64(32)


def _name(raw: Raw) -> Any:
    return next((raw[name.lower()] for name in schema.NAME_COLUMNS if name.lower() in raw), -(2**63))


def _product(raw: Raw, names: tuple[str, ...]) -> Any:
    if not set(names) <= raw.keys():
        return None
    factors = [_within(raw[name], 0, MOST_FACTOR) for name in names]
    return factors[0] * factors[1] * factors[2]


def _blocks(raw: Raw) -> Any:
    product = _product(raw, ("gridx", "gridy", "gridz"))
    return 0 if product is None else product


def _shape(raw: Raw) -> Any:
    threads = _product(raw, ("blockx", "blocky", "blockz"))
    registers, static, dynamic = (
        raw.get(name) for name in ("registersperthread", "staticsharedmemory", "dynamicsharedmemory")
    )
    # Each is seen to fit its place, also where another one is absent and no shape can be told.
    if threads is not None:
        threads = _within(threads, 0, schema.RANGES["blockX * blockY * blockZ"])
    if registers is not None:
        registers = _within(registers, 0, schema.RANGES["registersPerThread"])
    shared = None
    if static is not None and dynamic is not None:
        shared = _within(static, -MOST_BYTES, MOST_BYTES) + _within(dynamic, -MOST_BYTES, MOST_BYTES)
        shared = _within(shared, 0, schema.RANGES["(staticSharedMemory + dynamicSharedMemory)"])
    shape: Any = np.int64(0)
    if threads is not None and registers is not None and shared is not None:
        shape = threads | registers << np.int64(16) | shared << np.int64(32)
    if "graphnodeid" in raw:
        shape = shape | np.int64(1) * (raw["graphnodeid"] != 0) << np.int64(31)
    return shape


PACKED: dict[str, Callable[[Raw], Any]] = {
    "owner": _owner,
    "link": _link,
    "name": _name,
    "blocks": _blocks,
    "shape": _shape,
    "kind": lambda raw: raw.get("copykind", 0),
    "size_bytes": lambda raw: raw.get("bytes", 0),
    "RUNTIME owner": lambda raw: raw.get("globaltid", 0) & np.int64(-16777216),
    "RUNTIME link": lambda raw: raw.get("correlationid", 0) & 0xFFFFFFFF,
}


def _within(numbers: Any, least: int, most: int) -> Any:
    if np.min(numbers) < least or np.max(numbers) > most:
        raise Unusual("numbers that do not fit their place")
    return np.int64(numbers) if isinstance(numbers, int) else numbers


def blocks_of(pages: Pages, table: PagedTable, workers: int) -> Iterator[Ints]:
    """Blocks of int64 [rows, columns] in order of rowid; a block holds until the next one is asked for.

    Raises Unusual as `sqlite_pages.decoded` does. Each of several workers is a fork of this process, and decodes every
    so manieth batch of pages into memory that it shares with this one.
    """
    batches = pages.batches(table.tree.leaves)
    workers = min(workers, len(batches))
    if workers < 2:
        for batch in batches:
            rows, columns = _block(pages, table, batch)
            made = np.empty((len(columns), rows), np.int64)
            for place, column in enumerate(columns):
                made[place] = column
            yield made.T
        return
    width = len(schema.COLUMNS[table.kind])
    most_rows = _most_rows(pages, table)
    memory = mmap.mmap(-1, workers * SLOTS * width * most_rows * WORD)
    slots = np.frombuffer(memory, np.int64).reshape(workers, SLOTS, width, most_rows)
    crew: list[Worker] = []
    try:
        for number in range(workers):
            crew.append(_started(pages, table, batches[number::workers], slots[number], crew))
        for number in range(len(batches)):
            worker, turn = crew[number % workers], number // workers % SLOTS
            told = os.read(worker.counts, WORD)
            rows = int.from_bytes(told, "little") if len(told) == WORD else 0
            if not rows:
                raise Unusual("what a worker met")
            yield slots[number % workers, turn, :, :rows].T
            if number + SLOTS * workers < len(batches):
                os.write(worker.turns, b".")
    except BrokenPipeError:
        raise Unusual("a worker that died") from None
    finally:
        for worker in crew:
            worker.end()


def _most_rows(pages: Pages, table: PagedTable) -> int:
    """As many rows as a batch of pages can hold: a row is its columns' types, three bytes and a pointer."""
    batch = pages.batches(table.tree.leaves)[0]
    return (batch.stop - batch.start) * (pages.page_bytes // (len(table.columns) + 5) + 1)


def _block(pages: Pages, table: PagedTable, batch: slice) -> tuple[int, list[Any]]:
    try:
        rows, raw = decoded(pages, table.tree, batch, table.columns)
        return rows, packed(table.kind, raw)
    except (IndexError, OverflowError) as error:  # a damaged page points beyond the data
        raise Unusual("a damaged page") from error


@dataclass
class Worker:
    """A forked process: `counts` tells the rows of each block that is ready, `turns` that one may be overwritten."""

    pid: int
    counts: int
    turns: int

    def end(self) -> None:
        """It ends when it is told so, or at the latest with its next block."""
        os.close(self.turns)
        os.close(self.counts)
        os.waitpid(self.pid, 0)


def _started(pages: Pages, table: PagedTable, batches: list[slice], slots: Any, crew: list[Worker]) -> Worker:
    counts, tell = os.pipe()
    hear, turns = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.close(hear)
        return Worker(pid, counts, turns)
    _work(
        pages, table, batches, slots, tell, hear, [counts, turns, *(end for w in crew for end in (w.counts, w.turns))]
    )


def _work(
    pages: Pages, table: PagedTable, batches: list[slice], slots: Any, tell: int, hear: int, others: list[int]
) -> NoReturn:
    """What a worker does until its last batch; it must not return into what was this process's."""
    try:
        for descriptor in others:
            os.close(descriptor)
        for number, batch in enumerate(batches):
            if number >= SLOTS and not os.read(hear, 1):
                break
            rows, columns = _block(pages, table, batch)
            for place, column in enumerate(columns):
                slots[number % SLOTS, place, :rows] = column
            os.write(tell, rows.to_bytes(WORD, "little"))
    except BaseException:  # of whatever kind: its pipe ends, and SQLite reads the file
        os._exit(1)
    finally:
        os._exit(0)
