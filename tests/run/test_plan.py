"""The order of trials."""

from __future__ import annotations

from itertools import pairwise

from colo_lib.params import check
from colo_lib.run.plan import plan_trials, seconds_left


def order(**params: object) -> list[tuple[str, int]]:
    return [(trial.step, trial.block) for trial in plan_trials(check(params, "test"))]


def test_blocks_alternate_in_direction() -> None:
    told = order(steps="step1,step2,step3,step4", blocks=3)
    assert [step for step, _ in told] == [
        *("step1", "step2", "step3", "step4"),
        *("step4", "step3", "step2", "step1"),
        *("step1", "step2", "step3", "step4"),
    ]
    assert [block for _, block in told] == [1] * 4 + [2] * 4 + [3] * 4


def test_every_step_has_every_block_once() -> None:
    for interleave in ("engines", "all"):
        told = order(blocks=5, interleave=interleave)
        assert len(told) == len(set(told)) == 6 * 5


def test_engines_are_started_once_a_set() -> None:
    plan = plan_trials(check({"blocks": 3}, "test"))
    changes = sum(a.placement.engine_key() != b.placement.engine_key() for a, b in pairwise(plan))
    assert changes == 2


def test_all_meets_every_step_in_every_block() -> None:
    told = order(blocks=2, interleave="all")
    assert {block for _, block in told[:6]} == {1}
    assert [step for step, _ in told[6:]] == [step for step, _ in told[:6]][::-1]


def test_time_left_counts_engine_starts() -> None:
    params = check({"blocks": 1, "warmup_s": 1.0, "window_s": 3.0}, "test")
    plan = plan_trials(params)
    assert seconds_left(params, plan, 30.0, None) == 6 * 10.0 + 3 * 30.0
    assert seconds_left(params, [], 30.0, None) == 0
