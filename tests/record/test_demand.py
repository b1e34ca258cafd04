"""A demand from the order to the verdict: engines without a model stand in, requests are due, sent and judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.run import open_run
from colo_lib.params import check
from colo_lib.paths import REPOSITORY
from colo_lib.record.plan import plan_run
from tests.processes import token_carriers
from tests.standins import engines

MODELS = REPOSITORY / "tests" / "models"


def run(tmp_path: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`colo run` on engines of which embed takes 20 ms for a batch of two sequences: it can do 100 a second alone."""
    given = {
        "gen_model": MODELS / "nano-gen", "embed_model": MODELS / "nano-embed",
        "gen_python": engines.make(tmp_path / "engines"), "runs_dir": tmp_path / "runs", "steps": "step1,step2,step4",
        "blocks": 1, "starts": 1, "warmup_s": 0.3, "window_s": 2.0, "embed_batch_size": 2, "slo_embed_batch_ms": 700.0,
        "max_stranger_cores": 99.0, "max_drift_fraction": 99.0, "max_clock_disagreement": 99.0,
    } | changes  # fmt: skip
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "colo_lib.cli", "run", str(REPOSITORY / "params" / "cpu.yaml"), "--no-report"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*command, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_a_demand_is_asked_for_met_and_judged(tmp_path: Path) -> None:
    demand = {"embed_arrivals": "poisson", "embed_rate": 30, "gen_arrivals": "constant", "gen_rate": 4}
    done = run(tmp_path, **demand, min_demand_met=0.5)
    assert done.returncode == 0, done.stderr + done.stdout
    opened = open_run(next((tmp_path / "runs").iterdir()))
    rows = {step: opened.frame(step, 1, "embed") for step in ("step2", "step4")}
    # The same moments in every step, from its own beginning on: steps differ in nothing else.
    apart = [np.diff(np.sort(frame["started_ns"].to_numpy()))[:25] for frame in rows.values() if frame is not None]
    assert np.abs(apart[0] - apart[1]).max() <= 1
    requests = opened.frame("step1", 1, "requests")
    assert requests is not None
    assert np.diff(requests["submitted_ns"]) / 1e9 == pytest.approx(0.25)
    analysis = RunAnalysis(opened)
    counted = analysis.counted.set_index("step")
    assert counted.loc["step4", "embed_demanded_per_s"] == 30
    assert counted.loc["step4", "embed_demand_met"] > 0.5
    assert counted.loc["step1", "gen_due"] == 8
    assert np.isnan(counted.loc["step1", "embed_demand_met"])
    # Nobody sums what was asked for to GPUs' worth of work, and the question is the one that a demand asks.
    assert analysis.demanded == ["gen", "embed"]
    assert set(analysis.kept["quantity"]) == {"gen", "embed"}
    assert "the LLM's demand of 4 requests/s and the embedder's demand of 30 sequences/s is met" in analysis.headline
    clauses = " ".join(analysis.verdict.clauses["clause"])
    assert "the embedder's demand is met: 50% of its requests are done within 700 ms" in clauses
    assert "the LLM's demand is met: 50% of its first tokens come within 2000 ms" in clauses


@pytest.mark.timeout(600)
def test_a_demand_that_cannot_be_met_alone_is_told_before_the_shared_steps(tmp_path: Path) -> None:
    done = run(tmp_path, embed_arrivals="constant", embed_rate=400)
    assert done.returncode == 2, done.stderr + done.stdout
    told = " ".join(done.stderr.split())
    assert "embed_rate = 400 cannot be met even alone" in told
    assert "Lower embed_rate, or raise slo_embed_batch_ms" in told
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.suffix == ".partial"
    assert not (folder / "steps" / "step2").exists()
    assert (folder / "steps" / "step4" / "trial-1" / "trial.json").is_file()
    assert token_carriers() == {}


def test_steps_alone_stand_before_those_together_where_there_is_a_demand() -> None:
    given = {"steps": "step1,step2,step3,step4", "blocks": 2, "starts": 1}
    order = [trial.step for trial in plan_run(check(given, "test")).trials]
    assert order[:4] == ["step1", "step2", "step3", "step4"]
    order = [
        trial.step for trial in plan_run(check(given | {"embed_arrivals": "poisson", "embed_rate": 9.0}, "test")).trials
    ]
    assert order == ["step1", "step4", "step2", "step3", "step3", "step2", "step4", "step1"]
