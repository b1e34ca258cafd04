"""The controller that paces embed, against simulated plants: gen's engine steps with embed's passes among them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.launch.pacing import AIM, LATE_FRACTION, LEAST_DUTY, SloController, p99

SLO_MS = 20.0


@dataclass
class Plant:
    """gen's gap = `alone_ms`, longer by `contention_ms` times the share of the gap that embed worked in.

    With `passes_ms` embed works in passes of that length, at the duty asked for, as it does on a device: a gap meets a
    whole pass or none. Without, its work is spread evenly.
    """

    alone_ms: float
    contention_ms: float
    passes_ms: float = 0.0
    noise: float = 0.05
    seed: int = 1
    now_ms: float = 0.0
    until_ms: float = 0.0  # end of the rest or pass in progress
    working: bool = False
    gaps_ms: list[float] = field(default_factory=list)
    duties: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def worked(self, duty: float, span_ms: float) -> float:
        """Share of the next `span_ms` that embed works in."""
        if not self.passes_ms:
            return duty
        end, worked, at = self.now_ms + span_ms, 0.0, self.now_ms
        while at < end:
            if at >= self.until_ms:
                self.working = not self.working
                self.until_ms = at + (self.passes_ms if self.working else self.passes_ms * (1 / duty - 1))
            step = min(end, self.until_ms) - at
            worked += step * self.working
            at = max(at + step, math.nextafter(at, math.inf))
        return worked / span_ms

    def step(self, duty: float) -> float:
        """One engine step under this duty; its gap, ms."""
        share = self.worked(duty, self.alone_ms)
        gap = (self.alone_ms + self.contention_ms * share) * math.exp(self.draw.gauss(0.0, self.noise))
        self.now_ms += gap
        self.gaps_ms.append(gap)
        self.duties.append(duty)
        return gap


def close(plant: Plant, steps: int, controller: SloController | None = None, every: int = 8) -> SloController:
    """Run the loop: the controller hears of the gaps `every` few steps, as the pacer's ticks have it."""
    controller = controller or SloController(SLO_MS, 1)
    duty = controller.update([])
    for _ in range(steps // every):
        duty = controller.update([plant.step(duty) for _ in range(every)])
    return controller


def late_share(gaps_ms: list[float]) -> float:
    return float(np.mean(np.asarray(gaps_ms) > SLO_MS))


@pytest.mark.parametrize("passes_ms", [0.0, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("contention_ms", [10.0, 30.0, 90.0])
def test_the_p99_gap_is_kept_within_the_slo(passes_ms: float, contention_ms: float) -> None:
    # 10: embed's work takes its own time of gen's; 90: gen keeps a tenth of its rate beside it, as seen on GPUs.
    plant = Plant(alone_ms=10.0, contention_ms=contention_ms, passes_ms=passes_ms)
    close(plant, 20_000)
    assert np.percentile(plant.gaps_ms, 99) <= SLO_MS
    assert np.percentile(plant.gaps_ms[10_000:], 99) <= SLO_MS


def test_embed_gets_what_the_slo_leaves() -> None:
    # Of 10 ms to spare (9 to the aim), contention of 20 ms at full duty leaves embed under half of the time.
    plant = Plant(alone_ms=10.0, contention_ms=20.0, noise=0.02)
    close(plant, 20_000)
    assert 0.2 < np.mean(plant.duties[10_000:]) < 0.45


def test_where_embed_does_no_harm_it_is_not_held_back() -> None:
    plant = Plant(alone_ms=10.0, contention_ms=4.0)
    close(plant, 5_000)
    assert np.mean(plant.duties) > 0.97


def test_an_slo_that_gen_misses_alone_leaves_embed_its_least() -> None:
    plant = Plant(alone_ms=30.0, contention_ms=1.0)
    controller = close(plant, 2_000)
    assert controller.update([]) == pytest.approx(LEAST_DUTY)


def test_after_a_bad_spell_embed_comes_back_as_fast_as_after_a_short_one() -> None:
    def steps_to_return(bad_steps: int) -> int:
        plant = Plant(alone_ms=30.0, contention_ms=1.0)
        controller = close(plant, bad_steps)
        plant.alone_ms, steps = 10.0, 0
        while controller.update([plant.step(controller.update([]))]) < 0.5:
            steps += 1
        return steps

    # From its least, at a doubling in 199 gaps: nothing was wound up meanwhile.
    assert steps_to_return(20_000) == pytest.approx(steps_to_return(400), rel=0.1)
    assert steps_to_return(20_000) < 199 * math.log2(1 / LEAST_DUTY)


def test_a_change_of_load_is_followed() -> None:
    plant = Plant(alone_ms=10.0, contention_ms=15.0)
    controller = close(plant, 6_000)
    before = np.mean(plant.duties[3_000:])
    plant.contention_ms, first = 90.0, len(plant.gaps_ms)
    close(plant, 8_000, controller)
    assert np.mean(plant.duties[-4_000:]) < before / 3
    assert late_share(plant.gaps_ms[first:]) <= 0.01


def test_an_overdue_token_holds_embed_before_it_came() -> None:
    controller = SloController(SLO_MS, 1)
    assert controller.update([10.0]) > 0.9
    assert controller.update([], open_ms=SLO_MS) == LEAST_DUTY
    # It has not been counted yet: a token that came after all costs one halving, not two.
    assert controller.update([21.0]) == pytest.approx(0.5, rel=0.01)


def test_the_stall_bound_of_embed_is_the_floor() -> None:
    controller = SloController(SLO_MS, 1)
    assert controller.update([99.0] * 50, floor=0.3) == pytest.approx(0.3)
    # Nothing was wound up below it: the next gaps in time raise the duty from there.
    assert controller.update([1.0] * 200) > 0.55
    # Nor is embed asked for more because it had to hurry once.
    low = SloController(SLO_MS, 1)
    assert low.update([99.0] * 5) == pytest.approx(1 / 32)
    assert low.update([99.0], floor=1.0) == pytest.approx(1 / 32)


def test_requests_in_step_count_as_one() -> None:
    alone, many = SloController(SLO_MS, 1), SloController(SLO_MS, 16)
    assert many.update([30.0] * 16) == pytest.approx(alone.update([30.0]))
    assert many.update([1.0] * 1600) == pytest.approx(alone.update([1.0] * 100))


@given(gaps=st.lists(st.sampled_from([1.0, 15.0, 19.5, 25.0]), max_size=600), concurrency=st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_late_gaps_are_bounded_whatever_comes(gaps: list[float], concurrency: int) -> None:
    controller, late = SloController(SLO_MS, concurrency), 0
    for number, gap in enumerate(gaps, 1):
        duty = controller.update([gap])
        assert LEAST_DUTY <= duty <= 1.0
        late += gap > AIM * SLO_MS
        if duty <= LEAST_DUTY * 1.000001:
            break
        assert late <= LATE_FRACTION * number + concurrency * math.log2(1 / LEAST_DUTY) + 1e-6


def test_the_recent_p99_is_a_value_that_was_seen() -> None:
    assert p99([]) is None
    assert p99([5.0]) == 5.0
    assert p99([float(value) for value in range(1, 201)]) == 198.0
