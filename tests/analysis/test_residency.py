"""Whose context was on the device: what cannot be given to a process on a GPU is nobody's residency."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.summary import summary_of
from colo_lib.analysis.trace.window import look
from colo_lib.data.capture import read_exports
from colo_lib.data.packed_export import unpacked
from colo_lib.paths import RECORDED
from tests.exports import EMBED, GEN, Kernel, Planted, write

STRANGER = 9_000
TABLE = "GPU_CONTEXT_SWITCH_EVENTS"
# Kernels that begin in their own turn and last into the other's: intervals overlap, residency does not.
KERNELS = [Kernel(GEN, 20 * k, 20 * k + 15) for k in range(50)]
KERNELS += [Kernel(EMBED, 20 * k + 10, 20 * k + 25) for k in range(50)]
TURNS = {
    (GEN, 1): [(20 * k, 20 * k + 10) for k in range(50)],
    (EMBED, 2): [(20 * k + 10, 20 * k + 20) for k in range(50)],
}
BY_INTERVALS = 50 * 5 + 49 * 5
TWO_GPUS = {"TARGET_INFO_GPU": {"id": [0, 1], "busLocation": ["0000:01:00.0", "0000:02:00.0"]}}


def answers(file: Path, *statements: str, **options: Any) -> dict[str, Any]:
    connection = sqlite3.connect(file)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    capture = read_exports([file])
    return summary_of(look(capture, assign(capture, {"gen": str(GEN), "embed": str(EMBED)})[0], **options))


def planted(tmp_path: Path, residency: Any = TURNS, kernels: Any = KERNELS, **more: Any) -> Path:
    return write(tmp_path / "e.sqlite", Planted(kernels, residency), **more)


def falls_back(found: dict[str, Any], reason: str) -> None:
    assert (found["basis"], found["overlap_is_upper_bound"]) == ("kernel intervals", True)
    assert found["overlap_ns"] == BY_INTERVALS, "neither side is cut"
    for workload in found["workloads"].values():
        assert workload["busy_ns"] == workload["busy_ns_by_kernel_intervals"]
    (note,) = [note for note in found["notes"] if "upper bound" in note]
    assert reason in note


def test_whole_switches_cut_to_residency(tmp_path: Path) -> None:
    found = answers(planted(tmp_path))
    assert (found["basis"], found["overlap_ns"], found["overlap_is_upper_bound"]) == ("residency", 0, False)
    assert found["workloads"]["gen"]["busy_ns"] == 500


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (f"UPDATE {TABLE} SET globalPid = NULL", "200 of 200 context switches on this device name no process"),
        (f"UPDATE {TABLE} SET globalPid = 0", "name no process"),
        (f"UPDATE {TABLE} SET globalPid = 'gone'", "name no process"),
        (f"ALTER TABLE {TABLE} DROP COLUMN globalPid", "name no process"),
        (f"UPDATE {TABLE} SET globalPid = NULL WHERE contextId = 2", "100 of 200 context switches"),
        (f"UPDATE {TABLE} SET globalPid = NULL WHERE contextId = 1", "100 of 200 context switches"),
        (f"UPDATE {TABLE} SET globalPid = NULL WHERE rowid = 7", "1 of 200 context switches"),
        (f"UPDATE {TABLE} SET timestamp = NULL WHERE rowid = 7", "cannot be read"),
        (f"UPDATE {TABLE} SET tag = NULL WHERE rowid = 7", "cannot be read"),
        (f"UPDATE {TABLE} SET contextId = NULL WHERE rowid = 7", "cannot be read"),
        (f"ALTER TABLE {TABLE} DROP COLUMN timestamp", "cannot be read"),
        (f"ALTER TABLE {TABLE} DROP COLUMN tag", "cannot be read"),
    ],
)
def test_what_names_no_process_is_nobodys_residency(tmp_path: Path, statement: str, reason: str) -> None:
    falls_back(answers(planted(tmp_path), statement), reason)


def test_a_table_of_tags_whose_names_are_damaged_does_not_open_contexts_for_ever(tmp_path: Path) -> None:
    file = planted(tmp_path)
    assert answers(file, "UPDATE ENUM_GPU_CTX_SWITCH SET name = 'x' WHERE id = 7")["overlap_ns"] == 0


def test_a_stranger_without_a_name_does_not_take_away_what_is_known(tmp_path: Path) -> None:
    turns = TURNS | {(STRANGER, 3): [(2_000, 3_000)]}
    file = planted(tmp_path, turns, [*KERNELS, Kernel(GEN, 4_000, 4_001)])
    found = answers(file, f"UPDATE {TABLE} SET globalPid = NULL WHERE contextId = 3")
    assert (found["basis"], found["overlap_ns"]) == ("residency", 0)


def test_a_second_context_without_a_name_may_be_a_workloads_own(tmp_path: Path) -> None:
    """Kernels that start outside their known context while one of nobody is resident are not cut away."""
    kernels = [*KERNELS, *(Kernel(GEN, 2_000 + 20 * k, 2_015 + 20 * k) for k in range(5))]
    turns = TURNS | {(GEN, 3): [(2_000, 3_000)]}
    file = planted(tmp_path, turns, kernels)
    falls_back(answers(file, f"UPDATE {TABLE} SET globalPid = NULL WHERE contextId = 3"), "2 of 202 context switches")


def test_a_context_of_another_gpu_holds_nobodys_kernels_here(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100), Kernel(EMBED, 45, 100), Kernel(GEN, 0, 10, device=1)]
    file = planted(tmp_path, {(STRANGER, 1): [(0, 200)]}, kernels, tables=TWO_GPUS)
    found = answers(file, f"UPDATE {TABLE} SET gpuId = 1", device=0)
    assert (found["basis"], found["overlap_is_upper_bound"]) == ("kernel intervals", True)
    assert found["overlap_ns"] == 55
    assert answers(file, f"UPDATE {TABLE} SET gpuId = 0", device=0)["basis"] == "residency", "the server's context"


def test_a_process_with_contexts_on_two_gpus_is_cut_by_the_one_of_the_device(tmp_path: Path) -> None:
    kernels = [*KERNELS, *(Kernel(GEN, 5 * k, 5 * k + 2, device=1) for k in range(300))]
    turns = TURNS | {(GEN, 3): [(0, 5_000)]}
    file = planted(tmp_path, turns, kernels, tables=TWO_GPUS)
    found = answers(file, f"UPDATE {TABLE} SET gpuId = 1 WHERE contextId = 3", device=0)
    assert (found["basis"], found["overlap_ns"]) == ("residency", 0)


def test_switches_that_name_no_gpu_are_of_the_only_one(tmp_path: Path) -> None:
    statement = f"UPDATE {TABLE} SET gpuId = NULL"
    assert answers(planted(tmp_path), statement)["basis"] == "residency"
    falls_back(answers(planted(tmp_path, tables=TWO_GPUS), statement), "do not say on which GPU")
    falls_back(answers(planted(tmp_path, tables=TWO_GPUS), f"ALTER TABLE {TABLE} DROP COLUMN gpuId"), "on which GPU")


def test_one_context_cannot_hold_both_while_they_take_turns(tmp_path: Path) -> None:
    file = planted(tmp_path, {(STRANGER, 1): [(0, 5_000)]})
    assert answers(file, mechanism="mps")["basis"] == "residency"
    falls_back(answers(file, mechanism="time-sliced"), "one context holds the kernels of both")


def test_copies_and_other_processes_are_cut_as_kernels_are(tmp_path: Path) -> None:
    from tests.exports import global_pid

    other = [Kernel(STRANGER, 1_000 + 20 * k, 1_015 + 20 * k) for k in range(10)]
    moved = {"start": [5, 15], "end": [15, 25], "bytes": [100, 1], "globalPid": [global_pid(GEN), global_pid(EMBED)]}
    turns = TURNS | {(STRANGER, 3): [(1_000 + 20 * k, 1_010 + 20 * k) for k in range(10)]}
    tables = {"CUPTI_ACTIVITY_KIND_MEMCPY": moved}
    found = answers(planted(tmp_path, turns, [*KERNELS, *other], tables=tables), window_s=(0, 1.3e-6))
    assert found["basis"] == "residency"
    assert found["other_processes"]["busy_ns"] == 100
    for workload, count in (("gen", 100), ("embed", 1)):
        copies = found["workloads"][workload]["copies"]
        assert (copies["time_ns"], copies["busy_ns"], copies["bytes"], copies["count"]) == (5, 5, count, 1)
        assert copies["kinds"][0]["time_ns"] == 5


RECORDED_SLICES = sorted(RECORDED.glob("h200-*/steps/step3/capture/trace.sqlite*"))


@pytest.mark.skipif(not RECORDED_SLICES, reason="no recorded capture of a time-sliced step in this checkout")
@pytest.mark.parametrize(
    "statement", [f"UPDATE {TABLE} SET globalPid = NULL", f"ALTER TABLE {TABLE} DROP COLUMN globalPid"]
)
def test_a_real_capture_whose_switches_name_no_process_is_an_upper_bound(tmp_path: Path, statement: str) -> None:
    file = tmp_path / "e.sqlite"
    file.write_bytes(unpacked(RECORDED_SLICES[0]).read_bytes())
    connection = sqlite3.connect(file)
    connection.execute(statement.format(TABLE))
    connection.commit()
    connection.close()
    capture = read_exports([file])
    found = summary_of(look(capture, assign(capture, {})[0]))
    assert (found["basis"], found["overlap_is_upper_bound"]) == ("kernel intervals", True)
    assert any("name no process" in note for note in found["notes"])
