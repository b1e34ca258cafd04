"""A run folder while it is being made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo_lib.capture.manifest import checksums, seal, write_json
from colo_lib.errors import InputError
from colo_lib.params import Params, check
from colo_lib.paths import MANIFEST, trial_folder
from colo_lib.run.folder import begin, counts, held, read_params, resume, trial_status


def params(tmp_path: Path, **changes: object) -> Params:
    return check({"runs_dir": str(tmp_path / "runs"), **changes}, "test")


def record(folder: Path, step: str, trial: int, status: str, start_ns: int) -> None:
    made = trial_folder(folder, step, trial)
    made.mkdir(parents=True)
    write_json(made / "trial.json", {"step": step, "trial": trial, "status": status, "window_start_ns": start_ns})


def test_begin_keeps_what_resume_needs(tmp_path: Path, engine_python: Path) -> None:
    wanted = params(tmp_path, blocks=4)
    folder = begin(wanted)
    assert folder.name.endswith(".partial")
    assert read_params(folder) == wanted
    for told in (folder, folder.name.removesuffix(".partial"), str(folder).removesuffix(".partial")):
        assert resume(told, wanted.runs_dir) == (folder, wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gen_model": "tiny-gne"}, "tiny-gen"),
        ({"gen_model": "qwen3-30b-a3b"}, "does not fit"),
        ({"gen_python": "/no/such/python"}, "/no/such/python"),
        ({"gen_kv_cache_gib": 4000.0}, "gen_kv_cache_gib"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    tmp_path: Path, engine_python: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        begin(params(tmp_path, **changes))
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, engine_python: Path) -> None:
    (tmp_path / "runs").write_text("a file stands here")
    with pytest.raises(InputError, match="runs_dir"):
        begin(params(tmp_path))


def test_two_launchers_never_share_a_folder(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(InputError, match="another launcher"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_seal_lists_trials_in_the_order_they_ran(tmp_path: Path) -> None:
    folder = tmp_path / "one.partial"
    folder.mkdir()
    write_json(folder / "start.json", {"params": {}, "created_utc": "now"})
    record(folder, "step1", 1, "done", 30)
    record(folder, "step2", 1, "invalid", 20)
    (folder / "steps" / "step2" / "trial-2.partial").mkdir()
    final = seal(folder)
    assert final == tmp_path / "one"
    assert not folder.exists()
    manifest = json.loads((final / MANIFEST).read_text())
    assert [(trial["step"], trial["status"]) for trial in manifest["trials"]] == [
        ("step2", "invalid"),
        ("step1", "done"),
    ]
    assert manifest["files"] == checksums(final)
    assert "steps/step1/trial-1/trial.json" in manifest["files"]
    with pytest.raises(InputError, match="finished"):
        resume(final, tmp_path)


def test_seal_never_overwrites_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "one.partial"
    folder.mkdir()
    write_json(folder / "start.json", {"params": {}})
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match="there already"):
        seal(folder)
    assert folder.exists()


def test_failed_trials_are_repeated_and_measured_ones_are_not(tmp_path: Path) -> None:
    for number, status in enumerate(("done", "invalid", "failed"), 1):
        record(tmp_path, "step1", number, status, number)
    assert [counts(trial_status(tmp_path, "step1", number)) for number in (1, 2, 3, 4)] == [True, True, False, False]
