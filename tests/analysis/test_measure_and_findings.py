"""From frames to findings: what was planted in a whole run folder comes out again."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from colo_lib.analysis import drift, run_analysis, telemetry, thresholds, trial_metrics, verdict
from colo_lib.analysis.statistics import block_ratios, kept_fractions, null_check, rates
from colo_lib.analysis.thresholds import Thresholds, judged_by
from colo_lib.analysis.trial_metrics import Measured, measure_trials
from colo_lib.analysis.verdict import judge
from colo_lib.data.run import Run, open_run
from colo_lib.params import PURPOSES, Params
from tests.run_folders import Plan, planted_measures, write_run

PLAN = Plan(
    blocks=3,
    window_s=3.0,
    noise=0.005,
    stall_s={"step3": 1.5},
    invalid={("step2", 2): "a stranger"},
    params={"gen_output_tokens": 24},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("runs"), PLAN))


@pytest.fixture(scope="module")
def measured(run: Run) -> Measured:
    return measure_trials(run.trials, run.frame, Thresholds.of(run.params))


def test_planted_rates_come_out(measured: Measured) -> None:
    alone = measured.counted[measured.counted["step"] == "step1"]["gen_tokens_per_s"]
    assert alone.mean() == pytest.approx(PLAN.gen_tokens_per_s, rel=0.02)
    kept = kept_fractions(block_ratios(measured.counted)).set_index(["step", "quantity"])
    assert kept.loc[("step2", "gen"), "mean"] == pytest.approx(0.80, abs=0.03)
    assert kept.loc[("configB", "embed"), "mean"] == pytest.approx(0.62, abs=0.03)


def test_an_invalid_trial_is_measured_and_counts_nowhere(measured: Measured) -> None:
    out = measured.trials[measured.trials["status"] == "invalid"]
    assert len(out) == 1
    assert out["gen_tokens_per_s"].iloc[0] > 0
    ratios = block_ratios(measured.counted)
    assert set(ratios[ratios["step"] == "step2"]["block"]) == {1, 3}
    samples = measured.samples
    assert samples[(samples["step"] == "step2")]["trial"].unique().tolist() == [1, 3]


def test_a_planted_stall_is_named_against_its_bound(measured: Measured, run: Run) -> None:
    bounds = thresholds.against_bounds(measured.counted, Thresholds.of(run.params))
    told = thresholds.starved(bounds)
    assert len(told) == 1
    assert told[0].startswith("both, alternating: LLM")
    row = bounds[(bounds["step"] == "step3") & bounds["what"].str.contains("without a token")].iloc[0]
    assert 1500 <= row["worst"] <= 1800
    assert row["within"] == 0
    ttft = bounds[(bounds["step"] == "step3") & bounds["what"].str.contains("first token")].iloc[0]
    assert ttft["within"] < 1, "requests that were going when gen stalled are not within their bounds"


def test_a_recorded_rate_that_its_rows_do_not_give_is_told(measured: Measured) -> None:
    assert drift.disagreements(measured.trials) == []
    lied = measured.trials.assign(recorded_gen_tokens_per_s=measured.trials["recorded_gen_tokens_per_s"] * 1.1)
    assert len(drift.disagreements(lied)) == lied["gen_tokens_per_s"].notna().sum()
    lied = measured.trials.assign(recorded_embed_sequences_per_s=measured.trials["embed_sequences_per_s"] * 1.1)
    assert len(drift.disagreements(lied)) == lied["embed_sequences_per_s"].notna().sum()


def test_the_table_of_steps_has_the_rows_of_the_experiment(measured: Measured, run: Run) -> None:
    kept = kept_fractions(block_ratios(measured.counted))
    means = telemetry.telemetry_summary(telemetry.telemetry_series(run.trials, run.frame))
    table = run_analysis.steps_table(
        measured.trials, rates(measured.counted), kept, trial_metrics.by_step(measured.samples), means
    )
    cells = table.set_index(["row", "step"])["text"]
    assert cells["Trials that count / all", "step2"] == "2 / 3"
    assert cells["Mechanism", "step3"] == "in turns, on cores"
    assert cells["LLM kept fraction", "configA"] == "1 (baseline)"
    assert "[" in cells["LLM throughput", "step1"]
    assert "(n=" in cells["Embedder batch time, p99", "step2"], "a p99 of few events says how few"
    assert ("LLM throughput", "step4") not in cells.index
    assert {"Device utilisation, mean of devices", "Aggregate per device"} <= set(table["row"])


def test_telemetry_that_the_device_lacks_is_named_not_shown(run: Run) -> None:
    samples = telemetry.telemetry_series(run.trials, run.frame)
    assert "Power" in telemetry.absent(samples)
    assert "Power" not in set(telemetry.telemetry_summary(samples)["label"])
    assert telemetry.absent(pd.DataFrame()) == [label for label, _, _ in telemetry.METRICS.values()]
    assert telemetry.telemetry_summary(pd.DataFrame()).empty


def test_memory_takes_the_most_used_of_the_trials_that_count(run: Run) -> None:
    used = telemetry.measured_frame(run.trials).set_index("step")
    assert used.loc["step2", "trials"] == 2
    assert used.loc["step1", "gen_gib"] == 2.1
    assert pd.isna(used.loc["step1", "embed_gib"])


def test_a_failed_trial_without_frames_is_passed_over(run: Run) -> None:
    trials = run.trials.assign(status="failed", window_start_ns=pd.NA, window_end_ns=pd.NA)
    nothing = measure_trials(trials, run.frame, Thresholds.of(run.params))
    assert nothing.samples.empty
    assert nothing.trials["gen_tokens_per_s"].isna().all()
    assert judge(nothing.counted, Thresholds.of(run.params), True).status == "inconclusive"
    assert block_ratios(nothing.counted).empty


def test_the_headline_counts_its_clauses_and_carries_its_interval() -> None:
    counted = planted_measures(Plan(blocks=5, noise=0.005))
    kept = kept_fractions(block_ratios(counted))
    told = verdict.headline(judge(counted, Thresholds.of(Params()), True), verdict.pays(kept))
    assert "does not hold" in told
    assert "Its 6 clauses" in told
    assert "95 % interval 1." in told
    answers = verdict.pays(kept).set_index("step")["answer"]
    assert answers["step2"] == "more than dedicated"


def test_an_order_effect_is_told() -> None:
    steady = planted_measures(Plan(blocks=6, noise=0.001))
    uneven = steady.copy()
    uneven.loc[uneven["block"] % 2 == 1, "gen_tokens_per_s"] *= 1.2
    assert drift.unsteady(null_check(uneven))
    assert not drift.unsteady(null_check(planted_measures(Plan(blocks=2))))


def test_bounds_are_the_runs_own_unless_the_notebook_changes_them() -> None:
    own = Params(min_gen_kept=0.9, slo_gen_stall_ms=50.0, blocks=7)
    assert judged_by(own, Params()) == Thresholds.of(own)
    changed = judged_by(own, Params(min_gen_kept=0.5, blocks=2))
    assert (changed.min_gen_kept, changed.slo_gen_stall_ms) == (0.5, 50.0)
    assert changed == Thresholds.of(own.model_copy(update={"min_gen_kept": 0.5})), "all else is the run's"
    judging = {name for name, purpose in PURPOSES.items() if "judgement" in purpose.touches}
    assert {item.name for item in fields(Thresholds)} == judging - {"seed"}


def test_a_longer_window_changes_no_rate(tmp_path: Path) -> None:
    rates = []
    for window_s in (2.0, 6.0):
        plan = dataclasses.replace(PLAN, run_id=f"w{window_s:.0f}", blocks=1, window_s=window_s, noise=0.0, stall_s={})
        opened = open_run(write_run(tmp_path, plan))
        rates.append(
            measure_trials(opened.trials, opened.frame, Thresholds.of(opened.params)).trials["gen_tokens_per_s"].mean()
        )
    assert rates[0] == pytest.approx(rates[1], rel=0.02)
