"""A sample of the campaign of kills; `python -m tests.campaigns.random_kills` carries out all of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.campaigns.random_kills import Case, carry_out, draw

SEED = 5


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_random_kill_leaves_nothing_and_the_run_is_completed(number: int) -> None:
    case = draw(number, SEED, real=False)
    happened, wrong = carry_out(case)
    assert not wrong, (case.words, happened, wrong)


@pytest.mark.engine
@pytest.mark.usefixtures("quick_engines")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["launcher", "core"])
def test_a_kill_beside_the_true_engines_leaves_nothing_either(engine_python: Path, kind: str) -> None:
    case = Case(1, "step1,step4", "trial", kind, signal.SIGKILL, 1.0, real=True)
    happened, wrong = carry_out(case)
    assert happened.startswith("struck"), happened
    assert not wrong, wrong
