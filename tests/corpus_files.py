"""Makes the input of every case of tests/corpus: one function a case, its outcome in the case's own folder."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_lib.examples.captures import Schema
from tests.exports import EMBED, GEN, Kernel, Planted, write

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'\x1b[31m\x07\n`${x}`"
GOOD = [Kernel(GEN, 1_000, 2_000, 66, "attn"), Kernel(GEN, 3_000, 4_000, 132, "gemm"),
        Kernel(EMBED, 1_500, 3_500, 1320, "gemm")]  # fmt: skip
MAKERS: dict[str, Callable[[Path], Path]] = {}
KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"


def case(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    MAKERS[make.__name__.replace("_", "-")] = make
    return make


def changed(folder: Path, *statements: str, kernels: Any = GOOD, **options: Any) -> Path:
    """A good export, then changed by SQL."""
    file = write(folder / "trace.sqlite", kernels, **options)
    connection = sqlite3.connect(file)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return file


@case
def not_a_database(folder: Path) -> Path:
    file = folder / "trace.sqlite"
    file.write_text("these are notes\n" * 100)
    return file


@case
def a_report_not_its_export(folder: Path) -> Path:
    file = folder / "trace.nsys-rep"
    file.write_bytes(b"QDSTRM" + bytes(4096))
    return file


@case
def missing(folder: Path) -> Path:
    return folder / "trace.sqlite"


@case
def a_folder(folder: Path) -> Path:
    (folder / "trace.sqlite").mkdir()
    return folder / "trace.sqlite"


@case
def empty(folder: Path) -> Path:
    file = folder / "trace.sqlite"
    file.touch()
    return file


@case
def truncated(folder: Path) -> Path:
    file = write(folder / "trace.sqlite", GOOD * 200)
    os.truncate(file, file.stat().st_size // 2 + 100)
    return file


@case
def damaged_inside(folder: Path) -> Path:
    file = write(folder / "trace.sqlite", GOOD * 400)
    content = bytearray(file.read_bytes())
    content[4096 * 2 : 4096 * 12] = b"\xa5" * (4096 * 10)
    file.write_bytes(content)
    return file


@case
def hot_journal(folder: Path) -> Path:
    file = write(folder / "trace.sqlite", GOOD)
    (folder / "trace.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    return file


@case
def changes_in_the_wal(folder: Path) -> Path:
    file = write(folder / "trace.sqlite", GOOD)
    (folder / "trace.sqlite-wal").write_bytes(bytes(600))
    return file


@case
def wal_mode_but_settled(folder: Path) -> Path:
    file = write(folder / "trace.sqlite", GOOD)
    content = bytearray(file.read_bytes())
    content[18:20] = b"\x02\x02"
    file.write_bytes(content)
    return file


@case
def locked(folder: Path) -> Path:
    return write(folder / "trace.sqlite", GOOD)


@contextmanager
def held_by_a_writer(file: Path) -> Iterator[None]:
    """Another process has `file` locked, as an exporter that is still at work."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); print(1, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.stdin.close()


@case
def another_program_s_database(folder: Path) -> Path:
    file = folder / "trace.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    return file


@case
def no_cuda_at_all(folder: Path) -> Path:
    return changed(folder, f"DROP TABLE {KERNEL}")


@case
def api_calls_only(folder: Path) -> Path:
    tables = {"CUPTI_ACTIVITY_KIND_RUNTIME": {"start": [1], "end": [2]}}
    return changed(folder, f"DROP TABLE {KERNEL}", tables=tables)


@case
def copies_only(folder: Path) -> Path:
    tables = {"CUPTI_ACTIVITY_KIND_MEMCPY": {"start": [1], "end": [2], "bytes": [3]}}
    return changed(folder, f"DROP TABLE {KERNEL}", tables=tables)


@case
def no_rows(folder: Path) -> Path:
    return changed(folder, f"DELETE FROM {KERNEL}")


@case
def no_times(folder: Path) -> Path:
    return write(folder / "trace.sqlite", GOOD, Schema(without=frozenset({f"{KERNEL}.end"})))


@case
def a_view_for_a_table(folder: Path) -> Path:
    bomb = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS start, i AS end FROM n"
    return changed(folder, f"DROP TABLE {KERNEL}", f"CREATE VIEW {KERNEL} AS {bomb}")


@case
def lengths_all_zero(folder: Path) -> Path:
    return changed(folder, kernels=[Kernel(GEN, 5, 5), Kernel(EMBED, 5, 5)])


@case
def no_names(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET demangledName = NULL, shortName = NULL")


@case
def names_not_in_the_list(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET demangledName = 4711 WHERE gridX = 66")


@case
def no_list_of_names(folder: Path) -> Path:
    return changed(folder, "DROP TABLE StringIds")


@case
def names_with_markup(folder: Path) -> Path:
    return changed(folder, kernels=[*GOOD, Kernel(GEN, 5_000, 6_000, 1, MARKUP)], processes={GEN: MARKUP, EMBED: "e5"})


@case
def times_missing(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET end = NULL WHERE gridX = 66")


@case
def ends_before_it_starts(folder: Path) -> Path:
    return changed(folder, kernels=[*GOOD, Kernel(GEN, 9_000, 8_000)])


@case
def one_time_near_the_largest(folder: Path) -> Path:
    return changed(folder, kernels=[*GOOD, Kernel(GEN, 2**63 - 10, 2**63 - 1)])


@case
def all_times_near_the_largest(folder: Path) -> Path:
    return changed(folder, kernels=[Kernel(GEN, 2**63 - 100, 2**63 - 1), Kernel(EMBED, 2**63 - 50, 2**63 - 1)])


@case
def times_since_1970(folder: Path) -> Path:
    now = 1_795_435_813_758_566_457
    moved = [Kernel(k.pid, now + k.start, now + k.end, k.blocks, k.name) for k in GOOD]
    return changed(folder, "INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_PARAM_TIME_NORMALIZE', 'true')", kernels=moved)


@case
def a_billion_blocks(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET gridX = 1000000000, gridY = 65535, gridZ = 65535 WHERE gridX = 1320")


@case
def text_where_numbers_belong(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET start = 'soon' WHERE gridX = 66")


@case
def no_process_ids(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET globalPid = NULL")


@case
def no_sm_count(folder: Path) -> Path:
    return changed(folder, "UPDATE TARGET_INFO_GPU SET smCount = NULL")


@case
def no_gpu_table(folder: Path) -> Path:
    return changed(folder, "DROP TABLE TARGET_INFO_GPU")


@case
def no_process_table(folder: Path) -> Path:
    return changed(folder, "DROP TABLE PROCESSES")


@case
def schema_of_2022(folder: Path) -> Path:
    """No green contexts, no mangled names, no graph nodes, no per-SM limits, no export metadata."""
    gone = {f"{KERNEL}.{name}" for name in ("greenContextId", "mangledName", "graphNodeId", "sharedMemoryLimitConfig")}
    gone |= {f"TARGET_INFO_GPU.{name}" for name in ("maxWarpsPerSm", "maxBlocksPerSm", "maxShmemPerSm", "uuid")}
    return write(folder / "trace.sqlite", GOOD, Schema("2.7.1", "2022.1.3", frozenset(gone | {"META_DATA_EXPORT"})))


@case
def table_renamed(folder: Path) -> Path:
    return write(folder / "trace.sqlite", GOOD, Schema("3.24.14", "2025.6.1", renamed={KERNEL: f"{KERNEL}_V3"}))


@case
def table_twice(folder: Path) -> Path:
    return changed(folder, f"CREATE TABLE {KERNEL}_V2 AS SELECT * FROM {KERNEL}")


@case
def few_columns(folder: Path) -> Path:
    return changed(folder, f"CREATE TABLE {KERNEL}_V2 AS SELECT start, end, globalPid FROM {KERNEL}")


@case
def graph_launch_without_times(folder: Path) -> Path:
    return changed(folder, kernels=[*GOOD, Kernel(GEN, 0, 0, 0)])


SWITCHES = "GPU_CONTEXT_SWITCH_EVENTS"
# Each begins in its own turn and lasts into the other's.
SLICED = Planted([Kernel(GEN, 1_000, 2_500), Kernel(EMBED, 2_000, 3_500), Kernel(GEN, 3_000, 4_000)],
                 {(GEN, 1): [(1_000, 2_000), (3_000, 4_000)], (EMBED, 2): [(2_000, 3_000)]})  # fmt: skip


@case
def time_slices(folder: Path) -> Path:
    return changed(folder, kernels=SLICED)


@case
def switches_name_no_process(folder: Path) -> Path:
    return changed(folder, f"UPDATE {SWITCHES} SET globalPid = NULL", kernels=SLICED)


@case
def switches_have_no_process_column(folder: Path) -> Path:
    return changed(folder, f"ALTER TABLE {SWITCHES} DROP COLUMN globalPid", kernels=SLICED)


@case
def half_of_the_switches_name_no_process(folder: Path) -> Path:
    return changed(folder, f"UPDATE {SWITCHES} SET globalPid = NULL WHERE contextId = 2", kernels=SLICED)


@case
def switches_of_another_gpu(folder: Path) -> Path:
    gpus = {"id": [0, 1], "busLocation": ["0000:01:00.0", "0000:02:00.0"]}
    served = Planted(SLICED.kernels, {(9_000, 1): [(0, 9_000)]})
    return changed(
        folder, f"UPDATE {SWITCHES} SET gpuId = 1", kernels=served, tables={"TARGET_INFO_GPU": gpus}
    )  # fmt: skip


@case
def switches_without_times(folder: Path) -> Path:
    return changed(folder, f"ALTER TABLE {SWITCHES} DROP COLUMN timestamp", kernels=SLICED)


@case
def grids_missing(folder: Path) -> Path:
    """The largest launches have no grid: an occupancy of the rest alone must say so."""
    return changed(folder, f"UPDATE {KERNEL} SET gridX = NULL WHERE gridX = 132")


@case
def registers_missing(folder: Path) -> Path:
    kernels = [Kernel(k.pid, k.start, k.end, k.blocks, k.name, node=True) for k in GOOD]
    return changed(folder, f"UPDATE {KERNEL} SET registersPerThread = NULL", kernels=kernels)


@case
def names_not_utf_8(folder: Path) -> Path:
    return changed(
        folder,
        "UPDATE StringIds SET value = CAST(x'ff00fe67656d6d' AS TEXT) WHERE value = 'gemm'",
        "UPDATE PROCESSES SET name = CAST(x'fffe' AS TEXT)",
        "UPDATE TARGET_INFO_GPU SET name = CAST(x'c3285b' AS TEXT)",
        "INSERT INTO META_DATA_EXPORT VALUES (CAST(x'ff' AS TEXT), CAST(x'fe' AS TEXT))",
        f"UPDATE {KERNEL} SET streamId = CAST(x'ff' AS TEXT)",
    )


@case
def a_page_with_rows_dropped(folder: Path) -> Path:
    """A leaf that counts fewer rows than it holds: every query runs, and misses them."""
    file = write(folder / "trace.sqlite", GOOD * 400)
    content = bytearray(file.read_bytes())
    leaves = [place for place in range(4096, len(content), 4096) if content[place] == 0x0D]
    fullest = max(leaves, key=lambda place: int.from_bytes(content[place + 3 : place + 5], "big"))
    content[fullest + 3 : fullest + 5] = (3).to_bytes(2, "big")
    file.write_bytes(content)
    return file


@case
def a_damaged_table_that_nobody_reads(folder: Path) -> Path:
    file = changed(folder, "CREATE TABLE NVTX_EVENTS (text TEXT)",
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
                   "INSERT INTO NVTX_EVENTS SELECT 'a range of some name' FROM n")  # fmt: skip
    content = bytearray(file.read_bytes())
    content[-4096:-3000] = bytes(1096)
    file.write_bytes(content)
    return file


@case
def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "trace.sqlite")
    return folder / "trace.sqlite"


@case
def a_huge_name(folder: Path) -> Path:
    return changed(folder, "UPDATE StringIds SET value = CAST(zeroblob(40000000) AS TEXT) WHERE value = 'gemm'")


@case
def text_where_sizes_belong(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET gridY = '7 or so' WHERE gridX = 66")


@case
def a_schema_that_is_no_utf_8(folder: Path) -> Path:
    """SQLite's own message quotes it, and Python cannot decode the message."""
    file = write(folder / "trace.sqlite", GOOD)
    content = file.read_bytes()
    named = b'CREATE TABLE "TARGET_INFO_GPU" '
    file.write_bytes(content.replace(named + b"(", named + b"\xff"))
    return file


@case
def a_long_name(folder: Path) -> Path:
    """Two megabytes are read, but no pattern is searched in all of them."""
    return changed(folder, "UPDATE StringIds SET value = 'gemm' || hex(zeroblob(1000000)) WHERE value = 'gemm'")


@case
def fractions_where_sizes_belong(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET gridX = 66.5 WHERE gridX = 66")


@case
def fractions_where_times_belong(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET start = 999.5 WHERE gridX = 66")


@case
def too_many_threads(folder: Path) -> Path:
    return changed(folder, f"UPDATE {KERNEL} SET blockZ = 100000 WHERE gridX = 66")
