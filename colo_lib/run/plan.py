"""The order of trials: blocks in alternating order, steps that can share engines next to each other."""

from __future__ import annotations

from dataclasses import dataclass

from colo_lib.launch.placement import Placement, place
from colo_lib.params import Params


@dataclass(frozen=True)
class PlannedTrial:
    """One trial to carry out; `block` counts from 1 and numbers the trial within its step."""

    placement: Placement
    block: int

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.placement.step


def plan_trials(params: Params) -> list[PlannedTrial]:
    """Every trial of the run in order; raises InputError when a step does not fit the devices.

    Within a block, steps that use the same engines stand together; every second block runs backwards
    (1 2 3 4 | 4 3 2 1 | …), so that a drift of the machine meets every step alike. `interleave: all` runs
    every step in every block, restarting engines where it must; `interleave: engines` finishes all
    blocks on one set of engines before the next is started.
    """
    placements = [place(step, params) for step in params.step_names()]
    sets: dict[tuple[object, ...], list[Placement]] = {}
    for placement in placements:
        sets.setdefault(placement.engine_key(), []).append(placement)
    groups = list(sets.values())
    rounds = [[placement for group in groups for placement in group]] if params.interleave == "all" else groups
    return [
        PlannedTrial(placement, block)
        for steps in rounds
        for block in range(1, params.blocks + 1)
        for placement in (steps if block % 2 else steps[::-1])
    ]


def expected_trial_s(params: Params) -> float:
    """About how long one trial takes beside its engines' start: warm-up, window, notebook and hand-over."""
    return params.warmup_s + params.window_s + 6.0


def seconds_left(params: Params, left: list[PlannedTrial], engine_start_s: float, current: object) -> float:
    """About how long the trials that are left will take, engine starts included."""
    starts, key = 0, current
    for trial in left:
        starts += trial.placement.engine_key() != key
        key = trial.placement.engine_key()
    return len(left) * expected_trial_s(params) + starts * engine_start_s
