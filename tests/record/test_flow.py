"""A sweep's bookkeeping with cells that only pretend: independent, resumable, counted, read back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_lib.data.sweep import open_sweep
from colo_lib.errors import InputError
from colo_lib.examples.simulated_run import write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.params import Params
from colo_lib.paths import cell_folder, cell_runs
from colo_lib.record.sweep import Order, Say, carry_out_cell, carry_out_sweep, sweep_summary
from colo_lib.records import CellRecord
from colo_lib.select import select_sweep
from colo_lib.sweep_plan import begin_sweep, cell_params, find_sweep, grid, parse_axis, read_plan, recorded


def begun(tmp_path: Path, words: str = "gen_concurrency=1,2,4") -> Path:
    params = Params(sweeps_dir=str(tmp_path / "sweeps"), blocks=1)
    axes = [parse_axis(words)]
    return begin_sweep(params, axes, grid(params, axes))


class Pretence:
    """Cells that end as told; those that are done leave a simulated run."""

    def __init__(self, ends: dict[str, str]) -> None:
        self.ends, self.asked = ends, []

    def __call__(self, orders: list[Order], say: Say) -> Iterator[CellRecord]:
        for order in orders:
            name = order.cell.name
            self.asked.append(name)
            status = self.ends.get(name, "done")
            if status == "interrupt":
                raise KeyboardInterrupt
            if status == "done":
                write_run(cell_runs(cell_folder(order.folder, name)), Plan(run_id=name, blocks=1, window_s=0.5))
            reason = None if status == "done" else "planted"
            yield CellRecord(cell=name, status=status, reason=reason, attempts=order.attempt, host="here", total_s=1.0)


def quiet(_: str) -> None:
    return None


def test_one_failure_stops_no_other_and_is_counted(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    records = carry_out_sweep(folder, quiet, Pretence({"cell-002": "failed"}))
    assert [found.status for found in records] == ["done", "failed", "done"]
    assert sweep_summary(records, 3) == "2 of 3 cells measured\n  cell-002 failed: planted"
    sweep = open_sweep(folder)
    assert list(sweep.runs) == ["cell-001", "cell-003"]
    assert [cell.status for cell in sweep.cells] == ["done", "failed", "done"]
    assert sweep.cells[1].reason == "planted"


def test_only_what_is_not_done_is_carried_out_again(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        carry_out_sweep(folder, quiet, Pretence({"cell-001": "failed", "cell-003": "interrupt"}))
    assert open_sweep(folder).cells[2].status == "not run"
    again = Pretence({})
    records = carry_out_sweep(folder, quiet, again)
    assert again.asked == ["cell-001", "cell-003"]
    assert [found.attempts for found in records] == [2, 1, 1]
    assert find_sweep(folder.name, str(folder.parent)) == folder


def test_a_cell_runs_with_its_own_parameters_below_its_own_folder(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    base, cells = read_plan(folder)
    params = cell_params(base, cells[1], folder)
    assert params.gen_concurrency == 2
    assert Path(params.runs_dir).parent == cell_folder(folder.absolute(), "cell-002")
    assert params.run_name == "cell-002"


def test_a_cell_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, engine_python: Path) -> None:
    params = Params(runs_dir=str(tmp_path / "cell-001/runs"), run_name="cell-001", gen_kv_cache_gib=4000.0)
    found = carry_out_cell(params, tmp_path / "cell-001", "cell-001", 1, quiet)
    assert found.status == "refused"
    assert "gen KV cache" in str(found.reason)


def test_damaged_or_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep"):
        find_sweep("nothing", str(tmp_path))
    with pytest.raises(InputError, match="not readable"):
        open_sweep(tmp_path)
    folder = begun(tmp_path)
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(plan | {"cells": [{"cell": "../../etc"}]}))
    with pytest.raises(InputError):
        open_sweep(folder)
    (folder / "sweep.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_plan(folder)


def test_done_without_a_run_is_not_believed(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    target = cell_folder(folder, "cell-001")
    target.mkdir(parents=True)
    (target / "cell.json").write_text(json.dumps({"cell": "cell-001", "status": "done", "reason": None}))
    with pytest.raises(InputError, match="holds no finished run"):
        open_sweep(folder)


def test_a_notebook_reads_the_newest_sweep_over_its_parameter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = begun(tmp_path)
    carry_out_sweep(folder, quiet, Pretence({"cell-001": "failed"}))
    told = Params(sweeps_dir=str(folder.parent))
    assert select_sweep(told, ("gen_concurrency",), "concurrency").folder == folder
    assert "2 of 3 cells measured" in capsys.readouterr().out
    assert select_sweep(told, ("gen_enforce_eager",), "eager").simulated
    assert "SIMULATED" in capsys.readouterr().out
    with pytest.raises(InputError, match="varies gen_concurrency"):
        select_sweep(Params(sweep=str(folder)), ("gen_enforce_eager",), "eager")


def test_recorded_is_none_before_a_cell_ends(tmp_path: Path) -> None:
    assert recorded(begun(tmp_path), "cell-001") is None


def test_without_a_sweep_of_ones_own_the_recorded_one_is_read_along_its_parameter(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    nothing = Params(sweeps_dir=str(tmp_path / "none"))
    line = select_sweep(nothing, ("gen_concurrency",), "concurrency")
    assert [cell.run.params.gen_concurrency for cell in line.cells if cell.run] == [1, 8, 32]
    assert {cell.run.params.mps_embed_thread_percentage for cell in line.cells if cell.run} == {100}
    assert "EXAMPLE" in capsys.readouterr().out
    caps = select_sweep(nothing, ("mps_embed_thread_percentage",), "threads")
    assert sorted(cell.changes["mps_embed_thread_percentage"] for cell in caps.cells) == [10, 25, 50, 100]
    whole = select_sweep(nothing, ("mps_embed_thread_percentage",), "threads", whole=True)
    assert len(whole.cells) == 13
    two = select_sweep(nothing, ("gen_concurrency",), "concurrency", ("configB",))
    assert "configB" in two.steps
