"""Rows from the pages of a file are those that SQLite reads, or SQLite is left to read them."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.cli import main
from colo_lib.data import export, nsys_pages, sqlite_pages
from colo_lib.data.packed_export import unpacked
from colo_lib.data.sqlite_pages import ANY, INTEGER, TEXT, Column, Unusual, decoded, opened_pages, walk
from colo_lib.examples.captures import H100_PAIR, global_pid, write_export
from colo_lib.paths import RECORDED
from colo_lib.trace import FRAMES, Capture, Launches

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
NEVER, ALWAYS = 10**9, 0
# Values at the edges of every serial type of section 2.1.
EDGES = sorted({sign * 2**bits + by for bits in (0, 7, 15, 23, 31, 47, 62) for sign in (1, -1) for by in (-1, 0, 1)})
INTEGERS = st.one_of(
    st.sampled_from([*EDGES, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1), st.integers(0, 1)
)
OTHERS = {
    "TEXT": st.one_of(st.none(), st.text(max_size=20)),
    "": st.one_of(st.none(), st.binary(max_size=50), st.floats(allow_nan=False), INTEGERS),
}
AFFINITIES = {"INTEGER": INTEGER, "TEXT": TEXT, "": ANY}


@st.composite
def tables(draw: Any) -> dict[str, Any]:
    """Declared types and rows of a table, and what becomes of it afterwards."""
    types = draw(st.lists(st.sampled_from(["INTEGER", "INTEGER", "TEXT", ""]), min_size=1, max_size=12))
    of_one_value = draw(st.lists(INTEGERS, min_size=len(types), max_size=len(types)))
    same = draw(st.lists(st.booleans(), min_size=len(types), max_size=len(types)))
    kinds = [st.just(value) if fixed else INTEGERS for value, fixed in zip(of_one_value, same, strict=True)]
    row = st.tuples(*(OTHERS.get(name, kind) for name, kind in zip(types, kinds, strict=True)))
    return {
        "types": types,
        "rows": draw(st.lists(row, min_size=1, max_size=12)),
        "times": draw(st.integers(1, 150)),
        "page_bytes": 2 ** draw(st.integers(9, 16)),
        "first": draw(st.sampled_from([1, 100, 16_000, 2_097_000, 2**40, -50, 2**63 - 10_000])),
        "step": draw(st.integers(1, 3)),
        "shuffled": draw(st.booleans()),
        "gone": draw(st.sampled_from([0, 0, 2, 3, 7])),
        "vacuumed": draw(st.booleans()),
    }


def written(file: Path, told: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table `t` in a file of its own; gives its rows as SQLite reads them."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(f"PRAGMA page_size={told['page_bytes']}")
    connection.execute("BEGIN")
    connection.execute(f"CREATE TABLE t ({', '.join(f'c{place} {name}' for place, name in enumerate(told['types']))})")
    rows = told["rows"] * told["times"]
    numbers = [told["first"] + place * told["step"] for place in range(len(rows))]
    if told["shuffled"]:
        numbers = np.random.default_rng(1).permutation(np.array(numbers, np.int64)).tolist()
    names = ", ".join(f"c{place}" for place in range(len(told["types"])))
    marks = ", ".join("?" * (len(told["types"]) + 1))
    connection.executemany(
        f"INSERT INTO t (rowid, {names}) VALUES ({marks})",
        [(number, *row) for number, row in zip(numbers, rows, strict=True)],
    )
    connection.execute("COMMIT")
    if told["gone"]:
        connection.execute(f"DELETE FROM t WHERE rowid % {told['gone']} = 0")
    if told["vacuumed"]:
        connection.execute("VACUUM")
    found = connection.execute(f"SELECT {names} FROM t ORDER BY rowid").fetchall()
    connection.close()
    return found


def from_pages(file: Path, types: list[str]) -> list[list[int]]:
    """The integer columns of `t` from its pages; raises Unusual."""
    columns = [Column(f"c{place}", AFFINITIES[name], wanted=name == "INTEGER") for place, name in enumerate(types)]
    made: list[list[int]] = [[] for column in columns if column.wanted]
    with opened_pages(file) as pages:
        tree = walk(pages, 2)
        for batch in pages.batches(tree.leaves):
            rows, values = decoded(pages, tree, batch, columns)
            for place, column in enumerate(values.values()):
                made[place] += np.broadcast_to(column, rows).tolist()
    return made


@settings(max_examples=150, deadline=None)
@given(tables())
def test_integers_from_pages_are_those_that_sqlite_reads(told: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "t.sqlite"
        truth = written(file, told)
        expected = [[row[place] for row in truth] for place, name in enumerate(told["types"]) if name == "INTEGER"]
        # Left to SQLite: free pages, tables without rows, rows that do not fit their page, texts of 58 bytes and more.
        long = any(len(str(value)) > 12 and not isinstance(value, int) for row in told["rows"] for value in row)
        unusual = told["gone"] or long or told["page_bytes"] == 512
        with suppress(Unusual) if unusual else nullcontext():
            assert from_pages(file, told["types"]) == expected


@contextmanager
def reader(least_leaves: int) -> Any:
    """Read tables of so many pages and more from their pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nsys_pages, "LEAST_LEAVES", least_leaves)
        yield


def same(left: Capture, right: Capture) -> None:
    """Assert that two captures of one file are equal to the last bit."""
    for frame, kind in FRAMES.items():
        for name in kind.dtypes():
            one, other = (getattr(getattr(capture, frame), name) for capture in (left, right))
            assert one.dtype == other.dtype
            assert np.array_equal(one, other), (frame, name)
    for name in ("names", "devices", "processes", "exports", "omissions", "simulated"):
        assert getattr(left, name) == getattr(right, name), name


def planted(file: Path, kernels: int = 3_000, **columns: Any) -> Path:
    """An export with numbers of all lengths and two processes."""
    rng = np.random.default_rng(3)
    start = np.cumsum(rng.integers(1, 2_000_000, kernels))
    table: dict[str, Any] = {
        "start": start,
        "end": start + rng.integers(0, 900, kernels),
        "globalPid": np.where(rng.random(kernels) < 0.5, global_pid(777), global_pid(774)),
        "demangledName": rng.integers(0, 4, kernels),
        "shortName": rng.integers(0, 4, kernels),
        "gridX": rng.integers(1, 70_000, kernels),
        "blockX": rng.integers(1, 1025, kernels),
        "streamId": rng.integers(0, 300, kernels),
        "correlationId": rng.integers(0, 2**31, kernels),
        "graphNodeId": [None if number else 7 for number in rng.integers(0, 2, kernels).tolist()],
    }
    table |= columns
    copies = {"start": start[:500], "end": start[:500] + 5, "globalPid": table["globalPid"][:500], "bytes": start[:500]}
    calls = {"start": start[::-1] - 50, "end": start[::-1] - 9, "globalTid": table["globalPid"] + rng.integers(0, 999),
             "correlationId": table["correlationId"], "nameId": table["demangledName"]}  # fmt: skip
    return write_export(file, {KERNEL: table, "CUPTI_ACTIVITY_KIND_MEMCPY": copies, RUNTIME: calls},
                        ["a", "b", "c", "d" * 6_000], {777: "VLLM::EngineCore", 774: "embed"})  # fmt: skip


def both(file: Path) -> tuple[Capture, Capture]:
    """What the two readers make of a file; the first is seen to have read pages."""
    with reader(ALWAYS), pytest.MonkeyPatch.context() as patch:
        taken: list[str] = []

        def noted(*given: Any) -> Any:
            taken.append(given[1].kind)
            return nsys_pages.blocks_of(*given)

        patch.setattr(export, "blocks_of", noted)
        paged = export.read_export(file)
        assert taken
    with reader(NEVER):
        return paged, export.read_export(file)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_export_is_the_same_by_pages_and_by_sqlite(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_pages, "BATCH_BYTES", 16_384)  # several batches for each worker
    monkeypatch.setattr(export, "cores", lambda: workers)
    same(*both(planted(tmp_path / "trace.sqlite")))


def test_a_worker_that_meets_something_unusual_leaves_the_file_to_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_pages, "BATCH_BYTES", 16_384)
    monkeypatch.setattr(export, "cores", lambda: 2)
    blocks = np.ones(3_000, np.int64)
    blocks[2_000] = 2**21
    same(*both(planted(tmp_path / "trace.sqlite", gridX=blocks)))


CHANGES = {
    "a time in fractions": f"UPDATE {KERNEL} SET start = 1.5 WHERE rowid = 1500",
    "NULL": f"UPDATE {KERNEL} SET demangledName = NULL WHERE rowid = 1500",
    "a text": f"UPDATE {KERNEL} SET gridX = 'many' WHERE rowid = 1500",
    "a fraction": f"UPDATE {KERNEL} SET gridX = 1.5 WHERE rowid = 1500",
    "too many threads": f"UPDATE {KERNEL} SET blockX = 70000 WHERE rowid = 1500",
    "no device": f"UPDATE {KERNEL} SET deviceId = NULL WHERE rowid = 1500",
    "a long row": f"UPDATE {KERNEL} SET sharedMemoryLimitConfig = zeroblob(9000) WHERE rowid = 1500",
    "holes": f"DELETE FROM {KERNEL} WHERE rowid % 7 = 0",
    "free pages": f"DELETE FROM {KERNEL} WHERE rowid BETWEEN 1000 AND 2000",
    "no rows": f"DELETE FROM {KERNEL}",
    "another column": f"ALTER TABLE {KERNEL} ADD COLUMN more INTEGER DEFAULT 3",
    "an index": f"CREATE INDEX by_start ON {KERNEL} (start)",
    "a write-ahead log": "PRAGMA journal_mode=WAL",
    "a pointer map": "PRAGMA auto_vacuum=FULL; VACUUM",
    "large pages": "PRAGMA page_size=65536; VACUUM",
    "small pages": "PRAGMA page_size=512; VACUUM",
}


@pytest.mark.parametrize("words", sorted(CHANGES))
def test_what_is_unusual_is_read_as_sqlite_reads_it(words: str, tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite")
    connection = sqlite3.connect(file, isolation_level=None)
    connection.executescript(CHANGES[words])
    connection.close()
    with reader(ALWAYS):
        paged = export.read_export(file)
    with reader(NEVER):
        same(paged, export.read_export(file))


def launches_of(file: Path, least_leaves: int) -> tuple[Launches, list[int], list[str]]:
    """The API calls of a file, their pids, and the kinds of tables that were read from pages."""
    taken: list[str] = []

    def noted(*given: Any) -> Any:
        taken.append(given[1].kind)
        return nsys_pages.blocks_of(*given)

    with reader(least_leaves), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "blocks_of", noted)
        return *export.read_launches(file), taken


def same_launches(file: Path) -> list[str]:
    """Assert that both readers find the same API calls; gives what was read from pages."""
    paged, pids, taken = launches_of(file, ALWAYS)
    plain, plain_pids, none = launches_of(file, NEVER)
    assert pids == plain_pids
    assert not none
    for name in Launches.dtypes():
        assert np.array_equal(getattr(paged, name), getattr(plain, name)), name
    return taken


def test_api_calls_are_the_same_by_pages_and_by_sqlite(tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite")
    assert same_launches(file) == ["RUNTIME"]
    assert len(launches_of(file, ALWAYS)[0]) == 3_000


LAUNCH_CHANGES = {
    "a fraction": f"UPDATE {RUNTIME} SET start = 1.5 WHERE rowid = 1500",
    "no time": f"UPDATE {RUNTIME} SET end = NULL WHERE rowid = 1500",
    "no thread": f"UPDATE {RUNTIME} SET globalTid = NULL WHERE rowid = 1500",
    "a text": f"UPDATE {RUNTIME} SET correlationId = 'one' WHERE rowid = 1500",
    "no column of threads": f"ALTER TABLE {RUNTIME} DROP COLUMN globalTid",
    "no rows": f"DELETE FROM {RUNTIME}",
    "no table": f"DROP TABLE {RUNTIME}",
    "an index": f"CREATE INDEX by_start ON {RUNTIME} (start)",
}


@pytest.mark.parametrize("words", sorted(LAUNCH_CHANGES))
def test_unusual_api_calls_are_read_as_sqlite_reads_them(words: str, tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite")
    connection = sqlite3.connect(file, isolation_level=None)
    connection.executescript(LAUNCH_CHANGES[words])
    connection.close()
    same_launches(file)


CAPTURES = [*sorted(RECORDED.glob("**/*.sqlite*")), *H100_PAIR]


@pytest.mark.parametrize("file", CAPTURES, ids=lambda file: "-".join(file.parts[-6:]))
def test_real_captures_are_told_the_same_by_pages_and_by_sqlite(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLO_EXPORT_CACHE", "")
    whole = unpacked(file)
    same(*both(whole))
    assert same_launches(whole) == ["RUNTIME"]
    told = []
    for least_leaves in (ALWAYS, NEVER):
        with reader(least_leaves):
            assert main(["trace", str(file), "--json"]) in (0, 2)
        told.append(capsys.readouterr())
    assert told[0] == told[1]
