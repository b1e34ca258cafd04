"""A step that the machine cannot carry out: recorded with the reason, never as a success or a failure."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from colo_lib.analysis.statistics import block_ratios
from colo_lib.data.run import open_run, trials_frame
from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.launch.specs import EngineSpec
from colo_lib.params import check
from colo_lib.plot.run import stalls
from colo_lib.record import run as keeper_module
from colo_lib.record.plan import plan_run
from colo_lib.record.run import EngineKeeper
from colo_lib.record.run_folder import begin_run, trial_status
from colo_lib.record.step import record_step
from colo_lib.records import Trial
from colo_lib.steps import STEPS, WORKLOADS
from tests.conftest import MODELS

NANO = {"gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "blocks": 2}


@pytest.mark.parametrize("step", ["mig", "sm-partition"])
def test_a_notebook_ends_with_a_finished_run_that_says_why(tmp_path: Path, step: str) -> None:
    record = record_step(check(NANO | {"runs_dir": str(tmp_path), "gen_python": "/bin/true"}, "test"), step)
    assert list(record.table()["status"]) == ["skipped", "skipped"]
    assert "cores stand in" in record.table()["reason"].iloc[0]
    run = open_run(record.folder)
    assert list(run.trials["status"]) == ["skipped", "skipped"]
    assert block_ratios(run.trials[run.trials["status"] == "done"]).empty


def test_a_run_asks_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = [], []

    class Absent:
        """Engines that this machine does not offer."""

        def __init__(self, spec: EngineSpec, runtime: Path, logs: Path, needed_gib: object) -> None:
            self.placement = spec.placement

        def start(self, *_: object) -> None:
            asked.append(1)
            raise StepSkipped("mig: there is none")

        def stop(self) -> None:
            """Nothing was started."""

    monkeypatch.setattr(keeper_module, "Engines", Absent)
    params = check(NANO | {"runs_dir": str(tmp_path), "gen_python": "/bin/true", "steps": "mig"}, "test")
    run = begin_run(params, say=lambda _: None)
    plan = plan_run(params).trials
    keeper = EngineKeeper(tmp_path, run.folder / "logs")
    for number, trial in enumerate(plan, 1):
        assert keeper_module.carry_out_trial(run, trial, [trial.placement], keeper, None, told.append) is None  # type: ignore[arg-type]
        told.append(keeper_module.progress_line(number, 2, run.folder, trial, None, 0.0))
        assert trial_status(run.folder, trial.step, trial.block) == "skipped"
    assert len(asked) == 1
    assert "SKIPPED: mig: there is none" in told[-1]


def test_a_failure_to_start_is_no_skip() -> None:
    assert not issubclass(StepFailed, StepSkipped)
    assert not issubclass(StepSkipped, StepFailed)


def test_trials_with_and_without_a_window_stand_in_one_frame() -> None:
    done = {"step": "step1", "trial": 1, "status": "done", "window_start_ns": 2**53 + 1, "window_end_ns": 2**53 + 3}
    frame = trials_frame(Trial.model_validate(row) for row in (done, {"step": "mig", "trial": 1, "status": "skipped"}))
    assert frame["window_start_ns"].isna().tolist() == [False, True]
    assert frame["window_start_ns"][0] == 2**53 + 1


def test_every_step_can_be_drawn() -> None:
    rows = [
        {"step": step, "what": f"{workload} without a token", "worst": 5.0, "bound": 9.0, "within": 1.0, "trials": 1}
        for step in STEPS for workload in WORKLOADS.values()
    ]  # fmt: skip
    figure = stalls(pd.DataFrame(rows), {step: row.mechanism for step, row in STEPS.items()})
    assert len(figure.axes[0].patches) == len(STEPS)
