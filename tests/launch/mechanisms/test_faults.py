"""A fault campaign on a step under MPS: the real vLLM and embedding model on cores, the GPU's part played by stand-ins.

Each process of the step is killed or hung in turn; what happened is told, and nothing is left of any of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_lib.errors import ColoError, StepFailed
from colo_lib.launch.engines import Engines
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.mechanism_records import MpsEvidence, MpsFacts
from colo_lib.params import Params, check
from colo_lib.paths import REPOSITORY
from colo_lib.placement import placement_of
from tests.launch.mechanisms.conftest import Nvidia
from tests.launch.test_faults import nano
from tests.processes import token_carriers, wait_until
from tests.standins import gpu_host

pytestmark = pytest.mark.engine
FAULT_AFTER_S = 1.5


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, forked_python: Path) -> Iterator[Nvidia]:
    """A GPU host of stand-ins for the whole module."""
    folder = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gpu_host.make(folder, forked_python).items():
            patch.setenv(name, value)
        yield Nvidia(folder)


def params_on(host: Nvidia) -> Params:
    plain = nano().model_dump() | {"device": "cuda", "devices": "0", "gen_python": str(host.python), "steps": "step2"}
    return check(plain, "test")


@pytest.fixture(scope="module")
def up(host: Nvidia, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Both engines under MPS; the faults that they do not outlive come last."""
    params = params_on(host)
    with runtime_folder() as runtime:
        spec = specs_of(params, placement_of("step2", params)).engines
        engines = Engines(spec, runtime, tmp_path_factory.mktemp("logs"))
        try:
            engines.start(want_gen=True, want_embed=True)
            yield engines
        finally:
            engines.stop()
            assert not (runtime / "mps").exists()


@pytest.fixture(autouse=True)
def all_is_well_again(host: Nvidia) -> Iterator[None]:
    yield
    host.goes()
    host.has()


def attempt(engines: Engines, folder: Path, fault: Callable[[], object] = lambda: None, **changes: Any) -> Any:
    """A trial of step 2 during which `fault` strikes; its record, or the error it ended with."""
    params = nano(device="cuda", devices="0", steps="step2", **changes)
    spec = specs_of(params, placement_of("step2", params)).trial
    timer = threading.Timer(FAULT_AFTER_S, fault)
    timer.start()
    try:
        return run_trial(spec, engines.handles(), folder / "trial-1", 1)
    except ColoError as error:
        return error
    finally:
        timer.join()


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trial-1" / "trial.json").read_text())
    return found


def signalled(engines: Engines, which: str, number: int = signal.SIGKILL) -> Callable[[], None]:
    """Send a signal to the daemon or its server, as the mechanism's facts name them."""
    facts = engines.handles().mechanism
    assert isinstance(facts, MpsFacts)
    who = facts.daemon if which == "daemon" else facts.servers[0]
    assert who is not None
    return lambda: os.kill(int(who[0]), number)


def test_a_trial_under_mps_holds_its_evidence(up: Engines, tmp_path: Path) -> None:
    record = attempt(up, tmp_path, window_s=4.0)
    assert record.status == "done", str(record.reason)
    evidence = record.mechanism_evidence
    assert isinstance(evidence.before, MpsEvidence)
    assert evidence.before.servers == evidence.after.servers
    gen = up.handles().gen
    assert gen is not None
    # The engine core computes, not the API server that we started.
    assert evidence.before.attached["gen"]
    assert gen.pid not in evidence.before.attached["gen"]
    assert record.memory_parts_gib.keys() == {"gen", "embed"}


def test_attachment_that_is_not_there_voids_the_trial(up: Engines, host: Nvidia, tmp_path: Path) -> None:
    host.goes(lists_nobody=True)
    error = attempt(up, tmp_path)
    assert isinstance(error, StepFailed)
    assert "void: mps not attached" in str(error)
    assert record_of(tmp_path)["status"] == "failed"


def test_a_fault_in_the_window_voids_both(up: Engines, host: Nvidia, tmp_path: Path) -> None:
    error = attempt(up, tmp_path, lambda: host.goes(status="FAULT"), window_s=3.0)
    assert isinstance(error, StepFailed)
    assert "state FAULT" in str(error)
    assert record_of(tmp_path)["reason"] == str(error)


def test_a_stranger_in_the_window_makes_it_invalid(up: Engines, host: Nvidia, tmp_path: Path) -> None:
    host.has(processes=[[1, 2**30]])
    record = attempt(up, tmp_path)
    assert record.status == "invalid"
    assert "others computed on the GPU" in str(record.reason)
    assert "pid 1" in str(record.reason)


def test_a_daemon_that_hangs_is_told_in_time(up: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colo_lib.launch.mechanisms.mps_control import Control

    with monkeypatch.context() as patch:
        patch.setattr(Control.ask, "__defaults__", (2.0,))
        error = attempt(up, tmp_path, signalled(up, "daemon", signal.SIGSTOP))
    signalled(up, "daemon", signal.SIGCONT)()
    assert isinstance(error, StepFailed)
    assert "did not answer" in str(error)
    assert attempt(up, tmp_path).status == "done"


def test_a_killed_server_voids_both(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, tmp_path, signalled(up, "server"), window_s=60.0)
    assert isinstance(error, StepFailed)
    assert "both workloads' results are void" in str(error)


def test_a_killed_daemon_is_ended_with_everything_of_it(up: Engines, tmp_path: Path) -> None:
    signalled(up, "daemon")()
    error = attempt(up, tmp_path)
    assert isinstance(error, StepFailed)
    assert "ended: both workloads' results are void" in str(error)
    up.stop()
    assert not [words for words in token_carriers().values() if "mps" in words or "VLLM" in words]


STAGES = {
    "the first client": ({"probe": "hangs"}, "cuda_probe.py"),
    "gen": ({}, "vllm.entrypoints.openai.api_server"),
}
LAUNCHER = """
import sys
from pathlib import Path
from colo_lib.launch.engines import Engines
from colo_lib.placement import placement_of
from colo_lib.launch.specs import specs_of
from colo_lib.launch.rpc import runtime_folder
from colo_lib.params import check
params = check({params!r}, "test")
with runtime_folder() as runtime:
    engines = Engines(specs_of(params, placement_of("step2", params)).engines, runtime, Path({logs!r}))
    engines.start(want_gen=True, want_embed=True)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_launcher_leaves_nothing_at_any_stage(host: Nvidia, tmp_path: Path, stage: str) -> None:
    scenario, words = STAGES[stage]
    host.goes(**scenario)
    script = LAUNCHER.format(params=params_on(host).model_dump(), logs=str(tmp_path))
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    others = set(token_carriers())
    launcher = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path})
    try:
        began = wait_until(
            lambda: [pid for pid, line in token_carriers().items() if words in line and pid not in others], 60.0
        )
    finally:
        launcher.kill()
        launcher.wait()
    assert began
    assert wait_until(lambda: not set(token_carriers()) - others, 30.0), token_carriers()
    # The next launcher clears away what the dead one could not.
    with runtime_folder():
        folders = [folder for folder in Path("/tmp").glob("colo-*/mps") if owner_of(folder) == launcher.pid]
        assert folders == []


def owner_of(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads((folder.parent / "owner.json").read_text())["pid"])
    return None
