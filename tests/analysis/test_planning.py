"""What `colo plan` asks for is what settles a clause: planted spreads, simulated runs."""

from __future__ import annotations

import numpy as np
import pytest

from colo_lib.analysis.statistics import estimate
from colo_lib.analysis.verdict import OPEN, SUPPORTED, Clause, Costs, decide_clause, far_enough, needs, together
from colo_lib.cli.plan import costs_of
from colo_lib.data.run import open_run
from colo_lib.params import Params
from colo_lib.paths import RECORDED

COSTS = Costs(starts_s=100.0, block_s=30.0)


def runs(kept: float, between: float, within: float, starts: int, blocks: int, seed: int) -> Clause:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(starts), blocks)
    logs = np.log(kept) + rng.normal(0, between, starts)[labels] + rng.normal(0, within, starts * blocks)
    return Clause("gen keeps", estimate(np.exp(logs), labels.tolist()), 0.95, True)


def test_a_run_as_planned_settles_the_clause_about_as_often_as_stated() -> None:
    distance = np.log(0.98 / 0.95)
    starts = next(count for count in range(3, 60) if far_enough(distance, 0.02, 0.01, count, 2))
    settled = [decide_clause([runs(0.98, 0.02, 0.01, starts, 2, seed)]) == [SUPPORTED] for seed in range(400)]
    assert 0.74 <= np.mean(settled) <= 0.92, f"{starts} starts"
    fewer = [
        decide_clause([runs(0.98, 0.02, 0.01, max(3, starts // 2), 2, seed)]) == [SUPPORTED] for seed in range(400)
    ]
    assert np.mean(fewer) < np.mean(settled)


def test_blocks_a_start_pay_where_blocks_are_noisy_and_starts_alike() -> None:
    alike, unlike = (needs([runs(0.985, *spread, 6, 4, 1)], COSTS)[0] for spread in ((0.0005, 0.04), (0.03, 0.0005)))
    assert (alike.blocks_a_start or 0) > 1 == unlike.blocks_a_start


def test_what_lies_at_its_bound_is_not_promised() -> None:
    found = estimate(0.9501 * np.exp([-0.02, 0.0, 0.02]), range(3))
    need = needs([Clause("gen keeps", found, 0.95, True)], COSTS)[0]
    assert need.starts is None
    assert "at its bound" in need.assumed
    assert together([], COSTS).starts is None


def test_one_start_is_planned_with_an_assumption_that_is_told() -> None:
    clause = runs(0.6, 0.0, 0.02, 1, 5, 1)
    assert decide_clause([clause]) == [OPEN]
    need = needs([clause], COSTS)[0]
    assert need.starts == 3
    assert "one start" in need.assumed


def test_costs_come_from_the_runs_own_time() -> None:
    (folder,) = RECORDED.glob("h200-*-20261124-204241")
    run = open_run(folder)
    costs = costs_of(run, run.params)
    # 469 s in all, 15 trials of 10.5 s, two sets of engines.
    assert costs.starts_s == pytest.approx(469.2 - 15 * 10.5, abs=1.0)
    assert costs.block_s == pytest.approx(5 * 10.5)


def test_a_params_file_and_a_bound_of_ones_own_are_heeded() -> None:
    strict = needs([Clause("x", runs(0.97, 0.01, 0.01, 5, 2, 1).measured, 0.96, True)], COSTS)[0]
    easy = needs([Clause("x", runs(0.97, 0.01, 0.01, 5, 2, 1).measured, Params().min_embed_kept, True)], COSTS)[0]
    assert easy.starts == 3
    assert strict.starts is None or strict.starts > 3
