"""Which room may import which: the contracts of pyproject.toml hold, and an arrow the wrong way is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib.paths import REPOSITORY


def checked(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_arrows_point_one_way() -> None:
    done = checked(REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("process", "absent"),
    [
        ("telemetry.watchdog", "psutil pydantic numpy pyarrow pandas"),
        ("telemetry.sampler", "pydantic numpy pyarrow pandas"),
        ("telemetry.gpu_metrics", "pydantic numpy pyarrow pandas"),
        ("hardware.nvml", "psutil pydantic numpy pyarrow pandas"),
        ("launch.gen_client", "pydantic pandas"),
        ("launch.pacing", "numpy pyarrow pandas"),
        ("nsys.engine_host", "pandas"),
    ],
)
def test_what_the_launcher_starts_is_light(process: str, absent: str) -> None:
    """It starts beside what is measured, some of it in every trial."""
    code = f"import sys, colo_lib.{process}; print([name for name in {absent.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_an_arrow_the_wrong_way_is_told(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "colo_lib", tmp_path / "colo_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for file, line in (
        ("launch/trial.py", "from colo_lib.data import run"),
        ("analysis/statistics.py", "import matplotlib"),
    ):
        path = tmp_path / "colo_lib" / file
        path.write_text(path.read_text(encoding="utf-8") + f"\n\ndef late() -> None:\n    {line}\n", encoding="utf-8")
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "colo_lib.launch.trial -> colo_lib.data.run" in done.stdout
    assert "colo_lib.analysis.statistics -> matplotlib" in done.stdout
