"""A workload that did nothing in a step: every answer is still there, and none divides by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo_lib.analysis import capacity, loss, telemetry, trial_metrics
from colo_lib.analysis.loss import decompose_loss
from colo_lib.analysis.statistics import block_ratios, kept_fractions
from colo_lib.analysis.thresholds import Thresholds, against_bounds
from colo_lib.analysis.trial_metrics import measure_trials
from colo_lib.data.run import open_run
from colo_lib.frames import write_frame
from colo_lib.report.side_by_side import compare
from tests.campaigns.damaged_folders import cells
from tests.run_folders import Plan, reseal, write_run


def silence(run: Path, step: str, workload: str) -> None:
    """Take a workload's events out of every trial of a step, as if it had not done anything; the trials count."""
    for folder in run.glob(f"steps/{step}/trial-*"):
        record = json.loads((folder / "trial.json").read_text())
        names = {"gen": ("gen_tokens", "gen_tokens_per_s"), "embed": ("embed_sequences", "embed_sequences_per_s")}
        record |= dict.fromkeys(names[workload], 0)
        (folder / "trial.json").write_text(json.dumps(record))
        frames = {"gen": ("gen", "requests"), "embed": ("embed",)}[workload]
        for frame in frames:
            write_frame(folder, frame, {})
        for name in ("trial.json", *(f"{frame}.parquet" for frame in frames)):
            reseal(run, (folder / name).relative_to(run).as_posix())


EVERYWHERE = [
    (step, name)
    for step in ("step1", "step2", "step3", "step4", "configA", "configB")
    for name in ("gen", "embed")
    if (step, name) not in (("step1", "embed"), ("step4", "gen"))
]
SILENT = [[("step2", "embed")], [("step2", "gen"), ("step4", "embed"), ("configB", "embed")], EVERYWHERE]


@pytest.mark.parametrize("silent", SILENT, ids=lambda silent: "+".join("-".join(pair) for pair in silent)[:40])
def test_a_workload_at_zero_takes_no_notebook_away(tmp_path: Path, silent: list[tuple[str, str]]) -> None:
    folder = write_run(tmp_path / "runs", Plan(blocks=3, window_s=1.0))
    for step, workload in silent:
        silence(folder, step, workload)
    code, shown = cells(folder)
    assert code == 0
    assert {"capacity-answer", "gen-loss-words", "steps", "verdict"} <= set(shown)
    assert compare([open_run(folder)])[0].analysis.verdict.clauses is not None


def test_a_shared_unit_without_work_costs_no_energy_a_token_and_is_no_layout(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", Plan(blocks=3, window_s=1.0))
    silence(folder, "step2", "embed")
    silence(folder, "step2", "gen")
    run = open_run(folder)
    measured = measure_trials(run.trials, run.frame, Thresholds.of(run.params))
    kept = kept_fractions(block_ratios(measured.counted))
    counted = trial_metrics.with_power(measured.counted, telemetry.telemetry_series(run.trials, run.frame))
    counted[trial_metrics.WATTS] = 300.0
    found = capacity.units(counted, kept, against_bounds(measured.counted, Thresholds.of(run.params)), 200.0)
    costs = capacity.energy_costs(found).set_index("unit")
    assert costs.loc["step2"].isna().all()
    assert costs.loc["gen alone", "j_per_token"] > 0
    layouts = capacity.plan(found, 100.0, 50.0).set_index("layout")
    assert layouts.loc["dedicated", "gpus"] >= 2
    means = telemetry.telemetry_summary(telemetry.telemetry_series(run.trials, run.frame))
    losses = loss.pairs(loss.per_token(measured.counted, means, run.frame))
    assert "step2" not in losses, "no token has no time"
    assert all(decompose_loss(*sides).total_ns for sides in losses.values())


def test_a_range_at_zero_multiplies_its_ends() -> None:
    zero, ten = capacity.Range(0.0, 0.0, 0.0), capacity.Range(10.0, 8.0, 12.0)
    assert zero.times(ten) == ten.times(zero) == capacity.Range(0.0, 0.0, 0.0)
    assert capacity.Range(0.0, 0.0, 0.5).times(ten) == capacity.Range(0.0, 0.0, 6.0)
