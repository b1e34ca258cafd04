"""Every process of a trial killed or stopped in turn, with the real vLLM and the real embedding model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from colo_lib.errors import ColoError, InputError, StepFailed
from colo_lib.launch import trial as trial_module
from colo_lib.launch.alternate import WorkloadGroups
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Engines, Handles
from colo_lib.launch.guardian import mapped
from colo_lib.launch.load import ANSWER_S, Loads, read_counters
from colo_lib.launch.rpc import Handle, call, runtime_folder
from colo_lib.launch.specs import Specs, specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.params import Params, check
from colo_lib.placement import placement_of
from tests.conftest import MODELS
from tests.processes import token_carriers, wait_until

pytestmark = pytest.mark.engine
FAULT_AFTER_S = 1.5
LONG = {"window_s": 60.0}  # a window that a fault falls into, however slow the machine


def nano(**changes: Any) -> Params:
    """Parameters small enough that a trial takes two seconds."""
    plain = {
        "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "window_s": 1.5,
        "warmup_s": 0.2, "stall_timeout_s": 10.0, "max_stranger_cores": 64.0, "max_drift_fraction": 50.0,
        "max_clock_disagreement": 1.0, "ready_timeout_s": 400.0,
        "embed_sequence_tokens": 64, "gen_prompt_tokens": 8, "gen_output_tokens": 32,
    }  # fmt: skip
    return check(plain | changes, "test")


def specs(params: Params, step: str) -> Specs:
    return specs_of(params, placement_of(step, params))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, forked_python: Path) -> Iterator[Engines]:
    """Both engines, once for the module; the faults that they do not outlive come last."""
    params = nano(gen_python=str(forked_python))
    with runtime_folder() as runtime:
        engines = Engines(specs(params, "step2").engines, runtime, tmp_path_factory.mktemp("logs"))
        try:
            engines.start(want_gen=True, want_embed=True)
            yield engines
        finally:
            engines.stop()


def attempt(engines: Engines, step: str, folder: Path, fault: Callable[[], None], **changes: Any) -> Any:
    """A trial of `step` during which `fault` strikes; returns its record or the error it ended with."""
    spec = specs(nano(**changes), step).trial
    timer = threading.Timer(FAULT_AFTER_S, fault)
    timer.start()
    try:
        return run_trial(spec, engines.handles(), folder / "trial-1", 1)
    except ColoError as error:
        return error
    finally:
        timer.join()


def kill(words: str, number: int = signal.SIGKILL) -> Callable[[], None]:
    """Send a signal to the one process whose command line holds `words`, as soon as there is one."""

    def strike() -> None:
        assert wait_until(lambda: targets(words))
        os.kill(targets(words)[0], number)

    return strike


def targets(words: str) -> list[int]:
    """Pids whose command line holds `words`; guardians, which name their command too, left out."""
    return [pid for pid, line in token_carriers().items() if words in line and "guardian.py" not in line]


def status(folder: Path) -> str:
    return str(json.loads((folder / "trial-1" / "trial.json").read_text())["status"])


def test_a_trial_measures_both(up: Engines, tmp_path: Path) -> None:
    record = attempt(up, "step2", tmp_path, lambda: None)
    assert record.status == "done", record.reason
    assert record.gen_tokens_per_s > 0
    assert record.embed_sequences_per_s > 0
    assert record.clock_disagreement < 0.1


def test_the_key_is_in_no_log_and_no_record(up: Engines, tmp_path: Path) -> None:
    attempt(up, "step1", tmp_path, lambda: None)
    gen = up.handles().gen
    assert gen is not None
    for file in [*tmp_path.rglob("*"), *up.logs.rglob("*")]:
        assert not file.is_file() or gen.key.encode() not in file.read_bytes(), file


def test_a_killed_client_fails_the_trial_alone(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, "step1", tmp_path, kill("gen_client"), **LONG)
    assert isinstance(error, StepFailed)
    assert status(tmp_path) == "failed"
    assert attempt(up, "step1", tmp_path, lambda: None).status == "done"


def test_a_killed_sampler_costs_a_gap(up: Engines, tmp_path: Path) -> None:
    record = attempt(up, "step4", tmp_path, kill("colo_lib.telemetry.sampler"), window_s=3.0)
    assert record.status == "done"
    (gap,) = record.telemetry.gaps
    assert "SIGKILL" in gap.reason
    assert gap.end_ns is not None


def test_a_killed_watcher_costs_the_rest_of_the_telemetry(up: Engines, tmp_path: Path) -> None:
    assert attempt(up, "step4", tmp_path, kill("colo_lib.telemetry.watchdog"), window_s=3.0).status == "done"


def test_a_killed_alternator_leaves_nobody_stopped(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, "step3", tmp_path, kill("alternate.py"), **LONG)
    assert isinstance(error, StepFailed)
    assert "alternator" in str(error)
    roots = [psutil.Process(pid) for pids in up.handles().pids().values() for pid in pids]
    assert wait_until(lambda: all(process.status() != psutil.STATUS_STOPPED for process in roots))
    assert attempt(up, "step2", tmp_path, lambda: None).status == "done"


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """A process group without its turn."""
    groups = WorkloadGroups("held", [pid])
    groups.hold()
    try:
        yield
    finally:
        groups.send(signal.SIGCONT)


def test_an_engine_without_its_turn_is_asked_until_it_has_one(up: Engines) -> None:
    handles = up.handles()
    assert handles.gen is not None
    with held(handles.gen.pid):
        loads = Loads(Handle("unused", os.getpid(), "unused"), ())
        turn = threading.Timer(ANSWER_S + 1, os.killpg, (handles.gen.pid, signal.SIGCONT))
        turn.start()
        counters = read_counters(specs(nano(), "step1").trial.window, loads, handles)
        turn.join()
    assert counters is not None
    assert counters.tokens > 0


def test_who_died_while_holding_an_engine_back_is_told(up: Engines, tmp_path: Path) -> None:
    handles, dead = up.handles(), Child("alternator", ["true"], tmp_path / "log")
    assert handles.gen is not None
    assert wait_until(lambda: not dead.running())
    with held(handles.gen.pid), pytest.raises(StepFailed, match="the alternator ended unasked"):
        read_counters(
            specs(nano(), "step1").trial.window, Loads(Handle("unused", os.getpid(), "unused"), (), [dead]), handles
        )


def test_an_embedder_answers_after_somebody_gave_up_on_it(up: Engines) -> None:
    embed = up.handles().embeds[0]
    with held(embed.pid), pytest.raises(TimeoutError):
        call(embed, "status", timeout_s=0.3)
    assert call(embed, "status", timeout_s=10.0)["error"] is None


def test_pacing_by_gens_gaps_leaves_its_trace(up: Engines, tmp_path: Path) -> None:
    # An SLO that nothing on this machine could miss: embed is held back by nothing.
    paced = {"embed_pacing": "slo", "embed_micro_batch_size": 2, "slo_gen_gap_ms": 60_000.0}
    record = attempt(up, "step2", tmp_path, lambda: None, **paced)
    assert record.status == "done", record.reason
    assert record.pacing.plain() == {"kind": "slo", "micro_batch_size": 2}
    trace = pq.read_table(tmp_path / "trial-1" / "pacing.parquet")
    assert sum(trace["gaps"].to_pylist()) > 0
    assert set(trace["duty"].to_pylist()) == {1.0}


def test_a_killed_pacer_fails_the_trial(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, "step2", tmp_path, kill("colo_lib.launch.pacing"), embed_pacing="slo", **LONG)
    assert isinstance(error, StepFailed)
    assert "pacer" in str(error)
    # And embed is not held back in the next one.
    assert attempt(up, "step4", tmp_path, lambda: None).embed_sequences_per_s > 0


def test_an_engine_that_hangs_is_told_in_time(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, "step1", tmp_path, kill("VLLM::EngineCore", signal.SIGSTOP), **LONG)
    kill("VLLM::EngineCore", signal.SIGCONT)()
    assert isinstance(error, StepFailed)
    assert "stall_timeout_s" in str(error)
    assert wait_until(lambda: attempt(up, "step1", tmp_path, lambda: None).status == "done")


def test_a_killed_embedder_is_told_with_its_log(up: Engines, tmp_path: Path) -> None:
    error = attempt(up, "step2", tmp_path, kill("embed_worker.py"), **LONG)
    assert isinstance(error, StepFailed)
    assert "embed" in str(error)
    assert status(tmp_path) == "failed"


def test_a_killed_engine_core_takes_the_server_along(up: Engines, tmp_path: Path) -> None:
    segments = mapped(token_carriers())
    assert segments, "vLLM's message queues"
    error = attempt(up, "step1", tmp_path, kill("VLLM::EngineCore"), **LONG)
    assert isinstance(error, StepFailed)
    up.stop()
    assert targets("VLLM::") == []
    assert not [path for path in segments if os.path.exists(path)]


def test_a_killed_server_leaves_no_engine_core_and_nothing_in_tmp(
    tmp_path: Path, engine_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, temporary = nano(), tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with runtime_folder() as runtime:
        engines = Engines(specs(params, "step1").engines, runtime, tmp_path)
        try:
            engines.start(want_gen=True, want_embed=False)
            error = attempt(engines, "step1", tmp_path, kill("vllm.entrypoints.openai.api_server"), **LONG)
            assert isinstance(error, StepFailed)
            # The guardian ends the orphans by itself, before anyone asks.
            assert wait_until(lambda: targets("VLLM::") == [])
        finally:
            engines.stop()
    assert list(temporary.iterdir()) == []


def start_only(params: Params, tmp_path: Path, gen: bool, embed: bool) -> Handles:
    with runtime_folder() as runtime:
        engines = Engines(specs(params, "step2").engines, runtime, tmp_path)
        try:
            return engines.start(want_gen=gen, want_embed=embed)
        finally:
            engines.stop()


def test_a_server_that_dies_while_starting_shows_its_own_last_lines(tmp_path: Path, engine_python: Path) -> None:
    with pytest.raises(StepFailed, match="no-such-flag"):
        start_only(nano(gen_extra_args="--no-such-flag"), tmp_path, gen=True, embed=False)


def test_an_embedder_that_dies_while_starting_shows_its_own_last_lines(tmp_path: Path, engine_python: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["NoSuch"], "model_type": "no-such-type", "vocab_size": 9}')
    with pytest.raises(StepFailed, match="no-such-type"):
        start_only(nano(embed_model=str(broken)), tmp_path, gen=False, embed=True)


def test_a_server_that_does_not_become_ready_is_ended_in_time(tmp_path: Path, engine_python: Path) -> None:
    with pytest.raises(StepFailed, match="ready_timeout_s = 2 s"):
        start_only(nano(ready_timeout_s=2.0), tmp_path, gen=True, embed=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB; mounting one needs root."""
    place_ = tmp_path / "small"
    place_.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place_)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place_
    subprocess.run(["umount", "-l", str(place_)], check=True)


def test_a_full_disk_is_told(
    small_disk: Path, tmp_path: Path, engine_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step4 = specs(nano(), "step4")
    with runtime_folder() as runtime:
        engines = Engines(step4.engines, runtime, tmp_path)
        try:
            handles = engines.start(want_gen=False, want_embed=True)
            with pytest.raises(InputError, match="disk full"):
                run_trial(step4.trial, handles, small_disk / "trial-1", 1)
            # Found out only while writing: what is left behind is not taken for a trial.
            monkeypatch.setattr(trial_module, "LEAST_FREE_BYTES", 0)
            with contextlib.suppress(OSError):
                (small_disk / "ballast").write_bytes(b"x" * 2**20)
            with pytest.raises((StepFailed, OSError), match="No space left"):
                run_trial(step4.trial, handles, small_disk / "trial-2", 2)
        finally:
            engines.stop()
    assert not (small_disk / "trial-2" / "embed.parquet").exists()
