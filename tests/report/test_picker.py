"""The table of runs in a notebook: each with its verdict and the line that reads it; a broken one stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.params import Params
from colo_lib.report import run_tables
from colo_lib.select import select_run
from tests.run_folders import Plan, change_manifest, write_run


def test_every_finished_run_has_a_line_that_reads_it(tmp_path: Path) -> None:
    write_run(tmp_path, Plan(run_id="good", blocks=2, window_s=1.0))
    bad = write_run(tmp_path, Plan(run_id="bad", blocks=1, window_s=1.0))
    (bad / "steps" / "step1" / "trial-1" / "gen.parquet").write_bytes(b"changed")
    change_manifest(bad, created_utc="2020-01-01T00:00:00Z")
    told = run_tables.runs_table(tmp_path, paths.RECORDED)
    lines = list(told["To read it, set"])
    assert lines[0].endswith('/good"')
    assert told["Hypothesis"].str.startswith("unreadable: ").tolist()[:2] == [False, True]
    assert "(SIMULATED)" in told["Device"][0]
    assert "NVIDIA H200" in told["Device"].iloc[-1]
    for line, status in zip(lines, told["Hypothesis"], strict=True):
        if not status.startswith("unreadable"):
            namespace: dict[str, str] = {}
            exec(line, namespace)
            assert RunAnalysis(select_run(Params(run=namespace["run"]))).verdict.status == status


def test_a_notebook_whose_run_is_named_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tables, "runs_table", lambda *places: pytest.fail("asked for"))
    run_tables.show_runs(Params(run="recorded"))
