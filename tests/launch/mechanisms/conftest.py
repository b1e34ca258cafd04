"""Stand-ins of NVIDIA's programs on PATH, and processes that act as engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo_lib.child_environment import child_environment
from colo_lib.launch.child import Child
from colo_lib.launch.mechanisms.base import EngineProcesses
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import EngineSpec, specs_of
from colo_lib.params import check
from colo_lib.placement import placement_of
from tests.standins import gpu_host


@dataclass
class Nvidia:
    """The stand-ins' folder: what goes wrong, and what they were asked."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter under which CUDA clients run."""
        return self.folder / "python"

    def goes(self, **scenario: Any) -> None:
        """Set what the MPS daemon and its clients do from now on (words with '_' for ' ')."""
        plain = {name.replace("_", " ") if name != "server_uid" else name: value for name, value in scenario.items()}
        (self.folder / "scenario.json").write_text(json.dumps(plain))

    def has(self, **nvml: Any) -> None:
        """Set what NVML answers from now on."""
        (self.folder / "behaviour.json").write_text(json.dumps({"live": True} | nvml))

    def orders(self) -> list[str]:
        """Every order that the daemon received, in turn."""
        file = self.folder / "orders.txt"
        return file.read_text().splitlines() if file.is_file() else []


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    """Stand-in programs first on PATH, a stand-in NVML first on the module path."""
    for name, value in gpu_host.make(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    return Nvidia(tmp_path / "bin")


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


def tenants(gen: Child, embed: Child, ranks: int = 1) -> EngineProcesses:
    """Two engines as a proof is told of them."""
    return EngineProcesses({"gen": [gen.pid], "embed": [embed.pid]}, {"gen": ranks, "embed": 1})


def cuda(step: str = "step2", **changes: Any) -> EngineSpec:
    """The engines of a step on a GPU host."""
    params = check({"device": "cuda", "devices": "0", "steps": step} | changes, "test")
    return specs_of(params, placement_of(step, params)).engines
