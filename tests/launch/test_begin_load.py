"""What a person reads when a workload is gone by the time that a trial would give it work."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import Loads, begin_load
from colo_lib.launch.rpc import Handle, runtime_folder
from colo_lib.launch.specs import TrialSpec, specs_of
from colo_lib.params import check
from colo_lib.placement import placement_of
from tests.conftest import MODELS
from tests.processes import wait_until

LISTEN = "import socket, sys; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); "


def trial_of(step: str) -> TrialSpec:
    models = {"gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed")}
    params = check({"gen_python": "/bin/true", **models}, "test")
    return specs_of(params, placement_of(step, params)).trial


def begin(handle: Handle, folder: Path) -> None:
    handles = Handles(key="", owner_pid=os.getpid(), gen=None, embeds=(handle,))
    with ExitStack() as stack:
        begin_load(trial_of("step4"), handles, Loads(None, (handle,)), folder, folder, stack)


def test_an_embedder_that_has_ended_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with runtime_folder() as runtime:
        words = [sys.executable, "-c", LISTEN + "raise ValueError('the cause of its end')", str(runtime / "embed.sock")]
        child = Child("embed", words, tmp_path / "embed.log")
        try:
            assert wait_until(lambda: not child.running() and not psutil.pid_exists(child.pid))
            handle = Handle(str(runtime / "embed.sock"), child.pid, str(tmp_path / "embed.log"))
            with pytest.raises(StepFailed, match=r"embed \(pid \d+\) ended unasked[\s\S]*the cause of its end"):
                begin(handle, tmp_path)
        finally:
            child.stop()


def test_an_embedder_that_hangs_up_is_named_with_its_last_lines(tmp_path: Path) -> None:
    hang_up = LISTEN + "listener.listen(); print('what it said', flush=True)\nwhile True: listener.accept()[0].close()"
    with runtime_folder() as runtime:
        words = [sys.executable, "-c", hang_up, str(runtime / "embed.sock")]
        child = Child("embed", words, tmp_path / "embed.log")
        try:
            assert wait_until(lambda: "what it said" in (tmp_path / "embed.log").read_text())
            handle = Handle(str(runtime / "embed.sock"), child.pid, str(tmp_path / "embed.log"))
            with pytest.raises(StepFailed, match=r"embed did not begin its work[\s\S]*what it said"):
                begin(handle, tmp_path)
        finally:
            child.stop()
