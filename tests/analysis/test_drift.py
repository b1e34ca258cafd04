"""What moved while a run went on is named, at the stated rates; what stood still is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from colo_lib.analysis import drift, telemetry
from colo_lib.analysis.statistics import block_ratios, null_check
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace.overlap import MeasuredOverlap
from colo_lib.analysis.trial_metrics import measure_trials
from colo_lib.analysis.verdict import OPEN, REFUTED, SUPPORTED, judge
from colo_lib.data.run import open_run
from colo_lib.params import Params
from tests.run_folders import Plan, planted_measures, write_run

SEEDS = 60
RESIDENCY = MeasuredOverlap(0.4, "residency", upper_bound=False, profiled_ratio=0.95)
SOUND = Plan(blocks=5, noise=0.005, gen_kept={"step1": 1.0, "step2": 0.99, "step3": 0.6})


def planted(plan: Plan, seed: int) -> pd.DataFrame:
    counted = planted_measures(dataclasses.replace(plan, seed=seed))
    return counted.assign(window_start_ns=np.arange(len(counted)) * 10**10)


def change(found: pd.DataFrame, column: str) -> float:
    return float(found.set_index("workload").loc["gen", column])


def test_a_planted_drift_is_told_with_its_size_and_none_is_not() -> None:
    plan = dataclasses.replace(SOUND, drift_per_trial=0.004)
    found = [drift.trends(planted(plan, seed)) for seed in range(SEEDS)]
    places = np.flatnonzero(planted(plan, 0)["gen_tokens_per_s"] > 0)
    truth = (1 - 0.004) ** (places.max() - places.min()) - 1
    covered = [change(item, "low") <= truth <= change(item, "high") for item in found]
    assert np.mean(covered) >= 0.9
    assert all(drift.warnings(item, pd.DataFrame(), pd.DataFrame()) for item in found)
    still = [drift.trends(planted(SOUND, seed)) for seed in range(SEEDS)]
    assert np.mean([change(item, "low") <= 0 <= change(item, "high") for item in still]) >= 0.9
    told = [drift.warnings(item, pd.DataFrame(), pd.DataFrame()) for item in still]
    assert sum(bool(item) for item in told) == 0, "a trend under 2 % over the run is not worth a sentence"


def test_a_slow_step_is_no_trend() -> None:
    plan = dataclasses.replace(SOUND, gen_kept={"step1": 1.0, "step2": 0.2, "step3": 0.1}, noise=0.001)
    assert abs(change(drift.trends(planted(plan, 1)), "change")) < 0.01


def test_too_few_trials_give_no_trend() -> None:
    assert drift.trends(planted(dataclasses.replace(SOUND, blocks=1), 1)).empty
    assert drift.trends(planted(SOUND, 1).iloc[:0]).empty


def test_one_bad_block_is_named_and_good_ones_seldom_are() -> None:
    bad = [
        drift.bad_blocks(block_ratios(planted(dataclasses.replace(SOUND, bad_block={3: 0.5}), seed)))
        for seed in range(30)
    ]
    named = [set(item.loc[item["step"] == "step2", "block"]) == {3} for item in bad]
    assert np.mean(named) >= 0.95
    good = [drift.bad_blocks(block_ratios(planted(SOUND, seed))) for seed in range(30)]
    assert sum(len(item) for item in good) == 0
    few = drift.bad_blocks(block_ratios(planted(dataclasses.replace(SOUND, blocks=3, bad_block={3: 0.5}), 1)))
    assert few.empty, "of three blocks nothing tells which is the odd one"


def samples(clocks: dict[tuple[str, int], float]) -> pd.DataFrame:
    rows = [
        {"step": step, "trial": trial, "name": "0", "scope": "device", "sm_clock_mhz": mhz}
        | {"in_window": True, "status": "done"}
        for (step, trial), mhz in clocks.items()
    ]
    return pd.DataFrame(rows)


def test_a_clock_that_the_step_did_not_move_is_named() -> None:
    clocks = {("step1", 1): 1980.0, ("step1", 2): 1980.0, ("step1", 3): 1700.0}
    clocks |= {("step2", trial): 1500.0 for trial in (1, 2, 3)}
    found = drift.moved_clocks(samples(clocks))
    assert found[["step", "trial"]].to_numpy().tolist() == [["step1", 3]]
    assert "1700 MHz" in drift.warnings(pd.DataFrame(), pd.DataFrame(), found)[0]
    assert drift.moved_clocks(pd.DataFrame()).empty


def test_a_baseline_of_another_time_is_named() -> None:
    counted = planted(SOUND, 1)
    assert drift.apart(counted) == []
    late = counted.assign(window_start_ns=counted["window_start_ns"].where(counted["step"] != "step2", 10**15))
    told = drift.apart(late)
    assert [sentence.split(":")[0] for sentence in told] == ["both at once", "both at once"]
    assert "after those of LLM alone" in told[0]
    assert drift.apart(counted[counted["block"] == 1]) == []


def test_the_null_says_what_it_could_have_seen() -> None:
    found = [null_check(planted(dataclasses.replace(SOUND, blocks=8, noise=0.02), seed)) for seed in range(60)]
    least = float(np.median([item["smallest_detectable"] for item in found]))
    seen = 0
    for seed in range(60):
        counted = planted(dataclasses.replace(SOUND, blocks=8, noise=0.02), seed)
        odd = (counted["step"] == "step1") & (counted["block"] % 2 == 1)
        counted.loc[odd, "gen_tokens_per_s"] *= 1 + least
        seen += null_check(counted)["low"] > 1
    assert 0.6 <= seen / 60 <= 0.95


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (MeasuredOverlap(0.9, "kernel intervals", upper_bound=True), "upper bound"),
        (MeasuredOverlap(2.7, "residency", upper_bound=False), "cannot be"),
        (dataclasses.replace(RESIDENCY, profiled_ratio=0.4), "lighter capture"),
    ],
)
def test_a_lying_profiler_supports_nothing(lie: dict, told: str) -> None:
    gaps = {"step1": 20.0, "step2": 20.5}
    for seed in range(20):
        counted = planted_measures(dataclasses.replace(SOUND, seed=seed), gaps)
        assert judge(counted, Thresholds.of(Params()), stand_in=False, overlap=RESIDENCY).status in (SUPPORTED, OPEN)
        verdict = judge(counted, Thresholds.of(Params()), stand_in=False, overlap=lie)
        assert verdict.status == OPEN
        assert told in verdict.missing[-1]


def test_a_lying_profiler_hides_no_refutation() -> None:
    slow = dataclasses.replace(SOUND, gen_kept={"step1": 1.0, "step2": 0.7, "step3": 0.6})
    lie = MeasuredOverlap(2.7, "residency", upper_bound=False)
    found = [
        judge(planted_measures(dataclasses.replace(slow, seed=seed)), Thresholds.of(Params()), False, lie)
        for seed in range(20)
    ]
    assert all(item.status == REFUTED for item in found)


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        ({"gen_kept": {"step1": 1.0, "step2": 0.95}}, True),
        ({}, False),
        ({"drift_per_trial": 0.01}, False),
        ({"bad_block": {2: 0.5}}, False),
    ],
)
def test_whole_run_folders_with_planted_effects(changes: dict, loses: bool, tmp_path: Path) -> None:
    right = 0
    for seed in range(3):
        plan = Plan(
            run_id=f"planted-{seed}", blocks=5, window_s=1.5, warmup_s=0.2, noise=0.004, seed=seed,
            gen_tokens_per_s=400.0, embed_kept={"step2": 0.9, "step4": 1.0},
            **({"gen_kept": {"step1": 1.0, "step2": 1.0}} | changes),
        )  # fmt: skip
        run = open_run(write_run(tmp_path, plan))
        measured = measure_trials(run.trials, run.frame, Thresholds.of(run.params))
        clause = judge(measured.counted, Thresholds.of(Params(min_gen_kept=0.98)), run.stand_in).clauses.iloc[0]
        right += (clause["status"] == REFUTED) == loses
        assert telemetry.telemetry_series(run.trials, run.frame)["in_window"].any()
    assert right == 3


def test_marks_are_told_once_a_step_and_kind() -> None:
    busy = "a process of the load client used {} of its core: tokens may be timed late"
    trials = pd.DataFrame(
        {
            "step": ["step1", "step1", "step1", "step2"], "mechanism": ["none", "none", "none", "mps"],
            "trial": [1, 2, 3, 1], "status": ["done", "done", "invalid", "done"],
            "marks": [[busy.format("0.91")], [busy.format("0.85")], ["of no trial that counts"], None],
        }
    )  # fmt: skip
    assert drift.marked(trials) == [f"LLM alone, trial 1: {busy.format('0.91')} (the like in 1 more of its trials)"]
