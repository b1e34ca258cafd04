"""`colo sweep` as a person uses it: real cells, one that does not fit, interrupted and taken up again."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from colo_lib.data.sweep import open_sweep
from tests.processes import token_carriers, wait_until
from tests.test_run_command import colo, ended, params_file, read_until


@pytest.mark.engine
def test_an_interrupted_sweep_goes_on_and_counts_what_does_not_fit(tmp_path: Path, engine_python: Path) -> None:
    file = params_file(tmp_path, steps="step4", sweeps_dir=str(tmp_path / "sweeps"))
    process = colo("sweep", str(file), "--over", "embed_batch_size:gen_kv_cache_gib=2:1,8:1,8:4000", cwd=tmp_path)
    seen = read_until(process, r"^\(1/3\) cell-001 done")
    folder = Path(re.search(r"^sweep folder: (\S+)", seen, re.M).group(1))  # type: ignore[union-attr]
    assert wait_until(lambda: len(token_carriers()) > 2), "the second cell never started"
    process.send_signal(signal.SIGTERM)
    code, output = ended(process, 90)
    assert code == 130, output
    assert f"colo sweep --resume {folder}" in output
    assert wait_until(lambda: not token_carriers()), token_carriers()
    first = json.loads((folder / "cells/cell-001/cell.json").read_text())
    code, output = ended(colo("sweep", "--resume", str(folder), cwd=tmp_path))
    assert code == 1, "a cell that does not fit is no success"
    assert "2 of 3 cells measured" in output
    assert json.loads((folder / "cells/cell-001/cell.json").read_text()) == first, "a measured cell was repeated"
    sweep = open_sweep(folder)
    assert [cell.status for cell in sweep.cells] == ["done", "done", "refused"]
    assert "gen KV cache" in str(sweep.cells[2].reason)
    sizes = [run.trials["recorded_embed_sequences_per_s"].iloc[0] for run in sweep.runs.values()]
    assert all(size > 0 for size in sizes)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep"], "--over"),
        (["sweep", "{file}"], "nothing to vary"),
        (["sweep", "{file}", "--over", "gen_concurency=1,2"], "did you mean 'gen_concurrency'"),
        (["sweep", "{file}", "--over", "gen_model=tiny-gen,tiny-gne"], "tiny-gne"),
        (["sweep", "{file}", "--over", "devices=0,1;0"], "two devices"),
        (["sweep", "--resume", "nothing"], "no sweep"),
    ],
)
def test_wrong_input_starts_nothing(tmp_path: Path, engine_python: Path, words: list[str], told: str) -> None:
    file = str(params_file(tmp_path, sweeps_dir=str(tmp_path / "sweeps")))
    code, output = ended(colo(*(word.format(file=file) for word in words), cwd=tmp_path), 120)
    assert code == 2, output
    assert told in output
    assert "Traceback" not in output
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.engine
@pytest.mark.usefixtures("quick_engines")
def test_a_joint_sweep_keeps_engines_up_and_measures_a_common_baseline_once(
    tmp_path: Path, engine_python: Path
) -> None:
    file = params_file(tmp_path, steps="step1,step2,step4", blocks=1, window_s=4.0, sweeps_dir=str(tmp_path / "sweeps"))
    words = ("sweep", str(file), "--jointly", "--set", "embed_pacing=duty", "--over", "embed_duty=0.1,1.0")
    process = colo(*words, cwd=tmp_path)
    seen = read_until(process, r"^\[2/4\]")
    folder = Path(re.search(r"^sweep folder: (\S+)", seen, re.M).group(1))  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    code, output = ended(process, 90)
    assert code == 130, output
    assert wait_until(lambda: not token_carriers()), token_carriers()
    kept = {path: path.read_text() for path in folder.rglob("trial.json") if ".partial" not in path.parent.name}
    assert len(kept) >= 2
    code, output = ended(colo("sweep", "--resume", str(folder), cwd=tmp_path), 180)
    assert code == 0, output
    assert "2 of 2 cells measured" in output
    for path, text in kept.items():
        now = Path(str(path).replace(".partial", ""))
        assert now.read_text() == text, f"{now} was measured twice"
    runs = open_sweep(folder).runs
    assert [list(run.trials["status"]) for run in runs.values()] == [["done"] * 3] * 2
    records = {
        (cell, step): json.loads((run.folder / f"steps/{step}/trial-1/trial.json").read_text())
        for cell, run in runs.items()
        for step in ("step1", "step2", "step4")
    }
    assert records["cell-002", "step1"].pop("measured_in") == "cell-001"
    assert records["cell-002", "step1"] == records["cell-001", "step1"]
    assert "measured_in" not in records["cell-002", "step2"]
    slow, fast = (records[cell, "step2"]["embed_sequences_per_s"] for cell in ("cell-001", "cell-002"))
    assert slow < 0.7 * fast, "the cells' own parameter had no effect"
    sitting = {json.dumps(record["pids"]) for record in records.values()}
    assert len(sitting) <= 2, "engines were started anew between cells of one sitting"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--resume", "nothing", "--over", "embed_duty=0.1,1.0"], "cannot change"),
        (["--resume", "nothing", "--jointly"], "cannot change"),
    ],
)
def test_what_has_begun_cannot_be_changed(tmp_path: Path, words: list[str], told: str) -> None:
    file = str(params_file(tmp_path, sweeps_dir=str(tmp_path / "sweeps")))
    code, output = ended(colo("sweep", *(word.format(file=file) for word in words), cwd=tmp_path), 120)
    assert code == 2, output
    assert told in output
