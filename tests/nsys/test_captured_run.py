"""`colo run` with captures that cannot be had: the run is complete, and says at every turn what it lacks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.nsys.test_captures import put_nsys
from tests.test_run_command import colo, ended, params_file

pytestmark = pytest.mark.engine


def test_a_run_whose_capture_fails_is_finished_without_it(
    tmp_path: Path, engine_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nsys(tmp_path / "bin", fail={"export": "truncated"})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    file = params_file(tmp_path, steps="step4", capture_s=0.5)
    code, output = ended(colo("run", str(file), cwd=tmp_path))
    assert code == 1, output
    assert "no capture of step4: the export trace.sqlite" in output
    (run,) = (tmp_path / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert [trial["status"] for trial in manifest["trials"]] == ["done"]
    (capture,) = manifest["captures"]
    assert (capture["step"], capture["status"]) == ("step4", "failed")
    assert f"{capture['folder']}/capture.json" in manifest["files"]
    report = tmp_path / re.search(r"^report: (.+)$", output, re.M).group(1)  # type: ignore[union-attr]
    assert "MISSING embedder alone: the export trace.sqlite" in report.read_text()
