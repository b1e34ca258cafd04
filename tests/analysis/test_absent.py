"""A window in which a workload, or both, ran nothing: it is absent and said so, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.cli import main
from colo_lib.steps import WORKLOADS
from tests.exports import EMBED, GEN, Kernel, write

KERNELS = [
    Kernel(GEN, 1_000, 2_000),
    Kernel(EMBED, 3_000, 4_000),
    Kernel(GEN, 99_000_000, 99_001_000),
    Kernel(EMBED, 99_000_500, 99_002_000),
]
WINDOWS = {  # seconds -> who is absent
    "0.000001:0.0000025": ["embed"],
    "0.0000029:0.0000045": ["gen"],
    "0.000005:0.000007": ["gen", "embed"],
    "0.000002:0.000003": ["gen", "embed"],  # half-open at both ends
}


@pytest.mark.parametrize(("window", "absent"), WINDOWS.items())
def test_a_window_without_kernels_says_who_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], window: str, absent: list[str]
) -> None:
    file = write(tmp_path / "e.sqlite", KERNELS)
    words = ["trace", str(file), "--gen", str(GEN), "--embed", str(EMBED), "--window", window]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["absent"]) == absent
    assert set(found["workloads"]) == {"gen", "embed"} - set(absent)
    assert found["overlap_ns"] is None
    assert found["busy_ns"] == (0 if len(absent) == 2 else 1_000)
    assert found["gaps"]["total_ns"] == found["window_ns"] - found["busy_ns"]
    assert main([*words, "--perfetto", str(tmp_path / "p.json")]) == 0
    text = capsys.readouterr().out
    for name in absent:
        assert f"{WORKLOADS[name]}: absent, it ran no kernel in this window" in text
        assert any(f"the {WORKLOADS[name]} ran no kernel in this window" in note for note in found["notes"])


NOTEBOOKS = ("41-kernel-overlap", "42-sm-occupancy", "43-idle-gaps", "44-kernel-durations", "45-categories")


@pytest.mark.parametrize(
    ("name", "window"), [("41-kernel-overlap", "0.0000029:0.0000045"), *((name, "0.01:0.05") for name in NOTEBOOKS)]
)
def test_notebooks_reach_the_bottom_and_say_so(name: str, window: str, tmp_path: Path) -> None:
    import papermill

    file, out = write(tmp_path / "e.sqlite", KERNELS), tmp_path / "out.ipynb"
    given = {"exports": str(file), "trace_gen": str(GEN), "trace_embed": str(EMBED), "trace_window": window,
             "exports_alone": str(file)}  # fmt: skip
    source = str(paths.NOTEBOOKS / f"{name}.ipynb")
    papermill.execute_notebook(source, str(out), parameters=given, kernel_name="python3", progress_bar=False)
    shown = out.read_text(encoding="utf-8")
    assert "ran no kernel in this window" in shown
    assert "the LLM ran no kernel" in shown


def test_the_recorded_capture_of_time_slices_has_windows_without_embed(capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = paths.RECORDED.glob("h200-qwen3b-*/steps/step3/capture/trace.sqlite*")
    assert main(["trace", str(file), "--window", "0.46:0.4601"]) == 0
    assert "embedder: absent, it ran no kernel in this window" in capsys.readouterr().out
