"""A run folder while it is being made."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo_lib.data.run import check_unfinished, find_unfinished, open_run
from colo_lib.errors import InputError
from colo_lib.json_records import write_json
from colo_lib.params import Params, check
from colo_lib.paths import MANIFEST, START, trial_folder
from colo_lib.record.run_folder import begin_run, checksums, counts, read_params, resume, run_lock, seal, trial_status
from tests.run_folders import Plan, write_run


def params(tmp_path: Path, **changes: object) -> Params:
    return check({"runs_dir": str(tmp_path / "runs"), **changes}, "test")


def record(folder: Path, step: str, trial: int, status: str, start_ns: int) -> None:
    made = trial_folder(folder, step, trial)
    made.mkdir(parents=True)
    window = {"window_start_ns": start_ns, "window_end_ns": start_ns + 1}
    write_json(made / "trial.json", {"step": step, "trial": trial, "status": status} | window)


def test_begin_keeps_what_resume_needs(tmp_path: Path, engine_python: Path) -> None:
    wanted = params(tmp_path, blocks=4)
    run = begin_run(wanted)
    folder = run.folder
    assert folder.name.endswith(".partial")
    assert read_params(folder) == wanted
    for told in (folder, folder.name.removesuffix(".partial"), str(folder).removesuffix(".partial")):
        assert resume(told, wanted.runs_dir, check_unfinished) == run


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
        begin_run(params(tmp_path, **changes))
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, engine_python: Path) -> None:
    (tmp_path / "runs").write_text("a file stands here")
    with pytest.raises(InputError, match="runs_dir"):
        begin_run(params(tmp_path))


def test_two_launchers_never_share_a_folder(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(InputError, match="another launcher"), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_seal_lists_trials_in_the_order_they_ran(tmp_path: Path) -> None:
    folder = tmp_path / "one.partial"
    folder.mkdir()
    write_json(folder / "start.json", {"params": {}, "created_utc": "now", "machine": {}, "models": {}, "budget": []})
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
    assert manifest["files"] == {name: listed.plain() for name, listed in checksums(final).items()}
    assert "steps/step1/trial-1/trial.json" in manifest["files"]
    with pytest.raises(InputError, match="finished"):
        resume(final, tmp_path, check_unfinished)


class Killed(BaseException):
    """In place of a SIGKILL: nothing that the code catches."""


def killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Die at the `moment`-th change of the file system: before it takes place, or right after it."""
    left = [moment]

    def dying(do: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            done = do(*words, **more)
            if left[0] == 1:
                raise Killed
            left[0] -= 2
            return done

        return step

    for name in ("rename", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", dying(os.fsync))


@pytest.mark.parametrize("moment", range(10))
def test_a_run_that_was_killed_while_it_was_sealed_is_sealed_again(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_run(tmp_path, Plan(blocks=1, window_s=1.0))
    manifest = json.loads((whole / MANIFEST).read_text())
    (whole / MANIFEST).unlink()
    folder = whole.rename(whole.with_name(f"{whole.name}.partial"))
    named = ("created_utc", "params", "machine", "models", "budget", "total_s")
    write_json(folder / START, {name: manifest[name] for name in named})
    (folder / "steps" / "step2" / "trial-2.partial").mkdir()
    (folder / ".lock").touch()
    with monkeypatch.context() as patched:
        killed_at(patched, moment)
        with contextlib.suppress(Killed):
            seal(folder)
    if folder.exists():
        assert [one.name for one in find_unfinished(tmp_path)] == [folder.name]
        assert resume(folder, tmp_path, check_unfinished).folder == folder
        assert seal(folder) == whole
    assert len(open_run(whole).trials) == 6


def test_who_is_killed_while_a_run_begins_leaves_none(
    tmp_path: Path, engine_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        killed_at(patched, 0)
        with pytest.raises(Killed):
            begin_run(params(tmp_path))
    assert find_unfinished(tmp_path / "runs") == []


def harm(folder: Path, how: str) -> None:
    """One damage of a trial of an unfinished run."""
    trial = folder / "steps" / "step2" / "trial-1"
    if how == "frame gone":
        (trial / "gen.parquet").unlink()
    elif how == "frame cut":
        (trial / "embed.parquet").write_bytes((trial / "embed.parquet").read_bytes()[:200])
    elif how == "record of another type":
        (trial / "trial.json").write_text("[]")
    elif how == "no status":
        write_json(trial / "trial.json", {"step": "step2", "trial": 1})
    elif how == "start of another type":
        (folder / START).write_text("3")
    else:
        write_json(folder / START, {"params": [], "machine": 3})


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("frame gone", r"gen\.parquet: missing.*without the folder .*trial-1 the trial is measured again"),
        ("frame cut", r"embed\.parquet: not a readable parquet"),
        ("record of another type", r"trial\.json: holds no JSON object"),
        ("no status", r"trial\.json: 'status'"),
        ("start of another type", r"start\.json: holds no JSON object"),
        ("fields of another type", r"start\.json: .*'params'"),
    ],
)
def test_a_damaged_unfinished_run_is_not_taken_up(tmp_path: Path, how: str, told: str) -> None:
    whole = write_run(tmp_path, Plan(blocks=1, window_s=1.0))
    manifest = json.loads((whole / MANIFEST).read_text())
    (whole / MANIFEST).unlink()
    folder = whole.rename(whole.with_name(f"{whole.name}.partial"))
    write_json(folder / START, {name: manifest[name] for name in ("params", "machine", "models", "budget")})
    assert resume(folder, tmp_path, check_unfinished).folder == folder
    harm(folder, how)
    with pytest.raises(InputError, match=told):
        resume(folder, tmp_path, check_unfinished)


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
