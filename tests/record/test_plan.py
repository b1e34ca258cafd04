"""The order of trials."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from colo_lib.params import check
from colo_lib.record.plan import plan_run, rounds_of


def order(**params: object) -> list[tuple[str, int]]:
    return [(trial.step, trial.block) for trial in plan_run(check(params, "test")).trials]


def test_blocks_alternate_in_direction() -> None:
    told = order(steps="step1,step2,step3,step4", blocks=3, starts=1)
    assert [step for step, _ in told] == [
        *("step1", "step2", "step3", "step4"),
        *("step4", "step3", "step2", "step1"),
        *("step1", "step2", "step3", "step4"),
    ]
    assert [block for _, block in told] == [1] * 4 + [2] * 4 + [3] * 4


def test_every_step_has_every_block_once() -> None:
    for starts in range(1, 7):
        told = order(blocks=5, starts=starts)
        assert len(told) == len(set(told)) == 6 * 5


def test_a_round_starts_every_set_of_engines_once() -> None:
    plan = plan_run(check({"blocks": 6, "starts": 3, "starts_on_two": 3}, "test")).trials
    for number in (1, 2, 3):
        mine = [trial for trial in plan if trial.round == number]
        assert sum(a.placement.engine_key() != b.placement.engine_key() for a, b in pairwise(mine)) == 2
        assert {trial.block for trial in mine} == {2 * number - 1, 2 * number}


def test_engines_over_two_devices_start_less_often_where_that_is_enough() -> None:
    plan = plan_run(check({"blocks": 5, "starts": 5}, "test")).trials
    assert sorted((trial.step, trial.block) for trial in plan) == sorted(order(blocks=5, starts=5))
    rounds = {step: {trial.round for trial in plan if trial.step == step} for step in ("step1", "configA", "configB")}
    assert rounds == {"step1": {1, 2, 3, 4, 5}, "configA": {3}, "configB": {3}}
    keys = [(trial.round, trial.placement.engine_key()) for trial in plan]
    assert len(list(groupby(keys))) == 5 + 2, "a set that started twice in a round"
    assert order(blocks=4, starts=2, starts_on_two=9) == order(blocks=4, starts=2, starts_on_two=2), (
        "more than the others"
    )
    on_gpus = plan_run(check({"blocks": 5, "starts": 5, "device": "cuda"}, "test")).trials
    assert {trial.round for trial in on_gpus if trial.step == "configA"} == {1, 2, 3, 4, 5}


def test_every_second_round_takes_the_sets_backwards() -> None:
    plan = plan_run(check({"blocks": 2, "starts": 2, "starts_on_two": 2}, "test")).trials
    sets = [trial.placement.engine_key() for trial in plan]
    assert [key for key, _ in groupby(sets[:6])] == [key for key, _ in groupby(sets[6:])][::-1]


@given(blocks=st.integers(1, 40), starts=st.integers(1, 40))
def test_rounds_are_even_and_hold_every_block_in_order(blocks: int, starts: int) -> None:
    rounds = rounds_of(range(1, blocks + 1), starts)
    assert [block for own in rounds for block in own] == list(range(1, blocks + 1))
    assert len(rounds) == min(blocks, starts)
    assert max(map(len, rounds)) - min(map(len, rounds)) <= 1


def test_time_left_counts_engine_starts() -> None:
    params = check({"blocks": 2, "starts": 2, "starts_on_two": 2, "warmup_s": 1.0, "window_s": 3.0}, "test")
    plan = plan_run(params)
    assert plan.seconds_left(0, 30.0, None) == 12 * 8.0 + 6 * 30.0
    assert plan.seconds_left(1, 30.0, (1, plan.trials[0].placement.engine_key())) == 11 * 8.0 + 5 * 30.0
    assert plan.seconds_left(len(plan.trials), 30.0, None) == 0
