"""Captures with a stand-in nsys that works, refuses, hangs and lies: trials stay, reasons are told, nobody is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo_lib.launch import load
from colo_lib.nsys import session as session_module
from colo_lib.params import Params, check
from colo_lib.paths import CAPTURE, REPOSITORY, capture_folder
from colo_lib.record import captures
from colo_lib.record.captures import missing_captures, record_captures
from colo_lib.record.run_folder import OpenRun, capture_records
from tests.processes import token_carriers, wait_until

STAND_IN = Path(__file__).parents[1] / "standins" / "nsys"


@pytest.fixture
def params(engine_env: None) -> Params:
    """A short capture of embedding alone."""
    return check({"capture_s": 0.4, "warmup_s": 0.1, "ready_timeout_s": 5.0, "steps": "step4"}, "test")


@pytest.fixture
def engine_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are one small process."""
    monkeypatch.setenv("COLO_ENGINE_PYTHON", sys.executable)
    monkeypatch.setattr(session_module, "HOST", "tests.standins.capture_host")
    monkeypatch.setattr(load, "WATCH_S", 0.1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> Callable[..., tuple[Any, list[str]]]:
    """Record step 4's capture with an nsys that behaves as told: its capture.json, and what is missing."""

    def record(on_gpu: bool = False, during: Callable[[], None] | None = None, **behaviour: Any) -> Any:
        put_nsys(tmp_path / "bin", **behaviour)
        for command, how in behaviour.get("fail", {}).items():
            if how == "hang":
                monkeypatch.setattr(session_module, f"{command.upper()}_S", 2.0)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        thread = threading.Thread(target=during or (lambda: None))
        thread.start()
        chosen = params.model_copy(update={"device": "cuda"}) if on_gpu else params
        missing = record_captures(OpenRun(tmp_path / "run.partial", chosen), ["step4"], lambda _: None)
        thread.join()
        told = json.loads((folder(tmp_path) / CAPTURE).read_text())
        return told, missing

    return record


def put_nsys(folder: Path, **behaviour: Any) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(STAND_IN, folder / "nsys")
    (folder / "nsys.json").write_text(json.dumps(behaviour))


def folder(tmp_path: Path) -> Path:
    return capture_folder(tmp_path / "run.partial", "step4")


def test_a_capture_says_what_was_recorded(run: Any, tmp_path: Path) -> None:
    told, missing = run()
    assert missing == []
    assert (told["status"], told["exports"], told["nsys_version"]) == ("done", ["trace.sqlite"], "2024.2.3.38")
    start_ns, end_ns = told["window_ns"]
    assert end_ns - start_ns == 400_000_000
    assert told["pids"]["gen"] == []
    assert len(told["pids"]["embed"]) == 1
    assert told["profiled"]["embed_sequences_per_s"] > 0
    assert told["profiled"]["gen_tokens_per_s"] is None
    assert told["command"][1] == "launch"
    assert (told["sessions"], told["joint_reason"]) == ("joint", None)
    assert (folder(tmp_path) / "trace.sqlite").exists()
    assert (folder(tmp_path) / "trace.nsys-rep").exists()
    assert capture_records(tmp_path / "run.partial")[0].status == "done"


def test_a_done_capture_is_not_repeated_and_a_failed_one_is(run: Any, tmp_path: Path, params: Params) -> None:
    run(fail={"stop": "error"})
    assert [one.step for one in missing_captures(OpenRun(tmp_path / "run.partial", params), ["step4"])] == ["step4"]
    told, missing = run()
    assert (told["status"], missing) == ("done", [])
    assert missing_captures(OpenRun(tmp_path / "run.partial", params), ["step4"]) == []


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"fail": {"version": "error"}}, "stand-in: version does not work"),
        ({"fail": {"start": "error"}}, "nsys start ended with exit code 1"),
        ({"fail": {"start": "hang"}}, "nsys start did not end within"),
        ({"fail": {"stop": "error"}}, "stand-in: stop does not work"),
        ({"fail": {"stop": "hang"}}, "nsys stop did not end within"),
        ({"fail": {"stop": "nothing"}}, "left no report"),
        ({"fail": {"export": "error"}}, "stand-in: export does not work"),
        ({"fail": {"export": "hang"}}, "nsys export did not end within"),
        ({"fail": {"export": "empty"}}, "empty one"),
        ({"fail": {"export": "truncated"}}, "export trace.sqlite"),
        ({"fail": {"export": "damaged"}}, "export trace.sqlite"),
        ({"forget": ["capture_host"]}, "no event of embed"),
    ],
)
def test_what_goes_wrong_is_told_and_nobody_is_left(run: Any, behaviour: dict[str, Any], words: str) -> None:
    told, missing = run(**behaviour)
    assert told["status"] == "failed"
    assert words in told["reason"]
    assert told["exports"] == []
    assert words in missing[0]


@pytest.mark.parametrize(
    ("behaviour", "granted"),
    [({}, True), ({"no_context_switches": True}, False), ({"fail": {"start": "no-rights"}}, False)],
)
def test_on_a_gpu_context_switches_are_asked_for_and_done_without(
    run: Any, params: Params, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any], granted: bool
) -> None:
    told, missing = run(on_gpu=True, gpu=True, **behaviour)
    assert missing == []
    assert (told["context_switches"], told["granularity"], told["traced"]) == (granted, "node", "cuda")


def test_on_a_gpu_calls_of_the_host_are_no_gpu_activity(run: Any) -> None:
    told, _ = run(on_gpu=True, gpu=False)
    assert "no GPU activity of embed" in told["reason"]


def test_a_recording_without_importer_is_kept_with_the_remedy(run: Any, tmp_path: Path) -> None:
    told, _ = run(fail={"stop": "no-importer"})
    assert "QdstrmImporter" in told["reason"]
    assert (folder(tmp_path) / "trace.qdstrm").exists()


def test_without_nsys_every_step_says_so(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "find_nsys", lambda: None)
    missing = record_captures(OpenRun(tmp_path / "run.partial", params), ["step1", "step4"], lambda _: None)
    assert len(missing) == 1
    assert "step1, step4" in missing[0]
    told = json.loads((folder(tmp_path) / CAPTURE).read_text())
    assert (told["status"], "nsys is not on PATH" in told["reason"]) == ("absent", True)


def test_who_holds_cupti_is_named(run: Any, monkeypatch: pytest.MonkeyPatch, params: Params, tmp_path: Path) -> None:
    monkeypatch.setattr(captures, "find_nsys", lambda: STAND_IN)
    monkeypatch.setattr(captures, "rivals", lambda: ["DCGM's host engine (nv-hostengine, pid 77)"])
    on_gpu = params.model_copy(update={"device": "cuda"})
    (sentence,) = record_captures(OpenRun(tmp_path / "run.partial", on_gpu), ["step4"], lambda _: None)
    assert "nv-hostengine, pid 77" in sentence
    assert "dcgmi profile --pause" in sentence


def nsys_process(word: str) -> list[int]:
    return [pid for pid, line in token_carriers().items() if word in line and "guardian.py" not in line]


@pytest.mark.parametrize("word", ["nsys launch", "--start-agent", "tests.standins.capture_host"])
def test_each_process_of_a_session_can_be_killed(run: Any, tmp_path: Path, word: str, params: Params) -> None:
    def strike() -> None:
        recording = folder(tmp_path).with_name("capture.partial")
        assert wait_until(lambda: recording.exists() and nsys_process(word))
        # The oldest: `launch` holds its application's words too.
        os.kill(min(nsys_process(word)), signal.SIGKILL)

    told, missing = run(during=strike)
    if word == "--start-agent":  # the stand-in's agent does nothing that would be missed
        assert told["status"] == "done"
    else:
        assert told["status"] == "failed"
        assert missing


def test_an_interrupted_capture_leaves_its_reason(run: Any, tmp_path: Path) -> None:
    def strike() -> None:
        assert wait_until(folder(tmp_path).with_name("capture.partial").exists)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(during=strike)
    assert json.loads((folder(tmp_path) / CAPTURE).read_text())["status"] == "failed"


def test_an_nsys_that_dies_at_once_is_told(run: Any) -> None:
    told, missing = run(fail={"launch": "die"}, die_after_s=0.0)
    assert told["status"] == "failed"
    assert "the engines did not come up" in missing[0]


RECORD = """
import json, sys
from pathlib import Path
from colo_lib.nsys import session
from colo_lib.params import check
from colo_lib.record.captures import record_captures
from colo_lib.record.run_folder import OpenRun
session.HOST = "tests.standins.capture_host"
params = check({"capture_s": 60.0, "warmup_s": 0.1, "steps": "step4"}, "test")
record_captures(OpenRun(Path(sys.argv[1]), params), ["step4"], print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_launcher_leaves_nobody(
    tmp_path: Path, engine_env: None, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    put_nsys(tmp_path / "bin")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    launcher = subprocess.Popen([sys.executable, "-c", RECORD, str(tmp_path / "run.partial")], env=environment)
    try:
        # The engines and nsys are up, and the window is being recorded.
        assert wait_until(lambda: folder(tmp_path).with_name("capture.partial").exists())
        assert wait_until(lambda: nsys_process("tests.standins.capture_host"))
    finally:
        launcher.send_signal(number)
        launcher.wait()
    # The fixture that watches over every test says whether somebody is left.
    assert wait_until(lambda: not nsys_process("nsys"))
