"""`colo run A.yaml B.yaml`: each checked first, then one after the other; the exit code tells of the worst."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from colo_lib.cli import run as run_command
from colo_lib.errors import InputError, StepFailed


def carry_out(*words: str) -> int:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    return run_command.carry_out(parser.parse_args(list(words)))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "_refuse", lambda params: None)
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(f"run_name: {name}\n")
    return ["one.yaml", "two.yaml", "three.yaml"]


def begun(monkeypatch: pytest.MonkeyPatch, ends: dict[str, Any]) -> list[str]:
    """Runs that end as told, without engines; gives the names of those that were begun."""
    names: list[str] = []

    def begin(options: argparse.Namespace, params: Any) -> tuple[int, Path]:
        names.append(params.run_name)
        end = ends.get(params.run_name, 0)
        if isinstance(end, Exception):
            raise end
        return end, Path("runs") / f"{params.run_name}.partial"

    monkeypatch.setattr(run_command, "_begin", begin)
    return names


@pytest.mark.parametrize("end", [1, StepFailed("a notebook failed")])
def test_a_failure_does_not_stop_the_next_and_is_told(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: Any
) -> None:
    names = begun(monkeypatch, {"one": end})
    assert carry_out(*files) == 1
    assert names == ["one", "two", "three"]
    assert "one.yaml: FAILED" in capsys.readouterr().out


def test_ctrl_c_stops_what_is_left(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = begun(monkeypatch, {"two": 130})
    assert carry_out(*files) == 130
    assert names == ["one", "two"]


def test_wrong_input_in_the_last_file_begins_nothing(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = begun(monkeypatch, {})
    Path("three.yaml").write_text("gen_concurency: 2\n")
    with pytest.raises(InputError, match="gen_concurrency"):
        carry_out(*files)
    assert names == []


def test_all_done_is_zero(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    begun(monkeypatch, {})
    assert carry_out(*files) == 0
