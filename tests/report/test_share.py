"""A run made fit to share: the same measurement, smaller, without what names a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.parse.captures import read_capture
from colo_lib.parse.run_folder import open_run
from colo_lib.report.share import share

RECORDED = paths.RECORDED / "h200-qwen3-30b-qwen3-embedding-8b-20261124-204241"


def test_a_shared_run_measures_the_same(tmp_path: Path) -> None:
    folder, told = share(RECORDED, tmp_path, capture_ms=10.0)
    before, after = open_run(RECORDED), open_run(folder)
    assert len(after.trials) == len(before.trials) == 15
    for file in RECORDED.glob("steps/*/trial-*/*"):
        assert (folder / file.relative_to(RECORDED)).read_bytes() == file.read_bytes()
    assert any("logs" in line for line in told)
    assert not list(folder.rglob("*.log"))


def test_a_shared_capture_is_the_middle_of_its_window(tmp_path: Path) -> None:
    folder, _ = share(RECORDED, tmp_path, capture_ms=10.0)
    whole, cut = read_capture(RECORDED, "step3"), read_capture(folder, "step3")
    assert whole.window_s is not None
    assert cut.window_s is not None
    assert cut.window_s[1] - cut.window_s[0] == pytest.approx(0.010)
    assert sum(cut.window_s) == pytest.approx(sum(whole.window_s))
    start, end = (int(moment * 1e9) for moment in cut.window_s)
    kernels = whole.capture.kernels
    inside = (kernels.end_ns > start) & (kernels.start_ns < end)
    assert len(cut.capture.kernels.start_ns) == pytest.approx(inside.sum(), abs=2)


def test_what_names_a_machine_stays_behind(tmp_path: Path) -> None:
    folder, _ = share(RECORDED, tmp_path, capture_ms=10.0)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "boot_id" not in manifest["machine"]
    assert "uuid" not in manifest["machine"]["gpu"]
    assert manifest["machine"]["device_name"] == "NVIDIA H200"
    assert manifest["finished_utc"] == json.loads((RECORDED / "manifest.json").read_text())["finished_utc"]
    assert b"/opt/" not in b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    share(RECORDED, tmp_path, capture_ms=10.0)
    with pytest.raises(InputError, match="is there already"):
        share(RECORDED, tmp_path, capture_ms=10.0)
