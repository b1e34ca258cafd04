"""The mechanisms on a real GPU: `make test-gpu`. Small CUDA clients stand for the engines; no model is loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.hardware.nvml import look_at_gpus
from colo_lib.launch.child import Child
from colo_lib.launch.mechanisms import sm_hold, start_mechanism, verify
from colo_lib.launch.mechanisms.base import EngineProcesses, Mechanism
from colo_lib.launch.mechanisms.mps import Mps
from colo_lib.launch.mechanisms.sm_partition import BACKENDS, NotHere
from colo_lib.mechanism_records import MpsEvidence, MpsFacts, TimeSlicedEvidence
from tests.launch.mechanisms.conftest import cuda
from tests.processes import wait_until

pytestmark = pytest.mark.gpu
# Keeps a context and a little work on the GPU until it is ended; torch is the engines' own.
CLIENT = """
import sys, time, torch
a = torch.randn(1024, 1024, device="cuda")
print("ready", torch.cuda.get_device_properties(0).multi_processor_count, flush=True)
while True:
    a @ a
    torch.cuda.synchronize()
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    if look_at_gpus().state != "ok":
        pytest.skip("no NVIDIA GPU here")


@pytest.fixture
def torch_python() -> str:
    """An interpreter with torch's CUDA build: COLO_ENGINE_PYTHON, or this one."""
    return os.environ.get("COLO_ENGINE_PYTHON", sys.executable)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def clients(torch_python: str, logs: Path) -> Iterator[Any]:
    started: list[Child] = []

    def start(mechanism: Mechanism) -> tuple[Child, Child]:
        for name in ("gen", "embed"):
            env = child_environment(mechanism.environment(name))
            started.append(Child(name, [torch_python, "-c", CLIENT], logs / f"{name}.log", env=env))
        gen, embed = started[-2:]
        assert wait_until(lambda: "ready" in gen.tail() and "ready" in embed.tail(), 120.0), gen.tail() + embed.tail()
        return gen, embed

    yield start
    for child in started:
        child.stop()


def two(gen: Child, embed: Child) -> EngineProcesses:
    return EngineProcesses({"gen": [gen.pid], "embed": [embed.pid]}, {"gen": 1, "embed": 1})


def test_mps_comes_up_is_proved_and_is_gone(clients: Any, runtime: Path, logs: Path, torch_python: str) -> None:
    spec = cuda(gen_python=torch_python, mps_embed_thread_percentage=50)
    mps = Mps(spec, runtime, logs)
    try:
        gen, embed = clients(mps)
        evidence = verify(mps.facts(), two(gen, embed))
        assert isinstance(evidence, MpsEvidence)
        assert evidence.attached == {"gen": [gen.pid], "embed": [embed.pid]}
        assert evidence.nvml_lists_them is True
        all_sms, held = (evidence.limits[name].visible_sms[0] for name in ("gen", "embed"))
        assert held == pytest.approx(all_sms / 2, rel=0.05)
        ours = [mps.child.pid, *(int(server[0]) for server in evidence.servers)]
        gen.stop()
        embed.stop()
    finally:
        mps.close()
    assert not mps.folder.exists()
    assert not any(psutil.pid_exists(pid) for pid in ours)


def test_clients_that_are_killed_leave_the_daemon_to_be_ended(
    clients: Any, runtime: Path, logs: Path, torch_python: str
) -> None:
    spec = cuda(gen_python=torch_python)
    mps = Mps(spec, runtime, logs)
    try:
        gen, embed = clients(mps)
        os.kill(embed.pid, 9)
        assert wait_until(lambda: not embed.running())
        with pytest.raises(StepFailed, match="void: mps not attached: embed"):
            verify(mps.facts(), two(gen, embed))
        gen.stop()
    finally:
        mps.close()
    assert not mps.folder.exists()


def test_time_slices_have_no_client_of_mps(clients: Any, runtime: Path) -> None:
    spec = cuda("step3")
    slices = start_mechanism(spec, runtime, runtime)
    assert slices is not None
    gen, embed = clients(slices)
    evidence = verify(slices.facts(), two(gen, embed))
    assert isinstance(evidence, TimeSlicedEvidence)
    assert evidence.mps_clients_by_nvml == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_partition_holds_or_says_why_not(backend: str, runtime: Path, logs: Path, torch_python: str) -> None:
    spec = cuda("sm-partition", gen_python=torch_python, sm_partition_backend=backend)
    try:
        found = start_mechanism(spec, runtime, logs)
    except StepSkipped as skipped:
        print(skipped)
        pytest.skip(str(skipped))
    assert found is not None
    facts = found.facts()
    found.close()
    assert isinstance(facts, MpsFacts)
    assert facts.partition is not None
    print(json.dumps(facts.partition.plain()))
    assert facts.partition.held_sms < facts.partition.all_sms


def test_a_green_context_slows_a_product_as_its_sms_demand(torch_python: str, logs: Path) -> None:
    child = Child(
        "hold", [torch_python, sm_hold.__file__, '{"backend": "green-context", "sms": 32}'], logs / "hold.log"
    )
    assert wait_until(lambda: not child.running(), 180.0)
    child.stop()
    told = json.loads([line for line in (logs / "hold.log").read_text().splitlines() if line.startswith("{")][-1])
    if "error" in told:
        pytest.skip(told["error"])
    print(told)
    ratio = told["held_ms"] / told["free_ms"] / (told["visible_sms"] / told["held_sms"])
    assert 0.7 < ratio < 1.6, NotHere(told)
