"""Folders of built-in examples: they go with their process, or with the next one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from colo_lib.examples.simulated_run import example_folder

MAKE = "from colo_lib.examples.simulated_run import example_folder; print(example_folder(), flush=True); "


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system temporary folder of one's own, for this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def made_by(end: str) -> Path:
    """The folder of a process that ended as told."""
    done = subprocess.run([sys.executable, "-c", MAKE + end], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_a_process_that_ends_takes_its_examples_along(temporary: Path) -> None:
    assert made_by("pass").parent == temporary
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(temporary: Path) -> None:
    left = made_by("import os; os.kill(os.getpid(), 9)")
    assert left.is_dir()
    mine = example_folder()
    assert list(temporary.iterdir()) == [mine]


def test_those_of_the_living_and_of_others_stay(temporary: Path) -> None:
    mine, others = example_folder(), temporary / "colo-example-notes"
    others.mkdir()
    example_folder()
    assert mine.is_dir()
    assert others.is_dir()
