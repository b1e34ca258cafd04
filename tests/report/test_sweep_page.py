"""The page of a sweep: its answer first, whatever its cells' strings hold; made only of finished notebooks."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.cli import report as report_command
from colo_lib.data.sweep import open_sweep
from colo_lib.errors import InputError
from colo_lib.report import page, sweep_page

LEVERS = next(iter(paths.RECORDED.glob("h100-llama-*[0-9]")))
PAIR = next(iter(paths.RECORDED.glob("h100-x2-*[0-9]")))
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def copied(sweep: Path, tmp_path: Path, keep: int = 2) -> Path:
    """The sweep with its first cells measured and one that failed with a hostile reason."""
    target = tmp_path / "sweeps" / sweep.name
    shutil.copytree(sweep, target, ignore=shutil.ignore_patterns("capture"))
    for cell in sorted((target / "cells").iterdir())[keep:]:
        shutil.rmtree(cell)
    plan = json.loads((target / paths.SWEEP).read_text())
    (target / paths.SWEEP).write_text(json.dumps(plan | {"cells": plan["cells"][: keep + 1]}))
    failed = target / "cells" / plan["cells"][keep]["cell"]
    failed.mkdir()
    told = {"cell": failed.name, "status": "failed", "reason": HOSTILE, "attempts": 1, "host": "", "total_s": 1.0}
    (failed / paths.CELL).write_text(json.dumps(told))
    for run in target.glob("cells/*/runs/*"):
        manifest = json.loads((run / paths.MANIFEST).read_text())
        manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "/capture/" not in name}
        (run / paths.MANIFEST).write_text(json.dumps(manifest))
    return target


def test_which_notebooks_have_something_to_show() -> None:
    assert sweep_page.notebooks_of(open_sweep(LEVERS)) == [
        "37-operating-point", "31-thread-percentage", "32-concurrency", "33-batch-more",
    ]  # fmt: skip
    assert sweep_page.notebooks_of(open_sweep(PAIR)) == ["55-two-devices"]


def test_the_answer_stands_first_and_hostile_strings_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = copied(LEVERS, tmp_path)
    monkeypatch.setattr(sweep_page, "notebooks_of", lambda _: ["37-operating-point"])
    made = sweep_page.make_sweep_report(sweep, tmp_path / "reports")
    html = made.read_text(encoding="utf-8")
    assert made.name == f"{LEVERS.name}.html"
    assert html.index("None of 3 settings surely meets the bounds") < html.index("<img ") < html.index("What was run")
    assert "LLM alone as an MPS client&#39;: all its trials ran after those of LLM alone" in html
    assert "were measured, cells share those that are the same for them" in html
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "Content-Security-Policy" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    told = page.read_about(made)
    assert (told["run_id"], told["status"]) == (LEVERS.name, "sweep")
    assert LEVERS.name in (tmp_path / "reports" / page.INDEX).read_text()


def test_a_notebook_that_stops_half_way_makes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colo_lib.errors import StepFailed

    sweep = copied(LEVERS, tmp_path)
    monkeypatch.setattr(sweep_page, "notebooks_of", lambda _: ["37-operating-point"])
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    shutil.copytree(paths.REPOSITORY / "notebooks", paths.NOTEBOOKS)
    file = paths.NOTEBOOKS / "37-operating-point.ipynb"
    notebook = json.loads(file.read_text())
    notebook["cells"][4]["source"] = ["import os\n", "os._exit(0)"]
    file.write_text(json.dumps(notebook))
    with pytest.raises(StepFailed, match="37-operating-point did not reach its end"):
        sweep_page.make_sweep_report(sweep, tmp_path / "reports")
    assert not list((tmp_path / "reports").glob("*.html"))


def test_a_sweep_with_one_measured_cell_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than two cells"):
        sweep_page.make_sweep_report(copied(LEVERS, tmp_path, keep=1), tmp_path / "reports")


def test_a_sweeps_page_stands_alone() -> None:
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    run = str(next((LEVERS / "cells/cell-001/runs").iterdir()))
    with pytest.raises(InputError, match="stands alone"):
        report_command.carry_out(parser.parse_args([str(LEVERS), run]))
