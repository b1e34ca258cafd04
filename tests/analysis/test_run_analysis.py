"""One object answers for a run: the same as the functions behind it, each computed once; planted and recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from colo_lib import paths
from colo_lib.analysis import capacity, drift, loss, run_analysis, telemetry, thresholds, trial_metrics, two_devices
from colo_lib.analysis import verdict as judging
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.statistics import block_ratios, kept_fractions, null_check, rates
from colo_lib.analysis.sweep import collect
from colo_lib.analysis.sweep_analysis import SweepAnalysis
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace import capture_analysis, overlap, token_time, window
from colo_lib.data.run import Run, open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.params import Params
from tests.run_folders import Plan, add_capture, write_run

RECORDED = next(paths.RECORDED.glob("h200-qwen3b-*[0-9]"))


@pytest.fixture(scope="module", params=["simulated", "recorded"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if request.param == "recorded":
        return open_run(RECORDED)
    made = write_run(tmp_path_factory.mktemp("runs"), Plan(blocks=4, window_s=1.0))
    for step in ("step1", "step2", "step4"):
        add_capture(made, step)
    return open_run(made)


def same(one: Any, other: Any) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    else:
        assert repr(one) == repr(other), "repr, since null is not equal to itself"


def test_trials_kept_fractions_and_the_verdict_are_those_of_the_functions(run: Run) -> None:
    analysis = RunAnalysis(run)
    measured = trial_metrics.measure_trials(run.trials, run.frame, Thresholds.of(run.params))
    ratios = block_ratios(measured.counted)
    kept = kept_fractions(ratios)
    same(analysis.trials, measured.trials)
    same(analysis.counted, measured.counted)
    same(analysis.throughput, rates(measured.counted))
    same(analysis.latency, trial_metrics.by_step(measured.samples))
    same(analysis.ratios, ratios)
    same(analysis.kept, kept)
    same(analysis.null, null_check(measured.counted))
    for step in run.captured_steps:
        one = run.capture(step)
        view = window.view_of(one.capture, one.facts, window.Asked.of(run.params), one.window_s)
        rate = float(measured.counted.query("step == @step")["gen_tokens_per_s"].mean())
        same(analysis.overlap(step), overlap.verdict_overlap(view, one.facts, rate))
    assert {"step1", "step4"} < set(run.captured_steps)
    verdict = judging.judge(measured.counted, Thresholds.of(run.params), run.stand_in, analysis.overlap("step2"))
    assert analysis.verdict.status == verdict.status
    same(analysis.verdict.clauses, verdict.clauses)
    assert analysis.headline == judging.headline(verdict, judging.pays(kept))


def test_what_moved_and_the_tables_are_those_of_the_functions(run: Run) -> None:
    analysis = RunAnalysis(run)
    measured = trial_metrics.measure_trials(run.trials, run.frame, Thresholds.of(run.params))
    ratios = block_ratios(measured.counted)
    kept = kept_fractions(ratios)
    samples = telemetry.telemetry_series(run.trials, run.frame)
    means = telemetry.telemetry_summary(samples)
    found = drift.trends(measured.counted), drift.bad_blocks(ratios), drift.moved_clocks(samples)
    moved = drift.apart(measured.counted) + drift.warnings(*found)
    against = thresholds.against_bounds(measured.counted, Thresholds.of(run.params))
    assert analysis.drift == moved
    told = thresholds.starved(against) + drift.unsteady(null_check(measured.counted)) + moved
    assert analysis.warnings == told + drift.disagreements(measured.trials)
    latencies = trial_metrics.by_step(measured.samples)
    rows = rates(measured.counted)
    same(analysis.steps_table, run_analysis.steps_table(measured.trials, rows, kept, latencies, means))
    same(analysis.memory.budget, telemetry.budget_frame(run.manifest.budget))
    same(analysis.memory.used, telemetry.measured_frame(run.trials))
    same(analysis.memory.parts, telemetry.parts_frame(run.trials))
    counted = trial_metrics.with_power(measured.counted, samples)
    same(analysis.capacity_units, capacity.units(counted, kept, against, run.params.slo_gen_gap_ms))
    same(analysis.chain, two_devices.chain(measured.counted))


def test_where_a_token_s_time_went_is_that_of_the_functions(run: Run) -> None:
    analysis = RunAnalysis(run)
    times: dict[str, Any] = {}
    for step in run.captured_steps:
        one, many = run.capture(step), run.params.gen_concurrency
        view = window.view_of(one.capture, one.facts, window.Asked.of(run.params), one.window_s)
        times[step] = token_time.gen_times(view, one.facts, one.launches(), many)
        same(analysis.token_time(step), times[step])
    assert [*analysis.token_times["step"]] == [step for step, found in times.items() if found]
    assert times["step1"]
    assert times["step4"] is None, "embed alone decodes nothing"
    unprofiled = loss.per_token(analysis.counted, analysis.telemetry, run.frame)
    both = loss.pairs(loss.with_captures(unprofiled, times, run.params.min_profiled_ratio))
    same(analysis.loss.losses, {step: loss.decompose_loss(*sides) for step, sides in both.items()})
    same(analysis.loss.categories, loss.category_rows(both, times))


def test_each_answer_is_computed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (calls.append(name), made(*given, **named))[1]

    for module, name in (
        (run_analysis, "measure_trials"), (run_analysis.statistics, "block_ratios"), (run_analysis.verdict, "judge"),
        (run_analysis.telemetry, "telemetry_series"), (capture_analysis, "gen_times"), (window, "look"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    run.computed.clear()  # what other tests asked of the same run
    analysis = RunAnalysis(run)
    for _ in range(2):
        assert analysis.verdict is analysis.verdict
        answers = (analysis.headline, analysis.warnings, analysis.steps_table, analysis.loss, analysis.token_times)
        assert all(answer is not None for answer in answers)
        assert analysis.overlap("step2") is analysis.overlap("step2")
    once = ("measure_trials", "block_ratios", "judge", "telemetry_series")
    assert {name: calls.count(name) for name in once} == dict.fromkeys(once, 1)
    assert calls.count("gen_times") == len(run.captured_steps)


def test_a_notebook_s_bounds_are_those_that_it_changed(run: Run) -> None:
    changed = RunAnalysis(run, run.params.model_copy(update={"min_gen_kept": 0.31}))
    assert changed.bounds.min_gen_kept == 0.31
    assert "31%" in changed.verdict.clauses["clause"][0]
    assert RunAnalysis(run, Params()).bounds == Thresholds.of(run.params)


def test_a_run_without_captures_has_every_other_answer(tmp_path: Path) -> None:
    analysis = RunAnalysis(open_run(write_run(tmp_path, Plan(blocks=2, window_s=1.0))))
    assert analysis.overlap("step2") is None
    assert analysis.token_time("step2") is None
    assert analysis.token_times.empty
    assert analysis.verdict.status == "inconclusive"
    assert "step2" in analysis.loss.losses


def test_a_sweep_is_measured_by_the_analyses_of_its_runs() -> None:
    sweep = open_sweep(next(paths.RECORDED.glob("h100-x2-*[0-9]")))
    analysis = SweepAnalysis(sweep)
    drop = ["estimate"]  # an object a row, told by the columns beside it
    same(analysis.measures.values.drop(columns=drop), collect(sweep.cells, sweep.names).values.drop(columns=drop))
    own = next(iter(sweep.runs.values()))
    assert analysis.of(own) is next(iter(analysis.cells.values()))
    assert [*analysis.by_concurrency] == [run.params.gen_concurrency for run in sweep.runs.values()]
