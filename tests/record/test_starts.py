"""A run starts its engines anew as often as it is told, and its records say which trials share a start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib.analysis.statistics import ratio
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trial_metrics import measure_trials
from colo_lib.data.run import open_run, trials_frame
from colo_lib.paths import REPOSITORY
from colo_lib.records import Trial
from tests.standins import engines

MODELS = REPOSITORY / "tests" / "models"


@pytest.mark.timeout(600)
def test_engines_are_started_anew_and_every_trial_names_its_start(tmp_path: Path) -> None:
    """Engines without a model stand in for vLLM and transformers: what is looked at is who was started when."""
    python = engines.make(tmp_path / "engines")
    given = {
        "gen_model": MODELS / "nano-gen", "embed_model": MODELS / "nano-embed", "gen_python": python,
        "runs_dir": tmp_path, "steps": "step1,step2,step4", "blocks": 3, "starts": 2, "devices": "0,1",
        "warmup_s": 0.1, "window_s": 0.6,
        "max_stranger_cores": 99.0, "max_drift_fraction": 99.0, "max_clock_disagreement": 99.0,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "colo_lib.cli",
        "run",
        str(REPOSITORY / "params" / "cpu.yaml"),
        "--no-report",
        *words,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    run = open_run(next(folder for folder in tmp_path.iterdir() if (folder / "manifest.json").is_file()))
    by_block = run.trials.groupby("block")["gen_start"].unique()
    assert all(len(starts) == 1 for starts in by_block), "steps 1, 2 and 4 share engines"
    assert by_block[2][0] == by_block[3][0] != by_block[1][0], "two starts for three blocks"
    found = ratio(
        measure_trials(run.trials, run.frame, Thresholds.of(run.params)).counted, "step2", "step1", "gen_tokens_per_s"
    )
    assert (found.blocks, found.starts, found.across_starts) == (3, 2, False)


def test_records_without_names_of_starts_are_told_apart_by_their_pids() -> None:
    rows = [
        {"step": "step1", "trial": 1, "status": "failed", "pids": {"gen": [605], "embed": [9]}},
        {"step": "step1", "trial": 2, "status": "failed", "pids": {"gen": [605], "embed": [10, 11]}},
        {"step": "step1", "trial": 3, "status": "failed", "engine_starts": {"gen": "605@1.5", "embed": None}},
        {"step": "step1", "trial": 4, "status": "skipped"},
    ]
    frame = trials_frame(Trial.model_validate(row) for row in rows)
    assert frame["gen_start"].tolist() == ["605", "605", "605@1.5", ""]
    assert frame["embed_start"].tolist() == ["9", "10+11", "", ""]
