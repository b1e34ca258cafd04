"""Only a finished, unchanged run of the right layout is read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.parse import choose
from colo_lib.parse.run_folder import find_runs, find_unfinished, newest_run, open_run
from colo_lib.parse.trials import trials_frame
from colo_lib.schema import FRAMES
from tests.run_folders import Plan, change_manifest, reseal, write_run

GEN = "steps/step1/trial-1/gen.parquet"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", Plan(blocks=2, window_s=2.0))


def test_a_finished_run_gives_its_trials_in_order_and_its_frames_typed(run: Path) -> None:
    opened = open_run(run)
    assert list(opened.trials["step"][:3]) == ["step1", "step2", "step3"]
    assert opened.trials["step"].iloc[-1] == "step1", "the second block runs backwards"
    gen = opened.frame("step1", 1, "gen")
    assert gen is not None
    assert list(gen.columns) == list(FRAMES["gen"])
    assert gen["arrival_ns"].dtype == "int64"
    assert opened.frame("step1", 1, "requests")["done_ns"].dtype == "Int64", "ns must not pass through floats"
    assert opened.frame("step1", 1, "embed") is None
    assert opened.simulated
    assert opened.stand_in


def test_an_unfinished_run_names_the_way_on(run: Path) -> None:
    partial = run.with_name(run.name + ".partial")
    run.rename(partial)
    with pytest.raises(InputError, match=r"unfinished; colo run --resume .*partial"):
        open_run(partial)
    partial.rename(run)
    (run / "manifest.json").unlink()
    with pytest.raises(InputError, match="is unfinished; colo run --resume"):
        open_run(run)


@pytest.mark.parametrize("harm", ["flip", "append", "delete"])
def test_a_changed_file_is_named(run: Path, harm: str) -> None:
    content = bytearray((run / GEN).read_bytes())
    if harm == "delete":
        (run / GEN).unlink()
    else:
        content = content + b"x" if harm == "append" else content[:100] + bytes([content[100] ^ 1]) + content[101:]
        (run / GEN).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(GEN)):
        open_run(run)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "steps/../../outside"])
def test_a_manifest_cannot_lead_out_of_its_folder(run: Path, name: str) -> None:
    (run.parent / "outside").write_text("x")
    change_manifest(run, files={name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(InputError, match="outside the run folder"):
        open_run(run)


def test_a_link_out_of_the_folder_is_refused(run: Path) -> None:
    outside = run.parent / "gen.parquet"
    (run / GEN).rename(outside)
    os.symlink(outside, run / GEN)
    with pytest.raises(InputError, match="outside the run folder"):
        open_run(run)


def test_wrong_columns_are_named(run: Path) -> None:
    pd.DataFrame({"request_id": [1], "sequence_number": [1.5], "extra": [0]}).to_parquet(run / GEN)
    reseal(run, GEN)
    with pytest.raises(InputError) as told:
        open_run(run).frame("step1", 1, "gen")
    for word in (
        "'arrival_ns' is missing",
        "'extra' is not in the schema",
        "'sequence_number' is float64",
        "gen.parquet",
    ):
        assert word in str(told.value)


def test_a_file_that_is_no_parquet_is_named(run: Path) -> None:
    (run / GEN).write_bytes(b"not parquet")
    reseal(run, GEN)
    with pytest.raises(InputError, match=r"gen\.parquet: not a readable parquet file"):
        open_run(run).frame("step1", 1, "gen")


def test_a_frame_that_the_manifest_does_not_list_is_not_read(run: Path) -> None:
    (run / "steps/step1/trial-1/embed.parquet").write_bytes(b"slipped in")
    assert open_run(run).frame("step1", 1, "embed") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"trials": None}, "'trials' = None"),
        ({"params": {"blokcs": 3}}, "did you mean 'blocks'"),
        ({"trials": [{"step": "../x", "trial": 1}]}, "'trials.0.step' = '../x'"),
        ({"run_id": "../x"}, "'run_id' = '../x'"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(run: Path, changes: dict[str, object], told: str) -> None:
    change_manifest(run, **changes)
    with pytest.raises(InputError, match=told):
        open_run(run)


def test_the_stricter_status_holds(run: Path) -> None:
    name = "steps/step2/trial-1/trial.json"
    record = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**record, "status": "invalid", "reason": "a stranger"}))
    reseal(run, name)
    trials = open_run(run).trials
    row = trials[(trials["step"] == "step2") & (trials["trial"] == 1)].iloc[0]
    assert (row["status"], row["reason"]) == ("invalid", "a stranger")


def test_partial_folders_never_count(tmp_path: Path) -> None:
    for name, created in (("old", "2026-01-01"), ("new", "2026-02-01")):
        change_manifest(write_run(tmp_path, Plan(run_id=name, blocks=1, window_s=1.0)), created_utc=created)
    half = write_run(tmp_path, Plan(run_id="half", blocks=1, window_s=1.0))
    half.rename(tmp_path / "half.partial")
    (tmp_path / "cut" / "steps").mkdir(parents=True)
    assert [folder.name for folder in find_runs(tmp_path)] == ["new", "old"]
    assert [folder.name for folder in find_unfinished(tmp_path)] == ["cut", "half.partial"]
    assert newest_run(tmp_path) == tmp_path / "new"
    assert newest_run(tmp_path / "none") is None


def test_without_a_run_a_recorded_one_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = choose.choose_run(Params(runs_dir=str(tmp_path)))
    assert run.folder.parent == paths.RECORDED
    assert "EXAMPLE: no finished run was found here; this one was recorded on NVIDIA" in capsys.readouterr().out


def test_without_any_run_the_example_is_simulated_and_loudly_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "none")
    run = choose.choose_run(Params(runs_dir=str(tmp_path)))
    assert run.simulated
    assert "SIMULATED" in capsys.readouterr().out
    assert sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()) < 700_000


def test_a_named_run_is_read_even_if_a_newer_one_exists(run: Path) -> None:
    write_run(run.parent, Plan(run_id="other", blocks=1, window_s=1.0))
    assert choose.choose_run(Params(run=str(run))).run_id == "simulated-run"


@pytest.mark.parametrize(
    ("recorded", "read"),
    [
        ([["0"], ["1"]], ("0", "1")),
        ([["0", "1"]], ("0", "1")),
        (["0", "1"], ("0", "1")),
        ([], ()),
        (None, ()),
        ([0, ["0"]], ("0",)),
    ],
)
def test_devices_of_several_processes_are_counted_once(recorded: object, read: tuple[str, ...]) -> None:
    row = {"step": "configB", "trial": 1, "status": "failed", "devices": {"gen": ["0"], "embed": recorded}}
    assert trials_frame([row])["embed_devices"].iloc[0] == read


def test_a_run_of_the_same_models_is_found_also_among_the_recorded(tmp_path: Path) -> None:
    (pair,) = paths.RECORDED.glob("h100-x2-*/cells/cell-001/runs/*")
    nothing = Params(runs_dir=str(tmp_path / "none"), sweeps_dir=str(tmp_path / "none"))
    found = choose.alike(nothing, open_run(pair).params, ("step1", "step2", "step4"))
    assert found is not None
    assert found.folder.is_relative_to(next(paths.RECORDED.glob("h100-llama-*[0-9]")))
    other = open_run(pair).params.model_copy(update={"gen_model": "qwen3-30b-a3b"})
    assert choose.alike(nothing, other, ("step1", "step2", "step4")) is None
