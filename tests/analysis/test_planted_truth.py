"""Planted effects over many seeds: intervals cover, and the verdict is right at the stated rate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from colo_lib.analysis.statistics import (
    Estimate,
    block_ratios,
    estimate,
    holm,
    kept_fractions,
    null_check,
    paired_blocks,
    ratio,
    sides_of_one,
)
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace.overlap import MeasuredOverlap
from colo_lib.analysis.verdict import OPEN, REFUTED, SUPPORTED, Clause, decide_clause, judge, pays
from colo_lib.params import Params
from tests.run_folders import Plan, planted_measures

SEEDS = 120
GOOD = Plan(blocks=5, noise=0.005, gen_kept={"step1": 1.0, "step2": 0.99, "step3": 0.6, "configA": 1, "configB": 1.2})


def gen_estimates(plan: Plan, seeds: int = SEEDS) -> list[Estimate]:
    return [
        ratio(planted_measures(dataclasses.replace(plan, seed=seed)), "step2", "step1", "gen_tokens_per_s")
        for seed in range(seeds)
    ]


def kept_plan(kept: float, **changes: object) -> Plan:
    return dataclasses.replace(GOOD, gen_kept={**GOOD.gen_kept, "step2": kept}, **changes)


@pytest.mark.parametrize("blocks", [3, 5, 8])
def test_intervals_cover_the_planted_fraction(blocks: int) -> None:
    made = gen_estimates(kept_plan(0.8, blocks=blocks, noise=0.03), seeds=500)
    assert np.mean([item.low <= 0.8 <= item.high for item in made]) >= 0.92


@pytest.mark.parametrize("blocks", [3, 5, 8])
def test_intervals_of_kept_fractions_and_aggregate_cover_at_their_nominal_rate(blocks: int) -> None:
    rng, hits, runs = np.random.default_rng(blocks), {"gen": 0, "aggregate": 0}, 400
    for _ in range(runs):
        noise = np.exp(rng.normal(0, 0.03, (4, blocks)))
        gen, embed = 0.8 * noise[0] / noise[1], 0.7 * noise[2] / noise[3]
        for name, values, truth in (("gen", gen, 0.8), ("aggregate", gen + embed, 1.5)):
            made = estimate(values, range(blocks))
            hits[name] += made.low <= truth <= made.high
    assert all(0.925 <= count / runs <= 0.985 for count in hits.values()), hits


@pytest.mark.parametrize(("blocks", "starts"), [(6, 3), (10, 5), (3, 3), (8, 8), (7, 3)])
def test_intervals_cover_where_starts_differ_as_much_as_trials_do(blocks: int, starts: int) -> None:
    # A start's effect as large as a trial's noise; taken for independent, 10 blocks would cover half of the time.
    plan = kept_plan(0.8, blocks=blocks, starts=starts, noise=0.02, start_noise=0.02)
    made = gen_estimates(plan, seeds=500)
    assert {item.starts for item in made} == {starts}
    assert 0.925 <= np.mean([item.low <= 0.8 <= item.high for item in made]) <= 0.98


def test_one_start_tells_of_itself_alone_and_settles_nothing() -> None:
    counted = planted_measures(kept_plan(0.3, blocks=6, starts=1, noise=0.001))
    found = ratio(counted, "step2", "step1", "gen_tokens_per_s")
    assert (found.starts, found.across_starts) == (1, False)
    assert found.high < 0.31, "it has an interval, for what these engines did"
    verdict = judge(counted, Thresholds.of(Params()), stand_in=True)
    assert verdict.status == OPEN
    assert "needs 3 starts" in verdict.missing[0]
    assert list(pays(kept_fractions(block_ratios(counted)))["answer"].unique()) == ["not settled"]


def test_engines_told_by_nothing_count_as_one_start() -> None:
    counted = planted_measures(GOOD).assign(gen_start="", embed_start="")
    assert ratio(counted, "step2", "step1", "gen_tokens_per_s").starts == 1


def test_blocks_that_share_a_start_of_either_step_are_one_repetition() -> None:
    counted = planted_measures(dataclasses.replace(GOOD, blocks=6))
    # Step 1 was started for blocks 1-2, 3-4, 5-6, step 2 for 1, 2-3, 4-5, 6: one chain, so no independent repetition.
    first, second = {1: "a", 2: "a", 3: "b", 4: "b", 5: "c", 6: "c"}, {1: "p", 2: "q", 3: "q", 4: "r", 5: "r", 6: "s"}
    chained = counted.assign(
        gen_start=[
            {"step1": first, "step2": second}.get(step, {}).get(block, f"{step}-{block}")
            for step, block in zip(counted["step"], counted["block"], strict=True)
        ]
    )
    assert ratio(chained, "step2", "step1", "gen_tokens_per_s").starts == 1
    assert ratio(chained, "step2", "step3", "gen_tokens_per_s").starts == 4


def test_spreads_of_starts_and_blocks_are_told_apart() -> None:
    plan = kept_plan(0.8, blocks=60, starts=20, noise=0.01, start_noise=0.03)
    made = gen_estimates(plan, seeds=60)
    # The ratio of two steps, each with its own effects.
    assert np.mean([item.between for item in made]) == pytest.approx(0.03 * np.sqrt(2), rel=0.1)
    assert np.mean([item.within for item in made]) == pytest.approx(0.01 * np.sqrt(2), rel=0.1)


def test_two_blocks_give_no_interval_and_ratios_stay_positive() -> None:
    assert np.isnan(estimate([0.3, 0.9], ["a", "b"]).low)
    found = estimate([0.3, 0.9, 0.2], ["a", "b", "c"])
    assert found.low > 0, "a ratio is positive: its interval is made of logarithms"
    assert found.mean == pytest.approx((0.3 * 0.9 * 0.2) ** (1 / 3))


def test_a_workload_at_zero_is_an_estimate_like_another() -> None:
    found = estimate([0.0, 0.1, 0.0], ["a", "b", "c"])
    assert (found.mean, found.low) == (pytest.approx(0.1 / 3), 0.0)
    assert found.doubt(0.2, False) < 0.05 < found.doubt(0.2, True)


def test_five_clauses_at_their_bounds_are_seldom_judged_falsely() -> None:
    rng, wrong, runs = np.random.default_rng(5), 0, 1000
    for _ in range(runs):
        asked = [Clause("", estimate(np.exp(rng.normal(0, 0.02, 5)), range(5)), 1.0, True) for _ in range(5)]
        wrong += any(status != OPEN for status in decide_clause(asked))
    assert wrong / runs <= 0.07, "each by itself would be wrong in 23 %"


def test_a_loss_of_five_percent_is_seen_and_no_loss_is_not() -> None:
    lost = gen_estimates(kept_plan(0.95, noise=0.01))
    same = gen_estimates(kept_plan(1.0, noise=0.01))
    assert np.mean([item.high < 1 for item in lost]) >= 0.9
    assert np.mean([item.high < 1 or item.low > 1 for item in same]) <= 0.08


def test_drift_does_not_pass_for_a_loss() -> None:
    made = gen_estimates(kept_plan(1.0, noise=0.005, drift_per_trial=0.004, blocks=6))
    assert np.mean([item.low <= 1 <= item.high for item in made]) >= 0.95


def test_one_bad_block_never_refutes_and_widens_the_interval() -> None:
    made = gen_estimates(kept_plan(1.0, bad_block={3: 0.5}))
    assert all(item.high > 0.95 for item in made)
    assert all(item.high - item.low > 0.3 for item in made)


@pytest.mark.parametrize(
    ("kept", "gap", "status"), [(0.99, 20.5, "clauses hold"), (0.85, 20.5, REFUTED), (0.99, 40.0, REFUTED)]
)
def test_the_verdict_on_planted_truth(kept: float, gap: float, status: str) -> None:
    found = []
    for seed in range(40):
        plan = kept_plan(kept, seed=seed)
        counted = planted_measures(plan, {"step1": 20.0, "step2": gap})
        overlap = MeasuredOverlap(0.4, "residency", upper_bound=False)
        found.append(judge(counted, Thresholds.of(Params()), stand_in=False, overlap=overlap).status)
    wanted = SUPPORTED if status == "clauses hold" else status
    assert np.mean([item == wanted for item in found]) >= 0.95


def test_a_loss_at_the_bound_is_seldom_judged() -> None:
    params = Params()
    found = [
        judge(planted_measures(kept_plan(0.95, seed=seed, noise=0.01)), Thresholds.of(params), True)
        .clauses["status"]
        .iloc[0]
        for seed in range(80)
    ]
    assert found.count(OPEN) / len(found) >= 0.9


def test_on_cores_the_overlap_stays_open_and_says_why() -> None:
    verdict = judge(planted_measures(GOOD), Thresholds.of(Params()), stand_in=True)
    assert verdict.status == OPEN
    assert any("cores stand in for a GPU" in item for item in verdict.missing)


def test_kernel_intervals_alone_prove_no_overlap() -> None:
    overlap = MeasuredOverlap(0.9, "kernel intervals", upper_bound=True)
    clause = judge(planted_measures(GOOD), Thresholds.of(Params()), stand_in=False, overlap=overlap).clauses.iloc[-1]
    assert (clause["status"], clause["mean"]) == (OPEN, 0.9)
    low = MeasuredOverlap(0.01, "residency", upper_bound=False)
    assert judge(planted_measures(GOOD), Thresholds.of(Params()), stand_in=False, overlap=low).status == REFUTED


def test_one_block_gives_no_interval_and_no_verdict() -> None:
    counted = planted_measures(kept_plan(0.3, blocks=1))
    kept = kept_fractions(block_ratios(counted))
    assert kept[["low", "high"]].isna().all().all()
    assert "no interval" in kept["method"].iloc[0]
    verdict = judge(counted, Thresholds.of(Params()), stand_in=True)
    assert verdict.status == OPEN
    assert "one start of the engines" in verdict.missing[0]


def test_no_trials_at_all_is_inconclusive_and_names_what_is_missing() -> None:
    verdict = judge(planted_measures(GOOD).iloc[:0], Thresholds.of(Params()), stand_in=True)
    assert verdict.status == OPEN
    assert len(verdict.missing) == len(verdict.clauses) == 6


def test_a_p99_of_few_gaps_is_not_called_supported() -> None:
    counted = planted_measures(GOOD).assign(gap_count=10.0)
    clause = judge(counted, Thresholds.of(Params()), stand_in=True).clauses.iloc[1]
    assert clause["status"] == OPEN
    assert "there are 50" in clause["missing"]


def test_pairs_are_made_within_a_block_and_a_lost_trial_drops_its_block() -> None:
    counted = planted_measures(kept_plan(0.8, noise=0.0, drift_per_trial=0.0))
    counted = counted[~((counted["step"] == "step2") & (counted["block"] == 2))]
    ratios = paired_blocks(counted, "step2", "step1", "gen_tokens_per_s")
    assert list(ratios.index) == [1, 3, 4, 5]
    assert np.allclose(ratios, 0.8)


def test_the_aggregate_counts_dedicated_devices_as_one_each() -> None:
    plan = dataclasses.replace(GOOD, noise=0.0, gen_kept={"step1": 1, "step2": 0.8, "configA": 1, "configB": 1.4},
                               embed_kept={"step2": 0.7, "step4": 1, "configA": 1, "configB": 0.9})  # fmt: skip
    kept = kept_fractions(block_ratios(planted_measures(plan))).set_index(["step", "quantity"])["mean"]
    assert kept["step2", "aggregate"] == pytest.approx(1.5)
    assert kept["step2", "aggregate_per_device"] == pytest.approx(1.5), "two cores stand in for one device"
    assert kept["configA", "aggregate_per_device"] == pytest.approx(1.0)
    assert kept["configB", "aggregate"] == pytest.approx(2.3)
    assert kept["configB", "aggregate_per_device"] == pytest.approx(1.15)


def test_step_one_against_itself_holds_one_and_shows_an_order_effect() -> None:
    found = [null_check(planted_measures(dataclasses.replace(GOOD, seed=seed))) for seed in range(100)]
    assert np.mean([item["low"] <= 1 <= item["high"] for item in found]) >= 0.9
    counted = planted_measures(dataclasses.replace(GOOD, noise=0.002))
    warm = (counted["step"] == "step1") & (counted["block"] % 2 == 1)
    counted.loc[warm, "gen_tokens_per_s"] *= 1.1
    assert null_check(counted)["low"] > 1


def test_the_smallest_detectable_effect_is_detected_about_as_often_as_stated() -> None:
    spread = 0.02 * np.sqrt(2)
    typical = np.median([item.smallest_detectable for item in gen_estimates(kept_plan(1.0, noise=0.02, blocks=8))])
    shifted = gen_estimates(kept_plan(1.0 - typical, noise=0.02, blocks=8))
    assert 0.6 <= np.mean([item.high < 1 for item in shifted]) <= 0.95
    assert typical > spread / np.sqrt(8)


def test_the_best_of_many_equal_settings_is_seldom_surely_good() -> None:
    rng, wrong, runs = np.random.default_rng(14), 0, 600
    for _ in range(runs):
        made = [estimate(0.95 * np.exp(rng.normal(0, 0.02, 4)), range(4)) for _ in range(14)]
        wrong += any(holm([one.doubt(0.95, True) for one in made]))
    assert wrong / runs <= 0.045, "one by one the best of them would look good in 30 %"


def test_holm_holds_what_is_sure_and_nothing_without_a_doubt() -> None:
    assert holm([0.001, 0.9, float("nan"), 0.008]) == [True, False, False, True]
    assert holm([0.02, 0.02]) == [False, False], "each by itself would hold"
    assert holm([]) == []


def test_one_ratio_among_several_is_settled_only_if_it_is_sure_enough_for_all() -> None:
    alone = sides_of_one([0.02], [0.98])
    among = sides_of_one([0.02, 0.4, 0.5, float("nan")], [0.98, 0.6, 0.5, float("nan")])
    assert (alone, among) == (["more"], ["not settled"] * 4)
    assert sides_of_one([0.999, 0.3], [0.001, 0.7]) == ["less", "not settled"]
