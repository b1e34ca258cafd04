"""Where one session cannot hold both workloads: one for each, the same window, nobody left, and the reason kept."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colo_lib.launch.child import ProfilerLaunch
from colo_lib.launch.engines import Handles
from colo_lib.launch.rpc import Handle
from colo_lib.launch.vllm_server import GenHandle
from colo_lib.nsys import commands
from colo_lib.nsys.capture import devices_seen, events_by_pid
from colo_lib.nsys.session import recorded_names
from colo_lib.params import check
from colo_lib.paths import CAPTURE, capture_folder
from colo_lib.placement import placement_of
from colo_lib.record.captures import record_captures
from colo_lib.record.run_folder import OpenRun
from tests.launch.test_faults import nano
from tests.nsys.test_captures import engine_env, folder, nsys_process, params, put_nsys, run
from tests.nsys.test_nsys_itself import leftovers
from tests.processes import token_carriers, wait_until

__all__ = ["engine_env", "params", "run"]
REFUSED = "Process launch is not allowed in this state"
# The real nsys, but for the one thing that is to fail.
REFUSES_TREES = """#!/bin/sh
case "$*" in
*wrapped_start*) ;;
launch*) echo "Process launch is not allowed in this state." >&2; exit 1 ;;
esac
exec {binary} "$@"
"""


def test_each_engine_with_work_has_its_own_export() -> None:
    two = check({"devices": "0,1", "steps": "configB"}, "test")
    assert recorded_names(placement_of("configB", two), True) == ["trace-gen", "trace-embed", "trace-embed-1"]
    assert recorded_names(placement_of("step1", two), True) == ["trace-gen"]
    assert recorded_names(placement_of("step2", two), False) == ["trace"]


def test_what_the_mechanism_adds_is_for_the_engine_and_not_for_nsys(tmp_path: Path) -> None:
    wrap = ProfilerLaunch(("env", "INJECTED=/tmp/injection_config_7"), {"TMPDIR": "/private"}, tmp_path / "note.json")
    pipe = {"CUDA_MPS_PIPE_DIRECTORY": "/pipe"}
    shown = "import json, os, sys; print(os.getpid(), json.dumps(dict(os.environ)))"
    words, env = wrap.around([sys.executable, "-c", shown], {"PATH": os.environ["PATH"], "KEY": "k"} | pipe, pipe)
    assert env == {"PATH": os.environ["PATH"], "KEY": "k", "TMPDIR": "/private"}
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    pid, _, seen = said.partition(" ")
    engine = json.loads(seen)
    assert (engine["CUDA_MPS_PIPE_DIRECTORY"], engine["INJECTED"], engine["KEY"]) == (
        "/pipe", "/tmp/injection_config_7", "k",
    )  # fmt: skip
    assert "TMPDIR" not in engine
    assert wrap.engine_pid() == int(pid)
    assert json.loads(wrap.note.read_text())["left_behind"] == ["/tmp/injection_config_7"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_refused_tree_is_captured_engine_by_engine(run: Any, tmp_path: Path, on_gpu: bool) -> None:
    told, missing = run(on_gpu=on_gpu, gpu=on_gpu, fail={"launch": "refuse-tree"})
    assert missing == []
    assert (told["status"], told["sessions"], told["exports"]) == ("done", "separate", ["trace-embed.sqlite"])
    assert REFUSED in told["joint_reason"]
    assert told["command"][1] == "launch"
    (pid,) = told["pids"]["embed"]
    assert events_by_pid(folder(tmp_path) / "trace-embed.sqlite", on_gpu)[pid] > 0


def test_what_the_joint_export_lacks_is_captured_again(run: Any, tmp_path: Path) -> None:
    told, missing = run(forget=["tests.standins.capture_host"])
    assert missing == []
    assert (told["status"], told["sessions"]) == ("done", "separate")
    assert "trace.sqlite holds no event of embed" in told["joint_reason"]
    assert not (folder(tmp_path) / "trace.sqlite").exists()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"fail": {"launch": "refuse-tree", "start": "error"}}, "nsys start ended with exit code 1"),
        ({"fail": {"launch": "refuse-tree", "stop": "nothing"}}, "left no report"),
        ({"fail": {"launch": "refuse-tree", "export": "empty"}}, "trace-embed.sqlite"),
        ({"fail": {"launch": "refuse"}}, "the engines did not come up"),
    ],
)
def test_when_neither_can_be_had_both_reasons_are_told(run: Any, behaviour: dict[str, Any], words: str) -> None:
    told, missing = run(**behaviour)
    assert told["status"] == "failed"
    assert words in told["reason"]
    assert words in missing[0]
    assert REFUSED in told["joint_reason"]
    assert told["exports"] == []


@pytest.mark.parametrize("word", ["nsys launch", "capture_host.py", "tests.standins.capture_host"])
def test_each_process_of_separate_sessions_can_be_killed(run: Any, tmp_path: Path, word: str) -> None:
    def strike() -> None:
        recording = folder(tmp_path).with_name("capture.partial")
        assert wait_until(lambda: recording.exists() and nsys_process(word))
        os.kill(min(nsys_process(word)), signal.SIGKILL)

    told, missing = run(during=strike, fail={"launch": "refuse-tree"})
    assert (told["status"], told["exports"]) == ("failed", [])
    assert told["reason"]
    assert missing


@pytest.mark.engine
@pytest.mark.parametrize("which", ["stand-in", pytest.param("real", marks=pytest.mark.nsys)])
def test_both_engines_have_a_session_each(
    tmp_path: Path, engine_python: Path, forked_python: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    if which == "real":
        binary = commands.find_nsys()
        if binary is None:
            pytest.skip("no nsys on PATH")
        script = tmp_path / "bin" / "nsys"
        script.parent.mkdir()
        script.write_text(REFUSES_TREES.format(binary=binary))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    else:
        put_nsys(tmp_path / "bin", fail={"launch": "refuse-tree"})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    before = leftovers()
    steps = ["step1", "step2", "step3"] if which == "real" else ["step2", "step3"]
    python = engine_python if which == "real" else forked_python
    run = OpenRun(tmp_path, nano(capture_s=1.0, steps=",".join(steps), gen_python=str(python)))
    assert record_captures(run, steps, print) == []
    told = {step: json.loads((capture_folder(tmp_path, step) / CAPTURE).read_text()) for step in steps}
    both = ["trace-gen.sqlite", "trace-embed.sqlite"]
    assert [told[step]["exports"] for step in steps] == [both[:1] if step == "step1" else both for step in steps]
    assert all(one["sessions"] == "separate" and REFUSED in one["joint_reason"] for one in told.values())
    # What the mechanism that takes turns stops are engines, not nsys.
    assert told["step3"]["profiled"]["embed_sequences_per_s"] > 0
    gen, embed = told["step2"]["pids"]["gen"], told["step2"]["pids"]["embed"]
    in_gen, in_embed = (events_by_pid(capture_folder(tmp_path, "step2") / name, False) for name in both)
    assert len([pid for pid in gen if in_gen.get(pid, 0) > 50]) >= 2, "the server and its engine core"
    assert in_embed[embed[0]] > 0
    assert not set(in_gen) & set(embed)
    assert not set(in_embed) & set(gen)
    assert not [line for line in token_carriers().values() if "nsys" in line]
    assert wait_until(lambda: leftovers() == before), "tests beside this one clear away theirs in a moment"


def test_a_capture_says_which_gpus_each_process_sees() -> None:
    two = check({"devices": "0,1", "steps": "configB"}, "test")
    waiting = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    gen, *embeds = waiting
    try:
        handles = Handles(
            key="", owner_pid=os.getpid(), gen=GenHandle(1, "key", gen.pid, "log"),
            embeds=tuple(Handle("socket", one.pid, "log") for one in embeds),
        )  # fmt: skip
        told = devices_seen(placement_of("configB", two), handles)
        assert told == {str(gen.pid): ["0", "1"], str(embeds[0].pid): ["0"], str(embeds[1].pid): ["1"]}
    finally:
        for one in waiting:
            one.communicate(b"\n")
