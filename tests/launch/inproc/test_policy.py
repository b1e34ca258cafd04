"""When embed may begin and on how many SMs: decisions without a process, against plants that are planted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.launch.inproc.policy import AIM, MOST_STEPS, USUAL_STEPS, SloPolicy, make_policy

SIZES = st.lists(st.integers(0, 132), min_size=1, max_size=6, unique=True)


@given(sizes=SIZES, tokens=st.integers(0, 9), gaps=st.lists(st.floats(0.1, 1e4), max_size=9))
def test_fixed_and_phase_stay_on_the_first_size(sizes: list[int], tokens: int, gaps: list[float]) -> None:
    fixed, phase = make_policy("fixed", sizes, 1.0), make_policy("phase", sizes, 1.0)
    assert fixed.size == phase.size == fixed.passed(gaps) == phase.passed(gaps) == sizes[0]
    assert fixed.may_begin(tokens)
    assert phase.may_begin(tokens) == (tokens == 0)


def test_an_unknown_policy_and_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed, phase, slo"):
        make_policy("fastest", [0], 1.0)
    with pytest.raises(ValueError, match="no size"):
        make_policy("slo", [], 1.0)


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, keeps=st.integers(0, 6), steps_a_pass=st.integers(1, 8), slo_ms=st.floats(1, 1e3))
def test_slo_finds_the_largest_size_that_keeps_it(
    sizes: list[int], keeps: int, steps_a_pass: int, slo_ms: float
) -> None:
    policy = SloPolicy(sizes, slo_ms)
    in_order = sorted(sizes, key=lambda size: size or 10**6)  # 0 is every SM
    assert policy.size == in_order[0]
    ok = set(in_order[: max(1, min(keeps, len(sizes)))])
    late_always = keeps == 0
    largest = in_order[len(ok) - 1]
    passes, on_largest, late, steps = 6_000, 0, 0, 0
    for number in range(passes):
        beside = policy.size
        late_now = late_always or beside not in ok
        policy.passed([slo_ms * (1.0 if late_now else AIM * 0.99)] * steps_a_pass)
        assert policy.size in sizes
        if number >= passes // 2:
            on_largest += beside == largest
            late += late_now * steps_a_pass
            steps += steps_a_pass
    assert on_largest / (passes - passes // 2) > 0.98
    if not late_always:
        # A p99 within the SLO: the tries of a size that proved too large are rarer than that.
        assert late / steps < 0.01


def test_a_late_step_takes_one_size_at_once_and_never_more_a_pass() -> None:
    policy = SloPolicy([32, 64, 96, 0], 10.0)
    for _ in range(2_000):
        policy.passed([1.0])
    assert policy.size == 0
    assert [policy.passed([1.0, 99.0, 99.0]) for _ in range(5)] == [96, 64, 32, 32, 32]


def test_a_lighter_load_is_found_again_within_the_longest_wait() -> None:
    policy = SloPolicy([32, 0], 10.0)
    for _ in range(50_000):  # all SMs are too many, for long
        policy.passed([11.0 if policy.size == 0 else 1.0])
    assert policy.size == 32
    took = 0
    while policy.size != 0:
        policy.passed([1.0])
        took += 1
    assert took <= MOST_STEPS
    for _ in range(USUAL_STEPS + 1):
        policy.passed([1.0])
    assert policy.size == 0
    assert policy.wait_steps == USUAL_STEPS


def test_a_pass_beside_which_gen_made_no_step_teaches_nothing() -> None:
    policy = SloPolicy([32, 64], 10.0)
    for _ in range(1_000):
        policy.passed([])
    assert policy.size == 32
