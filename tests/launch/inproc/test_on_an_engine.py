"""The embedder in the worker of the real vLLM, on cores: what is proved, what goes wrong, and what is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from colo_lib.errors import StepFailed
from colo_lib.launch import load
from colo_lib.launch.embed_thread import ThreadHandle
from colo_lib.launch.engines import Engines, from_plain
from colo_lib.launch.inproc.names import THREAD_NAME
from colo_lib.launch.mechanisms.base import process_tree
from colo_lib.launch.pacing import StartOrder
from colo_lib.launch.rpc import call, runtime_folder
from colo_lib.launch.specs import EngineSpec, specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.launch.vllm_server import GenServer
from colo_lib.mechanism_records import HostedEmbed, InProcessEvidence
from colo_lib.params import check
from colo_lib.placement import placement_of
from colo_lib.records import Trial
from tests.launch.test_faults import nano

pytestmark = pytest.mark.engine
# Several starts of other tests' engines beside it must not fail this one.
PATIENT = {"ready_timeout_s": 900.0, "stall_timeout_s": 60.0}


def specs(step: str, **changes: Any) -> Any:
    params = nano(**(PATIENT | {"inproc_embed_sms": "1,2", "window_s": 4.0} | changes))
    return specs_of(params, placement_of(step, params))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, engine_python: Path) -> Iterator[Engines]:
    """A server with its embedder, once for the module; what it does not outlive comes last."""
    with runtime_folder() as runtime:
        engines = Engines(specs("inproc-alone").engines, runtime, tmp_path_factory.mktemp("logs"))
        try:
            engines.start(want_gen=True, want_embed=False)  # it is there all the same
            yield engines
        finally:
            engines.stop()


def trial(engines: Engines, step: str, folder: Path, **changes: Any) -> Trial:
    return run_trial(specs(step, **changes).trial, engines.handles(), folder / "trial-1", 1)


def host_of(record: Trial) -> HostedEmbed:
    assert record.mechanism_evidence is not None
    evidence = record.mechanism_evidence.after
    assert isinstance(evidence, InProcessEvidence)
    (host,) = evidence.hosts
    return host


def embed_with(spec: EngineSpec, **changes: Any) -> EngineSpec:
    return replace(spec, embed=replace(spec.embed, **changes))


def test_it_is_a_thread_of_the_servers_worker_and_does_the_same_work(up: Engines, tmp_path: Path) -> None:
    record = trial(up, "inproc", tmp_path)
    assert record.status == "done", record.reason
    assert (record.gen_tokens_per_s or 0) > 0
    assert (record.embed_sequences_per_s or 0) > 0
    host, handles = host_of(record), up.handles()
    assert handles.gen is not None
    assert host.pid in process_tree(handles.gen.pid)
    assert Path(f"/proc/{host.pid}/task/{host.tid}/comm").read_text().strip() == THREAD_NAME
    assert record.pids == {"gen": [handles.gen.pid], "embed": [host.pid]}
    assert [(lane.wanted, lane.held_sms) for lane in host.lanes] == [(1, 1), (2, 2)]
    assert host.passes[0][1] > 0  # fixed: on the first size
    assert host.passes[1][1] == 0
    assert (host.gaps or 0) > 0
    # What a process holds is counted once.
    assert record.memory_gib["embed"] is None
    assert record.memory_gib["gen"] > 0
    assert from_plain(handles.plain()) == handles


def test_idle_it_is_loaded_and_given_no_work(up: Engines, tmp_path: Path) -> None:
    record = trial(up, "inproc-alone", tmp_path)
    assert record.status == "done", record.reason
    assert record.embed_sequences is None
    assert (record.gen_tokens_per_s or 0) > 0
    host = host_of(record)
    (handle,) = up.handles().embeds
    assert (handle.pid, handle.tid) == (host.pid, host.tid)  # type: ignore[union-attr]


def test_by_phase_it_waits_for_the_engines_prompts(up: Engines, tmp_path: Path) -> None:
    record = trial(up, "inproc", tmp_path, inproc_policy="phase", gen_prompt_tokens=200, gen_output_tokens=2)
    host = host_of(record)
    assert host.policy == "phase"
    assert (host.prefill_steps or 0) > 0
    assert (host.phase_waits or 0) > 0
    assert (record.embed_sequences or 0) > 0


@pytest.mark.parametrize(("slo_ms", "size"), [(1e5, 2), (0.001, 1)])
def test_by_slo_it_takes_the_cores_that_gens_steps_leave(up: Engines, tmp_path: Path, slo_ms: float, size: int) -> None:
    record = trial(up, "inproc", tmp_path, inproc_policy="slo", slo_gen_gap_ms=slo_ms, embed_batch_size=1, warmup_s=4.0)
    host = host_of(record)
    assert (host.policy, host.size) == ("slo", size)
    assert (host.late_gaps or 0) > 0 if size == 1 else host.late_gaps == 0


def test_an_error_of_a_pass_fails_the_trial_alone(up: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as bad:
        bad.setattr(load, "start_order", lambda *_: StartOrder(duty=1.0, micro_batch_size=-1, stall_s=0.0))
        with pytest.raises(StepFailed, match=r"embed: RuntimeError: split"):
            trial(up, "inproc", tmp_path)
    assert isinstance(up.gen, GenServer)
    assert up.gen.works()
    assert trial(up, "inproc", tmp_path / "next").status == "done"


@pytest.mark.parametrize("bad", ["no such model", "more memory than there is"])
def test_an_embedder_that_does_not_load_leaves_gen_as_it_was(up: Engines, tmp_path: Path, bad: str) -> None:
    good, gen = up.spec, up.handles().gen
    broken = embed_with(good, model=str(tmp_path)) if bad == "no such model" else embed_with(good, batch_size=10**12)
    with pytest.raises(StepFailed, match=r"the thread in vLLM's worker failed: .*(config.json|memory)"):
        up.change_embed(broken)
    assert isinstance(up.gen, GenServer)
    assert up.gen.works()
    up.change_embed(good)
    assert up.handles().gen == gen
    assert trial(up, "inproc", tmp_path).status == "done"


def test_other_sizes_need_no_other_server(up: Engines) -> None:
    gen, before = up.handles().gen, up.spec
    handles = up.change_embed(embed_with(before, sizes=(2,)))
    evidence = handles.evidence()
    assert isinstance(evidence, InProcessEvidence)
    assert [lane.wanted for lane in evidence.hosts[0].lanes] == [2]
    assert handles.gen == gen
    up.change_embed(before)


def test_lanes_that_nobody_asked_for_are_no_proof(up: Engines) -> None:
    facts = up.handles().mechanism
    assert facts is not None
    with pytest.raises(StepFailed, match=r"void: .* has lanes for \[1, 2\]"):
        replace(up.handles(), mechanism=facts.joined(sizes=[3])).evidence()
    gen = up.handles().gen
    assert gen is not None
    elsewhere = replace(up.handles(), gen=replace(gen, pid=os.getppid()), mechanism=facts.joined(sockets=[]))
    assert elsewhere.evidence() is not None


def test_a_killed_worker_is_told_and_leaves_nothing(up: Engines, tmp_path: Path) -> None:
    (handle,) = up.handles().embeds
    assert isinstance(handle, ThreadHandle)
    assert handle.pid is not None
    threading.Timer(1.5, os.kill, (handle.pid, signal.SIGKILL)).start()
    with pytest.raises(StepFailed, match=r"gen|embed"):
        trial(up, "inproc", tmp_path, window_s=60.0)
    assert not psutil.pid_exists(handle.pid) or psutil.Process(handle.pid).status() == psutil.STATUS_ZOMBIE
    up.stop()


def test_an_order_while_all_ends_hangs_nobody(tmp_path: Path, engine_python: Path) -> None:
    with runtime_folder() as runtime:
        engines = Engines(specs("inproc").engines, runtime, tmp_path)
        try:
            (handle,) = engines.start(want_gen=True, want_embed=True).embeds
            call(handle, "start")  # type: ignore[arg-type]
            ended: list[BaseException] = []

            def insist() -> None:
                try:
                    while True:
                        call(handle, "status", timeout_s=20)  # type: ignore[arg-type]
                except (OSError, ValueError) as error:
                    ended.append(error)

            asking = threading.Thread(target=insist)
            asking.start()
            began_s = time.monotonic()
            engines.stop()
            asking.join(30)
            assert ended
            assert time.monotonic() - began_s < 60
        finally:
            engines.stop()
        assert not list(runtime.glob("embed*"))


def test_with_two_ranks_each_worker_has_its_embedder(tmp_path: Path, engine_python: Path) -> None:
    both = specs("configB-inproc", inproc_embed_sms="1")
    with runtime_folder() as runtime:
        engines = Engines(both.engines, runtime, tmp_path)
        try:
            handles = engines.start(want_gen=True, want_embed=True)
            evidence = handles.evidence()
            assert isinstance(evidence, InProcessEvidence)
            assert [host.rank for host in evidence.hosts] == [0, 1]
            record = run_trial(both.trial, handles, tmp_path / "trial-1", 1)
            assert record.status == "done", record.reason
            assert record.pids == {"gen": handles.pids()["gen"], "embed": [host.pid for host in evidence.hosts]}
            assert isinstance(record.mechanism_evidence.after, InProcessEvidence)  # type: ignore[union-attr]
            assert all(sum(count for _, count in host.passes) for host in record.mechanism_evidence.after.hosts)  # type: ignore[union-attr]
        finally:
            engines.stop()


def test_a_server_of_the_embedders_own_is_refused_before_anything_starts() -> None:
    from colo_lib.errors import InputError
    from colo_lib.launch.preflight import preflight_embed

    params = check({"embed_engine": "vllm", "steps": "inproc"}, "test")
    with pytest.raises(InputError, match="set embed_engine: transformers"):
        preflight_embed([specs_of(params, placement_of("inproc", params)).engines])
