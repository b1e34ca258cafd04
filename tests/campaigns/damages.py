"""Ways to damage an export: bytes of the file, and rows, columns and tables by SQL. Each takes the file and a seeded
`random.Random`, and gives a few words about what it did."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path, random.Random], str]
PAGE = 4096
READ = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "CUPTI_ACTIVITY_KIND_MEMCPY",
        "CUPTI_ACTIVITY_KIND_MEMSET", "GPU_CONTEXT_SWITCH_EVENTS", "StringIds", "PROCESSES", "TARGET_INFO_GPU",
        "TARGET_INFO_SESSION_START_TIME", "META_DATA_EXPORT", "PROFILER_OVERHEAD", "ENUM_GPU_CTX_SWITCH")  # fmt: skip
VALUES: dict[str, tuple[str, ...]] = {
    "NULL": ("NULL",),
    "huge": ("9223372036854775807", "4611686018427387904", "4611686018427387903", "1099511627776", "1e300"),
    "negative": ("-1", "-9223372036854775808", "-4611686018427387905", "-1000000"),
    "zero": ("0",),
    "text": ("'soon'", "'12abc'", "''", "'0x10'"),
    "text that is no UTF-8": ("CAST(x'ff00fe' AS TEXT)", "CAST(x'c3' AS TEXT)", "CAST(x'00' AS TEXT)"),
    "blob": ("x'00ff'", "zeroblob(70000)"),
    "fraction": ("1.5", "0.1"),
    "noise": ("random()", "abs(random() % 100000)", "hex(randomblob(8))"),
}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _by_sql(file: Path, act: Callable[[sqlite3.Connection], str]) -> str:
    connection = sqlite3.connect(file)
    try:
        told = act(connection)
        connection.commit()
    finally:
        connection.close()
    return told


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _some_table(connection: sqlite3.Connection, rng: random.Random) -> str:
    there = _tables(connection)
    read = [name for name in READ if name in there]
    # Kernels and switches carry most figures.
    return rng.choice([*read[:1] * 3, *read, *(["GPU_CONTEXT_SWITCH_EVENTS"] * 3 if READ[4] in there else []), *there])


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")]


def _loose(connection: sqlite3.Connection, table: str, types: bool = True) -> None:
    """The table without constraints, so that anything can be put into it."""
    columns = _columns(connection, table)
    if types:
        connection.execute(f"CREATE TABLE loose AS SELECT * FROM {_quoted(table)}")
    else:
        connection.execute(f"CREATE TABLE loose ({', '.join(_quoted(column) + ' TEXT' for column in columns)})")
        connection.execute(f"INSERT INTO loose SELECT * FROM {_quoted(table)}")
    connection.execute(f"DROP TABLE {_quoted(table)}")
    connection.execute(f"ALTER TABLE loose RENAME TO {_quoted(table)}")


def values(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        column = rng.choice(_columns(connection, table))
        kind = rng.choice(list(VALUES))
        value = rng.choice(VALUES[kind])
        where = rng.choice(("1", "rowid % 2", "rowid % 50 = 7", "rowid = (SELECT min(rowid) FROM loose_or_not)"))
        where = where.replace("loose_or_not", _quoted(table))
        _loose(connection, table)
        connection.execute(f"UPDATE {_quoted(table)} SET {_quoted(column)} = {value} WHERE {where}")
        return f"{table}.{column} = {value} where {where}"

    return _by_sql(file, act)


def dropped_table(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        connection.execute(f"DROP TABLE {_quoted(table)}")
        return f"table {table} dropped"

    return _by_sql(file, act)


def dropped_column(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        columns = _columns(connection, table)
        gone = rng.choice(columns)
        kept = [column for column in columns if column != gone]
        if not kept:
            return "nothing"
        listed = ", ".join(map(_quoted, kept))
        connection.execute(f"CREATE TABLE loose AS SELECT {listed} FROM {_quoted(table)}")
        connection.execute(f"DROP TABLE {_quoted(table)}")
        connection.execute(f"ALTER TABLE loose RENAME TO {_quoted(table)}")
        return f"column {table}.{gone} dropped"

    return _by_sql(file, act)


def renamed(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        name = rng.choice(("other", table + "_V2", table + "_V9", 'a"b', "x" * 5000))
        if rng.random() < 0.5:
            connection.execute(f"ALTER TABLE {_quoted(table)} RENAME TO {_quoted(name)}")
            return f"table {table} renamed to {name[:20]}"
        column = rng.choice(_columns(connection, table))
        connection.execute(f"ALTER TABLE {_quoted(table)} RENAME COLUMN {_quoted(column)} TO {_quoted(name)}")
        return f"column {table}.{column} renamed to {name[:20]}"

    return _by_sql(file, act)


def another_type(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        _loose(connection, table, types=False)
        return f"every column of {table} is text"

    return _by_sql(file, act)


def rows(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        what = rng.choice(("all deleted", "half deleted", "doubled", "rowids far apart"))
        _loose(connection, table)
        name = _quoted(table)
        connection.execute({
            "all deleted": f"DELETE FROM {name}", "half deleted": f"DELETE FROM {name} WHERE rowid % 2",
            "doubled": f"INSERT INTO {name} SELECT * FROM {name}",
            "rowids far apart": f"UPDATE {name} SET rowid = 9223372036854775807 - rowid * 1000000",
        }[what])  # fmt: skip
        return f"rows of {table}: {what}"

    return _by_sql(file, act)


def a_view(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = _some_table(connection, rng)
        connection.execute(f"ALTER TABLE {_quoted(table)} RENAME TO hidden")
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS start, i AS end FROM n"
        connection.execute(f"CREATE VIEW {_quoted(table)} AS {rng.choice(('SELECT * FROM hidden', endless))}")
        return f"a view for {table}"

    return _by_sql(file, act)


def huge_text(file: Path, rng: random.Random) -> str:
    def act(connection: sqlite3.Connection) -> str:
        table = rng.choice(
            [name for name in ("StringIds", "PROCESSES", "TARGET_INFO_GPU") if name in _tables(connection)]
        )
        column = {"StringIds": "value"}.get(table, "name")
        size = rng.choice((100_000, 2_000_000, 30_000_000))
        connection.execute(f"UPDATE {table} SET {column} = CAST(zeroblob({size}) AS TEXT) WHERE rowid = "
                           f"(SELECT max(rowid) FROM {table})")  # fmt: skip
        return f"{table}: a text of {size} bytes"

    try:
        return _by_sql(file, act)
    except (IndexError, sqlite3.Error):
        return values(file, rng)


def _on_bytes(change: Callable[[bytearray, random.Random], str]) -> Damage:
    def damage(file: Path, rng: random.Random) -> str:
        content = bytearray(file.read_bytes())
        told = change(content, rng)
        file.write_bytes(content)
        return told

    damage.__name__ = change.__name__.strip("_")
    return damage


def _flipped_bytes(content: bytearray, rng: random.Random) -> str:
    count = rng.choice((1, 1, 5, 50, 500))
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return f"{count} bits flipped"


def _flipped_in_header(content: bytearray, rng: random.Random) -> str:
    place = rng.randrange(100)
    content[place] = rng.randrange(256)
    return f"byte {place} of the header changed"


def _flipped_in_page_headers(content: bytearray, rng: random.Random) -> str:
    page = rng.randrange(len(content) // PAGE) * PAGE
    place = page + (100 if page == 0 else 0) + rng.randrange(12)
    content[place] = rng.randrange(256)
    return f"byte {place % PAGE} of page {page // PAGE} changed"


def _overwritten_pages(content: bytearray, rng: random.Random) -> str:
    count, first = rng.choice((1, 1, 3)), rng.randrange(len(content) // PAGE) * PAGE
    last = min(first + count * PAGE, len(content))
    filler = rng.choice((bytes(last - first), b"\xa5" * (last - first), rng.randbytes(last - first)))
    content[first:last] = filler
    return f"{count} pages from {first // PAGE} overwritten"


def _swapped_pages(content: bytearray, rng: random.Random) -> str:
    one, other = (rng.randrange(len(content) // PAGE) * PAGE for _ in range(2))
    content[one : one + PAGE], content[other : other + PAGE] = content[other : other + PAGE], content[one : one + PAGE]
    return f"pages {one // PAGE} and {other // PAGE} swapped"


def _cut_off(content: bytearray, rng: random.Random) -> str:
    size = rng.choice((0, 50, 100, rng.randrange(len(content)), len(content) - 1, len(content) // PAGE // 2 * PAGE))
    del content[size:]
    return f"cut off at {size}"


def _longer(content: bytearray, rng: random.Random) -> str:
    size = rng.choice((1, PAGE, 100_000))
    content += rng.randbytes(size)
    return f"{size} bytes added"


def beside(file: Path, rng: random.Random) -> str:
    suffix = rng.choice(("-wal", "-journal", "-shm"))
    file.with_name(file.name + suffix).write_bytes(rng.choice((b"", bytes(600), rng.randbytes(5000))))
    return f"a {suffix} file left over"


def wal_mode(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    content[18:20] = rng.choice((b"\x02\x02", b"\x01\x02", b"\x07\x01"))
    file.write_bytes(content)
    return "another journal mode in the header"


def no_file(file: Path, rng: random.Random) -> str:
    what = rng.choice(("pipe", "folder", "loop", "nothing", "unreadable text"))
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file)
    elif what == "unreadable text":
        file.write_bytes(b"\xff\xfe" * 300)
    return f"a {what} in its place"


def capture_json(file: Path, rng: random.Random) -> str:
    seen: list[Any] = [{"777": ["5"]}, {"777": [], "774": ["GPU-x"]}, 5]
    facts: list[Any] = [{"visible_devices": item} for item in seen]
    facts += [{"pids": 5}, [], {"pids": {"gen": [0, -1]}}, {"window_ns": [5, 4], "clock": {}}, {"mechanism": "\x00"}]
    facts += [{"exports": ["../x"]}, {"clock": None}]
    facts += [{"window_ns": [0, 10**18], "clock": {"monotonic_ns": 0, "utc_ns": 0}}]
    text = rng.choice([*(json.dumps(item) for item in facts), "", "{", "[" * 100_000, '{"pids": 1e999}', "\x00"])
    (file.parent / "capture.json").write_text(text)
    return f"capture.json: {text[:60]}"


DAMAGES: tuple[tuple[int, Damage], ...] = (
    (10, values), (2, dropped_table), (3, dropped_column), (2, renamed), (1, another_type), (3, rows), (1, a_view),
    (1, huge_text), (3, _on_bytes(_flipped_bytes)), (1, _on_bytes(_flipped_in_header)),
    (2, _on_bytes(_flipped_in_page_headers)), (2, _on_bytes(_overwritten_pages)), (1, _on_bytes(_swapped_pages)),
    (2, _on_bytes(_cut_off)), (1, _on_bytes(_longer)), (1, beside), (1, wal_mode), (1, no_file), (1, capture_json),
)  # fmt: skip
