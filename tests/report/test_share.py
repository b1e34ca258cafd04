"""A run made fit to share: the same measurement, smaller, without what names a machine."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from colo_lib import paths
from colo_lib.analysis.trace import overlap, window
from colo_lib.data.capture import read_capture, read_files
from colo_lib.data.run import open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.errors import InputError
from colo_lib.examples.captures import simulated_capture
from colo_lib.report.share import share, share_sweep
from tests.run_folders import add_capture, change_manifest, reseal

RECORDED = next(paths.RECORDED.glob("h200-qwen3b-*[0-9]"))


def test_a_shared_run_measures_the_same(tmp_path: Path) -> None:
    folder, _ = share(RECORDED, tmp_path, capture_ms=10.0)
    before, after = open_run(RECORDED), open_run(folder)
    assert len(after.trials) == len(before.trials) == 5
    for file in RECORDED.glob("steps/*/trial-*/*.parquet"):
        assert (folder / file.relative_to(RECORDED)).read_bytes() == file.read_bytes()
    assert not list(folder.rglob("*.log"))


def test_captures_can_stay_behind_and_the_run_is_whole_without_them(tmp_path: Path) -> None:
    folder, _ = share(RECORDED, tmp_path, capture_ms=0.0)
    assert not list(folder.glob("steps/*/capture/*"))
    after = open_run(folder)
    assert after.manifest.captures == []
    assert len(after.trials) == 5


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


def test_packed_captures_are_read_as_they_were_and_an_eighth_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLO_EXPORT_CACHE", str(tmp_path / "cache"))
    plain, _ = share(RECORDED, tmp_path / "plain", capture_ms=10.0)
    packed, _ = share(RECORDED, tmp_path / "packed", capture_ms=10.0, packed=True)
    assert not list(packed.rglob("*.sqlite"))
    assert open_run(packed).captured_steps == open_run(plain).captured_steps != []
    before, after = (read_capture(folder, "step2") for folder in (plain, packed))
    assert list(after.capture.kernels.start_ns) == list(before.capture.kernels.start_ns)
    assert list(after.launches().start_ns) == list(before.launches().start_ns)
    file = paths.capture_folder(packed, "step2") / "trace.sqlite.xz"
    assert file.stat().st_size < (paths.capture_folder(plain, "step2") / "trace.sqlite").stat().st_size / 4
    assert read_files([file]).facts.mechanism == "mps"
    again, _ = share(packed, tmp_path / "again", capture_ms=10.0)
    assert read_capture(again, "step2").window_s == after.window_s
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"trace.sqlite.xz is damaged .*: copy it again"):
        read_files([file])


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


def separate_capture(run: Path) -> None:
    """Put a capture of two sessions, embed's begun 10 ms after gen's, in the place of step 2's."""
    folder = paths.capture_folder(run, "step2")
    shutil.rmtree(folder)
    change_manifest(run, files={name: one for name, one in manifest_files(run).items() if "step2/capture" not in name})
    exports = {"trace-gen.sqlite": ("step1", 0), "trace-embed.sqlite": ("step4", 10_000_000)}
    joint_reason = "nsys launch: /opt/nvidia/nsys/bin/nsys refused\n/home/someone/log"
    more = {"command": ["/opt/nvidia/nsys/bin/nsys", "launch"], "sessions": "separate", "joint_reason": joint_reason}
    add_capture(run, "step2", exports=list(exports), **more)
    for name, (step, later_ns) in exports.items():
        simulated_capture(folder / name, step)
        with closing(sqlite3.connect(folder / name)) as database, database:
            database.execute("UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs + ?", (later_ns,))
        reseal(run, (folder / name).relative_to(run).as_posix())


def manifest_files(run: Path) -> dict[str, Any]:
    """What the manifest of a run lists."""
    files: dict[str, Any] = json.loads((run / "manifest.json").read_text())["files"]
    return files


def test_every_export_of_a_capture_is_cut_on_its_own_clock_and_redacted(tmp_path: Path) -> None:
    run = tmp_path / "runs" / RECORDED.name
    shutil.copytree(RECORDED, run)
    separate_capture(run)
    shared, told = share(run, tmp_path, capture_ms=10.0)
    whole, cut = read_capture(run, "step2"), read_capture(shared, "step2")
    assert [file.name for file in cut.files] == ["trace-gen.sqlite", "trace-embed.sqlite"]
    assert not (cut.files[0].parent / "trace.sqlite").exists()
    assert cut.capture.alignment == whole.capture.alignment
    assert cut.capture.alignment.offsets_ns == (0, 10_000_000)
    assert cut.window_s == pytest.approx((0.025, 0.035))
    for process in range(2):
        kept, had = (one.capture.kernels.take(one.capture.kernels.process == process) for one in (cut, whole))
        inside = (had.end_ns > 25_000_000) & (had.start_ns < 35_000_000)
        assert list(kept.start_ns) == list(had.start_ns[inside])
        assert len(kept) > 10
    assert any(line.startswith("step2 trace-embed: ") for line in told.lines)
    assert cut.facts.joint_reason == "nsys launch: (removed) refused"
    assert overlap.verdict_overlap(window.view_of(cut.capture, cut.facts, window.Asked(), cut.window_s)) is not None


SWEEP = next(iter(paths.RECORDED.glob("h100-llama-*[0-9]")))


def test_a_shared_sweep_is_read_as_the_sweep_was(tmp_path: Path) -> None:
    folder, _ = share_sweep(SWEEP, tmp_path, capture_ms=5.0)
    before, after = open_sweep(SWEEP), open_sweep(folder)
    assert [cell.changes for cell in after.cells] == [cell.changes for cell in before.cells]
    for name, run in before.runs.items():
        pd.testing.assert_frame_equal(after.runs[name].trials, run.trials)
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert not any("/opt/" in text or "/tmp/" in text for text in texts)
    with pytest.raises(InputError, match="there already"):
        share_sweep(SWEEP, tmp_path, capture_ms=5.0)


def test_a_sweep_without_a_finished_cell_is_not_shared(tmp_path: Path) -> None:
    empty = tmp_path / SWEEP.name
    empty.mkdir()
    (empty / paths.SWEEP).write_bytes((SWEEP / paths.SWEEP).read_bytes())
    with pytest.raises(InputError, match="nothing to share"):
        share_sweep(empty, tmp_path / "out", capture_ms=5.0)
    assert not (tmp_path / "out").exists()
