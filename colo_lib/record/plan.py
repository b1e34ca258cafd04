"""The order of trials, and what a person is told of it while it is carried out.

Rounds of fresh engines, blocks in alternating order, steps that share engines side by side.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from colo_lib.params import Params
from colo_lib.placement import Placement, placement_of
from colo_lib.steps import STEPS

BESIDE_THE_WINDOW_S = 4.0  # the clients' start, the first delivery, the end of what is under way


@dataclass(frozen=True)
class PlannedTrial:
    """One trial to carry out; `block` counts from 1 and numbers the trial within its step.

    `round` counts from 1: trials of different rounds never run on the same start of the engines.
    """

    placement: Placement
    block: int
    round: int

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.placement.step


def rounds_of(blocks: Iterable[int], starts: int) -> list[list[int]]:
    """The blocks in at most `starts` runs of neighbours, as even as they can be, none empty."""
    every = list(blocks)
    count = min(starts, len(every))
    edges = [len(every) * place // count for place in range(count + 1)] if count else [0]
    return [every[edges[place] : edges[place + 1]] for place in range(count)]


def starts_over_two(params: Params) -> int:
    """How often engines over two devices are started: no clause of the verdict speaks of them, and cores take long."""
    return min(params.starts, params.starts_on_two or (1 if params.device == "cpu" else params.starts))


def rounds_of_set(blocks: Iterable[int], params: Params, placement: Placement) -> dict[int, list[int]]:
    """Round of the run -> the blocks of it that a placement's engines run there; rounds without are absent.

    Fewer starts than rounds lie evenly among these: a single one in the middle.
    """
    every = list(blocks)
    rounds = len(rounds_of(every, params.starts))
    own = rounds_of(every, starts_over_two(params) if STEPS[placement.step].needs_two else params.starts)
    return {(2 * place + 1) * rounds // (2 * len(own)) + 1: mine for place, mine in enumerate(own)}


@dataclass(frozen=True)
class RunPlan:
    """Every trial of a run in order, and about how long one takes beside its engines' start, seconds."""

    trials: list[PlannedTrial]
    trial_s: float

    def sharing(self, trial: PlannedTrial) -> list[Placement]:
        """Placements of all trials that can use the same engines as `trial`."""
        key = trial.placement.engine_key()
        return [other.placement for other in self.trials if other.placement.engine_key() == key]

    def seconds_left(self, done: int, engine_start_s: float, current: object) -> float:
        """About how long the trials after the first `done` will take, engine starts included.

        `current`: (round, key) of the engines that are up.
        """
        starts, left = 0, self.trials[done:]
        for trial in left:
            mine = (trial.round, trial.placement.engine_key())
            starts += mine != current
            current = mine
        return len(left) * self.trial_s + starts * engine_start_s


def plan_run(params: Params) -> RunPlan:
    """The plan of a run; raises InputError when a step does not fit the devices.

    The blocks are spread over `starts` rounds. A round starts every set of engines once and runs all of its blocks on
    it, but for sets over two devices: they start in as many rounds as `starts_over_two` says, with more blocks each.
    Every second round takes the sets backwards, so that a drift of the machine meets the sets alike. Within a set
    every second block runs its steps backwards (1 3 4 | 4 3 1 | …), so that it meets the steps alike.
    With a demand the steps alone stand before those together.
    """
    sets: dict[tuple[object, ...], list[Placement]] = {}
    placements = [placement_of(step, params) for step in params.step_names()]
    if params.has_demand:
        # Whether a demand can be met alone is known before it is asked for beside another.
        placements.sort(key=lambda placement: placement.runs_gen and placement.runs_embed)
    for placement in placements:
        sets.setdefault(placement.engine_key(), []).append(placement)
    every = range(1, params.blocks + 1)
    groups = [(steps, rounds_of_set(every, params, steps[0])) for steps in sets.values()]
    trials = [
        PlannedTrial(placement, block, number)
        for number in range(1, len(rounds_of(every, params.starts)) + 1)
        for steps, rounds in (groups if number % 2 else groups[::-1])
        for block in rounds.get(number, [])
        for placement in (steps if block % 2 else steps[::-1])
    ]
    return RunPlan(trials, params.warmup_s + params.window_s + BESIDE_THE_WINDOW_S)


def to_stderr(text: str) -> None:
    """One line to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A `say` that drops what comes sooner than `every_s` seconds after the last thing said."""

    def __init__(self, every_s: float = 5.0, say: Callable[[str], None] = to_stderr) -> None:
        self.every_s, self.say, self.said_s = every_s, say, time.monotonic()

    def __call__(self, text: str) -> None:
        """Say it, unless something was said just now."""
        if time.monotonic() - self.said_s >= self.every_s:
            self.said_s = time.monotonic()
            self.say(text)
