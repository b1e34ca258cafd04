"""How the embedding process paces itself, on a made-up clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.launch.embed_worker import Pacing
from colo_lib.launch.pacing import StartOrder, pacing_record, start_order
from colo_lib.launch.specs import specs_of
from colo_lib.params import check
from colo_lib.placement import placement_of


@dataclass
class Ran:
    """What a simulated embedding process did: when each batch was done, s, and how long it worked and rested."""

    done_s: list[float] = field(default_factory=list)
    worked_s: float = 0.0
    rested_s: float = 0.0

    def longest_wait_s(self) -> float:
        return max(later - earlier for earlier, later in zip([0.0, *self.done_s], self.done_s, strict=False))

    def duty(self) -> float:
        return self.worked_s / (self.worked_s + self.rested_s)


def run(pacing: Pacing, passes: int, busy_s: float, batches: int) -> Ran:
    """The worker's loop with every pass taking `busy_s`."""
    pacing.last_done_s, now_s, ran = 0.0, 0.0, Ran()
    for _ in range(batches):
        for left in range(passes - 1, -1, -1):
            now_s += busy_s
            if not left:
                ran.done_s.append(now_s)
                pacing.last_done_s = now_s
            rest_s = pacing.rest_s(busy_s, left or passes, now_s)
            now_s, ran.worked_s, ran.rested_s = now_s + rest_s, ran.worked_s + busy_s, ran.rested_s + rest_s
    return ran


@given(duty=st.floats(0.01, 1.0), passes=st.integers(1, 64), busy_s=st.floats(1e-4, 0.5))
@settings(deadline=None, max_examples=60)
def test_a_duty_cycle_works_for_its_share_of_the_time(duty: float, passes: int, busy_s: float) -> None:
    assert run(Pacing(duty), passes, busy_s, 20).duty() == pytest.approx(duty)


@given(duty=st.floats(0.001, 1.0), passes=st.integers(1, 64), busy_s=st.floats(1e-4, 0.5), stall_s=st.floats(0.05, 30))
@settings(deadline=None, max_examples=100)
def test_no_duty_starves_embed(duty: float, passes: int, busy_s: float, stall_s: float) -> None:
    ran = run(Pacing(duty, stall_s=stall_s), passes, busy_s, 20)
    # Flat out is as fast as it goes: a bound below that cannot be kept, and is not made worse.
    assert ran.longest_wait_s() <= max(stall_s, passes * busy_s) * (1 + 1e-9)


def test_the_stall_bound_leaves_a_duty_that_keeps_it_alone() -> None:
    assert run(Pacing(0.5, stall_s=10.0), 4, 0.05, 50).duty() == pytest.approx(0.5)


def test_the_share_worked_is_told_when_the_bound_cuts_the_rest() -> None:
    pacing = Pacing(0.01, stall_s=1.0)
    run(pacing, 4, 0.05, 10)
    assert pacing.worked_share() == pytest.approx(0.25, abs=0.05)  # 0.2 s of work in 0.8 s


def test_only_a_sharing_embed_is_paced() -> None:
    params = check({"embed_pacing": "duty", "embed_duty": 0.25, "embed_micro_batch_size": 2}, "test")
    pacing = specs_of(params, placement_of("step2", params)).trial.load.pacing
    assert start_order(pacing, placement_of("step2", params)) == StartOrder(duty=0.25, micro_batch_size=2, stall_s=5.0)
    for step in ("step4", "configA"):
        assert start_order(pacing, placement_of(step, params)) == StartOrder(duty=1.0, micro_batch_size=0, stall_s=0.0)
    told = pacing_record(pacing, placement_of("step3", params))
    assert told.plain() == {"kind": "duty", "duty": 0.25, "micro_batch_size": 2}
    assert pacing_record(pacing, placement_of("step4", params)).kind == "none"
