"""Stand-ins of NVIDIA's programs on PATH, and processes that act as engines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo_lib.launch.mechanisms.base import Tenants
from colo_lib.launch.placement import Placement, place
from colo_lib.launch.process import Child, child_environment
from colo_lib.launch.runtime import runtime_folder
from colo_lib.params import Params, check

STANDINS = Path(__file__).parents[2] / "standins"


@dataclass
class Nvidia:
    """The stand-ins' folder: what goes wrong, and what they were asked."""

    folder: Path

    def goes(self, **scenario: Any) -> None:
        """Set what the MPS daemon does from now on (words with '_' for ' ')."""
        plain = {name.replace("_", " ") if name != "server_uid" else name: value for name, value in scenario.items()}
        (self.folder / "scenario.json").write_text(json.dumps(plain))

    def orders(self) -> list[str]:
        """Every order that the daemon received, in turn."""
        file = self.folder / "orders.txt"
        return file.read_text().splitlines() if file.is_file() else []


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    """Stand-in programs first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-cuda-mps-control").symlink_to(STANDINS / "nvidia-cuda-mps-control")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Nvidia(folder)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A launcher's private folder."""
    with runtime_folder() as folder:
        yield folder


Tenant = Callable[..., Child]


@pytest.fixture
def tenant(tmp_path: Path) -> Iterator[Tenant]:
    """Start a process that stands for an engine: `tenant("embed", environment)`."""
    started: list[Child] = []

    def start(name: str, env: dict[str, str], attaches: bool = True) -> Child:
        words = ["mps-client", name] if attaches else [name]
        command = [sys.executable, "-c", "import time; time.sleep(600)", *words]
        started.append(Child(name, command, tmp_path / f"{name}.log", env=child_environment(env), grace_s=1.0))
        return started[-1]

    yield start
    for child in started:
        child.stop()


def tenants(gen: Child, embed: Child, ranks: int = 1) -> Tenants:
    """Two engines as a proof is told of them."""
    return Tenants({"gen": [gen.pid], "embed": [embed.pid]}, {"gen": ranks, "embed": 1})


def cuda(**changes: Any) -> tuple[Params, Placement]:
    """Parameters of a GPU host and the placement of step 2."""
    params = check({"device": "cuda", "devices": "0", "steps": "step2"} | changes, "test")
    return params, place("step2", params)
