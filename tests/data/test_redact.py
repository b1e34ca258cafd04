"""Redacted exports: a secret in any table, column, text, default or free page is not in the copy; its numbers are."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.cli import main
from colo_lib.data.packed_export import unpacked
from colo_lib.data.redact import KEPT, NUMBERS, redact
from colo_lib.data.scrub import HIDDEN, Scrubber
from colo_lib.errors import InputError
from colo_lib.examples.captures import EMBED_PID, GEN_PID, H100_PAIR, SERVER_PID, TABLES, simulated_capture
from colo_lib.paths import REPOSITORY

CANARY = "zqxcanary"
PIDS = {GEN_PID, EMBED_PID, SERVER_PID}
# Where a name of a kernel, which is anybody's, is followed by a secret.
BEFORE = [
    "",
    "gemm ",
    "gemm_",
    "gemm<",
    "gemm[",
    "gemm(",
    "gemm=",
    "gemm:",
    "gemm::",
    "'",
    '"',
    "`",
    "{",
    "|",
    ";",
    ",",
    "*",
]
SECRETS = [
    "/home/{}/x.cu", "/home/{}", "/{}", "//host/{}/x", "~/{}/x", "~{}/x", "C:\\Users\\{}\\x", "c:/Users/{}",
    "\\\\{}\\share", "/opt/my own/{}/x", "./{}/x", "lib/{}/x.cu", "file:///srv/{}", "https://{}/v1", "$HOME/{}",
    "%2Fhome%2F{}", "{}@host.example", "hf_{}77aa", "sk-{}-0123456789", "ghp_{}AA", "api_key={}",
    "AWS_SECRET_ACCESS_KEY={}", "--hf-token {}", "node-{}.example.com", "Bearer {}.1234", "glpat-{}",
    "'/home/{}/two words'", "GPU-{}-1", "MIG-{}-1/2/3",
]  # fmt: skip


def everything(file: Path) -> str:
    """The bytes of a database and its rows, lower case."""
    with closing(sqlite3.connect(file)) as database:
        database.text_factory = lambda raw: raw.decode("latin-1")
        rows = [str(row) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
                for row in database.execute(f'SELECT * FROM "{name}"')]  # fmt: skip
    return (file.read_bytes().decode("latin-1") + "\n".join(rows)).lower()


def redacted(file: Path) -> str:
    out = file.with_name("out.sqlite")
    out.unlink(missing_ok=True)
    redact(file, out, PIDS)
    return everything(out)


def full_export(file: Path) -> Path:
    """An export with every table that is known, and some rows in each."""
    simulated_capture(file, "step2", length_ms=1.0)
    with closing(sqlite3.connect(file)) as database, database:
        for table, columns in TABLES.items():
            names = [f'"{name}" {"TEXT" if isinstance(value, str) else "INTEGER"}' for name, value in columns.items()]
            database.execute(f'CREATE TABLE IF NOT EXISTS "{table}" ({", ".join(names)})')
            if not database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]:
                places = ", ".join("?" * len(columns))
                database.execute(f'INSERT INTO "{table}" VALUES ({places})', list(columns.values()))
        for table in (
            "NVTX_EVENTS",
            "ThreadNames",
            "ENUM_CUDA_MEMCPY_OPER",
            "TARGET_INFO_SYSTEM_ENV",
            "COMPOSITE_EVENTS",
        ):
            database.execute(
                f"CREATE TABLE {table} (start INTEGER, end INTEGER, id INTEGER, name TEXT, value TEXT, text TEXT)"
            )
            database.execute(f"INSERT INTO {table} VALUES (1, 2, 3, 'a', 'b', 'c')")
    return file


def columns_of(file: Path) -> Iterator[tuple[str, str]]:
    with closing(sqlite3.connect(file)) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall():
            for row in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                yield table, row[1]


def test_a_secret_in_any_column_of_any_table_is_not_in_the_copy(tmp_path: Path) -> None:
    whole = full_export(tmp_path / "whole.sqlite")
    content = whole.read_bytes()
    planted = 0
    for table, column in columns_of(whole):
        if (table, column) == ("StringIds", "value"):
            continue  # kernel names, below
        for value in (CANARY, f"\xff/home/{CANARY}\xfe".encode("latin-1")):
            file = tmp_path / "e.sqlite"
            file.write_bytes(content)
            with closing(sqlite3.connect(file)) as database, database:
                database.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))
            assert CANARY not in redacted(file), (table, column, value)
            planted += 1
    assert planted > 250


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_in_a_kernel_s_name_goes_and_the_name_s_rest_stays(secret: str) -> None:
    for before in BEFORE:
        told = before + secret.format(CANARY)
        shown = Scrubber().name(told)
        assert CANARY not in shown.lower(), (told, shown)
        assert HIDDEN in shown or "GPU 0" in shown or "MIG 0" in shown
        assert Scrubber().name(shown) == shown, "nothing more the second time"


@given(st.sampled_from(SECRETS), st.text(max_size=12), st.sampled_from(BEFORE[1:]), st.text(max_size=12))
def test_what_stands_around_a_secret_hides_it_nowhere(secret: str, first: str, before: str, after: str) -> None:
    told = f"{first} {before}{secret.format(CANARY)} {after}"
    assert CANARY not in Scrubber().text(told).lower()


def test_every_kernel_name_that_was_recorded_survives() -> None:
    names = []
    for file in map(unpacked, [*H100_PAIR, *REPOSITORY.glob("recorded/**/*.sqlite*")]):
        with closing(sqlite3.connect(file)) as database:
            names += [name for (name,) in database.execute("SELECT value FROM StringIds")]
    scrub = Scrubber()
    assert len(names) > 700
    assert [name for name in names if scrub.name(name) != name] == []


def test_nothing_comes_along_of_schema_and_free_pages(tmp_path: Path) -> None:
    file = simulated_capture(tmp_path / "e.sqlite", "step2", length_ms=1.0)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA secure_delete=OFF")
        database.executescript(f"""
            ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN path TEXT DEFAULT '/home/{CANARY}/x';
            ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN {CANARY} INTEGER;
            ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN greenContextName INTEGER CHECK ('{CANARY}' > '');
            CREATE TABLE CUDA_GRAPH_EVENTS (start INTEGER DEFAULT '{CANARY}', /* {CANARY} */ nameId INTEGER);
            CREATE TABLE ENUM_CUDA_MEMCPY_KIND (id INTEGER, name TEXT, label TEXT);
            INSERT INTO ENUM_CUDA_MEMCPY_KIND VALUES (1, '{CANARY}', '/home/{CANARY}');
            UPDATE ENUM_GPU_CTX_SWITCH SET label = '{CANARY}';
            INSERT INTO ENUM_GPU_CTX_SWITCH VALUES (99, '{CANARY}', '');
            CREATE TABLE "{CANARY}" (a TEXT);
            CREATE VIEW v AS SELECT '{CANARY}' AS a;
            CREATE INDEX i ON CUPTI_ACTIVITY_KIND_KERNEL (start) WHERE shortName <> '{CANARY}';
            CREATE TRIGGER t AFTER INSERT ON StringIds BEGIN SELECT '{CANARY}'; END;
            CREATE TABLE gone (a TEXT);
            INSERT INTO gone SELECT '{CANARY}{CANARY}' FROM CUPTI_ACTIVITY_KIND_KERNEL;
            DROP TABLE gone;
            INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_PRODUCT_{CANARY}', '1'), ('EXPORT_PLATFORM', '{CANARY}');
            PRAGMA user_version = 7;
        """)
    assert CANARY in everything(file)
    assert CANARY not in redacted(file)
    with closing(sqlite3.connect(tmp_path / "out.sqlite")) as database:
        assert {kind for (kind,) in database.execute("SELECT type FROM sqlite_master")} == {"table"}
        assert database.execute("PRAGMA freelist_count").fetchone()[0] == 0


def holds_kernels(file: Path) -> bool:
    """nsys lost the kernels of one recorded capture: `colo trace` has nothing to tell of it."""
    with closing(sqlite3.connect(file)) as database:
        return "CUPTI_ACTIVITY_KIND_KERNEL" in {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


FOUND = sorted(REPOSITORY.glob("recorded/h*/**/capture/trace.sqlite*"))
RECORDED = [H100_PAIR[0], *(file for file in FOUND if holds_kernels(unpacked(file)))]


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: "-".join(file.parts[-8:-2])[-40:])
def test_a_redacted_capture_tells_the_same_numbers_and_is_the_same_the_second_time(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    once, twice = tmp_path / "trace.sqlite", tmp_path / "twice.sqlite"
    if (beside := file.with_name("capture.json")).is_file():
        copied = json.loads(beside.read_text())
        (tmp_path / "capture.json").write_text(json.dumps(copied | {"exports": ["trace.sqlite"]}))
    for old, new in ((unpacked(file), once), (once, twice)):
        assert main(["redact", str(old), str(new)]) == 0
    capsys.readouterr()
    for one in (file, once):
        assert main(["trace", str(one), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert without_files(told[0]) == without_files(told[1])
    assert once.read_bytes() == twice.read_bytes()


def without_files(found: Any) -> Any:
    """What `colo trace` tells but for the names of the files."""
    files = ("file", "path", "files", "exports")
    if isinstance(found, dict):
        return {key: without_files(value) for key, value in found.items() if key not in files}
    return [without_files(value) for value in found] if isinstance(found, list) else found


def test_names_of_processes_go_and_what_tells_gen_from_embed_stays(tmp_path: Path) -> None:
    file = simulated_capture(tmp_path / "e.sqlite", "step2", length_ms=1.0)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE PROCESSES SET name = ? WHERE pid = ?", (f"{CANARY}-vllm-server", GEN_PID))
        database.execute("UPDATE PROCESSES SET name = ? WHERE pid = ?", (f"/opt/{CANARY}/python3 --key x", EMBED_PID))
    assert CANARY not in redacted(file)
    with closing(sqlite3.connect(tmp_path / "out.sqlite")) as database:
        names = dict(database.execute("SELECT pid, name FROM PROCESSES"))
    assert names == {
        GEN_PID: "vllm (removed 1)",
        EMBED_PID: "python3",
    }


def test_a_table_that_is_a_view_is_no_way_in(tmp_path: Path) -> None:
    file = simulated_capture(tmp_path / "e.sqlite", "step2", length_ms=1.0)
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(f"""
            ALTER TABLE StringIds RENAME TO "{CANARY}";
            CREATE VIEW StringIds AS SELECT id, '{CANARY}' AS value FROM "{CANARY}";
        """)
    try:
        assert CANARY not in redacted(file)
    except InputError as error:
        pytest.fail(str(error))


def test_every_column_that_is_read_is_kept() -> None:
    """A column that the reader learns to use and nobody lists here would be lost in every shared file."""
    from colo_lib.data import nsys_schema as schema

    texts = [sql for columns in schema.COLUMNS.values() for sql in columns.values()]
    texts += [*schema.SWITCH_COLUMNS.values(), *schema.OVERHEAD_COLUMNS.values(), schema.SHAPE, schema.NODE]
    used = {word for sql in texts for word in schema.WORDS.findall(sql)}
    used -= schema.SQL_WORDS | {"SHAPE"}
    assert used | set(schema.NAME_COLUMNS) <= set(NUMBERS)
    assert all(KEPT.fullmatch(f"CUPTI_ACTIVITY_KIND_{kind}") for kind in schema.COLUMNS)
