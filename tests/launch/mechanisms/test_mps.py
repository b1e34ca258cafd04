"""MPS against a control daemon that behaves like the real one, its failures included; none leaves anything behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child
from colo_lib.launch.mechanisms import check_mechanism, mps, mps_control, verify
from colo_lib.launch.mechanisms.mps import Mps
from colo_lib.launch.mechanisms.mps_control import Control, ControlFailed, check_pipe, parse_pids
from colo_lib.launch.specs import Limits
from colo_lib.mechanism_records import MpsEvidence
from tests.launch.mechanisms.conftest import Nvidia, Tenant, cuda, tenants
from tests.processes import wait_until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a test, not of a GPU host."""
    monkeypatch.setattr(mps, "START_TIMEOUT_S", 4.0)
    monkeypatch.setattr(mps, "CLIENTS_GONE_S", 0.5)
    monkeypatch.setattr(mps, "QUIT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(mps, "DAEMON_GRACE_S", 1.0)


@contextmanager
def started(nvidia: Nvidia, runtime: Path, logs: Path, **changes: object) -> Iterator[Mps]:
    spec = cuda(gen_python=str(nvidia.python), **changes)
    up = Mps(spec, runtime, logs)
    try:
        yield up
    finally:
        up.close()
        assert not up.folder.exists()


def both(up: Mps, tenant: Tenant) -> tuple[Child, Child]:
    """Two engines that compute, seen by the server."""
    found = tenant("gen", up.environment("gen")), tenant("embed", up.environment("embed"))
    assert wait_until(lambda: [server for server in up.control.servers() if len(up.control.clients(server)) == 2])
    return found


def test_attachment_is_proved_by_pid(nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        evidence = verify(up.facts(), tenants(gen, embed))
        assert isinstance(evidence, MpsEvidence)
        assert evidence.attached == {"gen": [gen.pid], "embed": [embed.pid]}
        assert evidence.other_clients == []
        assert evidence.nvml_lists_them is True
        for folder in (up.folder, up.control.pipe, up.control.log):
            assert folder.stat().st_mode & 0o777 == 0o700
        gen.stop()
        embed.stop()
    assert nvidia.orders()[-1] == "quit"
    assert "Creating server" in (tmp_path / "mps-step2.log").read_text()


def test_other_limits_are_for_the_embedder_that_is_started_next(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        embed.stop()
        up.change(replace(up.spec, embed=replace(up.spec.embed, limits=Limits(25))))
        environment = up.environment("embed")
        assert environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
        assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in up.environment("gen")
        capped = tenant("embed", environment)
        assert wait_until(lambda: [server for server in up.control.servers() if len(up.control.clients(server)) == 2])
        evidence = verify(up.facts(), tenants(gen, capped))
        assert isinstance(evidence, MpsEvidence)
        assert evidence.attached == {"gen": [gen.pid], "embed": [capped.pid]}, "gen stayed the client that it was"
        assert evidence.limits["embed"].thread_percentage == 25


def test_an_engine_that_did_not_attach_voids_the_trial(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen = tenant("gen", up.environment("gen"))
        astray = tenant("embed", {})
        assert wait_until(lambda: up.control.servers())
        with pytest.raises(StepFailed, match=r"void: mps not attached: embed .* 0 of 1"):
            verify(up.facts(), tenants(gen, astray))


def test_a_rank_that_did_not_attach_voids_the_trial(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        with pytest.raises(StepFailed, match=r"void: mps not attached: gen .* 1 of 2"):
            verify(up.facts(), tenants(gen, embed, ranks=2))


def test_a_daemon_that_lists_nobody_voids_the_trial(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        nvidia.goes(lists_nobody=True)
        with pytest.raises(StepFailed, match="void: mps not attached"):
            verify(up.facts(), tenants(gen, embed))


def test_a_daemon_without_a_server_voids_the_trial(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    nvidia.goes(server="fails")
    with started(nvidia, runtime, tmp_path) as up, pytest.raises(StepFailed, match="has no server"):
        verify(up.facts(), tenants_of_nobody())


def tenants_of_nobody() -> object:
    from colo_lib.launch.mechanisms.base import EngineProcesses

    return EngineProcesses({"gen": [], "embed": []}, {"gen": 1, "embed": 1})


def test_a_fault_ends_both_with_one_cause(nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        nvidia.goes(status="FAULT")
        with pytest.raises(StepFailed, match=r"state FAULT: .* both workloads are void"):
            verify(up.facts(), tenants(gen, embed))


def test_a_server_that_dies_with_a_client_is_told(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    nvidia.goes(server="dies with a client")
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        evidence = verify(up.facts(), tenants(gen, embed))
        assert isinstance(evidence, MpsEvidence)
        facts = up.facts().joined(servers=evidence.servers)
        check_mechanism(facts)
        embed.stop()
        assert wait_until(lambda: not up.control.servers())
        with pytest.raises(StepFailed, match="client died with work in flight"):
            check_mechanism(facts)


def test_a_server_of_another_user_is_told(nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant) -> None:
    if os.getuid():
        pytest.skip("only root can start a server as another user")
    nvidia.goes(server_uid=65534)
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        with pytest.raises(StepFailed, match=r"runs as uid 65534, we are uid 0: .* one user"):
            verify(up.facts(), tenants(gen, embed))


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ({"start": "dies"}, "ended while starting"),
        ({"start": "hangs"}, "did not answer within"),
        ({"probe": {"error": 805, "name": "CUDA_ERROR_MPS_CONNECTION_FAILED"}}, "805.*run all as one user"),
        ({"probe": {"error": 46, "name": "CUDA_ERROR_DEVICE_UNAVAILABLE"}}, "46.*holds the GPU exclusively"),
        ({"probe": "says nothing"}, "ended without an answer"),
        ({"gpus": 2}, "sees 2 GPUs where it should see 1"),
    ],
)
def test_a_daemon_that_does_not_come_up_is_told(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, scenario: dict[str, object], told: str
) -> None:
    nvidia.goes(**scenario)
    with pytest.raises(StepFailed, match=f"(?s){told}") as error, started(nvidia, runtime, tmp_path):
        pass
    assert "Starting control daemon" in str(error.value) or "CUDA_VISIBLE_DEVICES" in str(error.value)
    assert list(runtime.iterdir()) == [runtime / "owner.json"]


def test_a_first_client_that_waits_for_ever_is_told(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia.goes(probe="hangs")
    monkeypatch.setattr("colo_lib.launch.mechanisms.base.probe.__defaults__", (1.0,))
    with pytest.raises(StepFailed, match=r"no context within 1 s: .* one user"), started(nvidia, runtime, tmp_path):
        pass


def test_a_wedged_daemon_is_told_in_time_and_ended(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        nvidia.goes(hangs_at="get_client_list")
        monkeypatch.setattr(Control.ask, "__defaults__", (1.0,))
        with pytest.raises(ControlFailed, match="did not answer 'get_client_list"):
            verify(up.facts(), tenants(gen, embed))


@pytest.mark.parametrize("scenario", [{"hangs_at": "quit"}, {"quit": "leaves the server"}, {"ignores_SIGTERM": True}])
def test_what_quit_leaves_is_ended(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant, scenario: dict[str, object]
) -> None:
    nvidia.goes(**scenario)
    with started(nvidia, runtime, tmp_path) as up:
        gen, embed = both(up, tenant)
        ours = [up.child.pid, up.child.guardian_pid, *up.control.servers()]
        gen.stop()
        embed.stop()
    assert not any(psutil.pid_exists(pid) for pid in ours)


def test_clients_that_stay_do_not_keep_the_daemon(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant
) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        both(up, tenant)
        daemon = up.child.pid
    assert not psutil.pid_exists(daemon)


def test_a_killed_daemon_takes_its_server_along(nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        both(up, tenant)
        facts, servers = up.facts(), up.control.servers()
        os.kill(up.child.pid, signal.SIGKILL)
        assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in servers))
        with pytest.raises(StepFailed, match="ended: both workloads' results are void"):
            check_mechanism(facts)


def test_limits_reach_the_client_they_are_for(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    with started(
        nvidia, runtime, tmp_path,
        mps_embed_thread_percentage=50, mps_embed_priority="below-normal", mps_gen_memory_gib=40.0,
    ) as up:  # fmt: skip
        gen, embed = up.environment("gen"), up.environment("embed")
        limits = up.facts().limits
    assert embed["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert embed["CUDA_MPS_CLIENT_PRIORITY"] == "1"
    assert gen["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=40960M"
    assert {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_CLIENT_PRIORITY"}.isdisjoint(gen)
    assert limits["gen"].visible_sms == [132]
    assert limits["embed"].visible_sms == [66]


def test_clients_name_their_gpus_as_the_daemon_numbers_them(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    nvidia.has(devices=3)
    with started(nvidia, runtime, tmp_path, devices="0,1", step="configB") as up:
        assert up.environment("gen")["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert up.environment("embed", 1)["CUDA_VISIBLE_DEVICES"] == "1"
        assert len(up.uuids) == 2
    with started(nvidia, runtime, tmp_path, devices="2") as up:
        # Ordinal 0 of the daemon is GPU 2 of NVML, by which vLLM asks too: only the UUID means the same to both.
        assert up.environment("gen")["CUDA_VISIBLE_DEVICES"] == "GPU-00000000-0000-0000-0000-000000000002"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"nvmlDeviceGetMigMode": [1, 1]}, r"MIG mode.*-mig 0"),
        ({"nvmlDeviceGetComputeMode": 2}, r"compute mode.*-c DEFAULT"),
    ],
)
def test_a_gpu_that_admits_no_server_is_told(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, answers: dict[str, object], told: str
) -> None:
    nvidia.has(answers=answers)
    with pytest.raises(StepFailed, match=f"(?s){told}"), started(nvidia, runtime, tmp_path):
        pass
    assert nvidia.orders() == []


def test_no_control_program_is_told(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cuda()
    monkeypatch.setattr(mps_control.shutil, "which", lambda _: None)
    with pytest.raises(StepFailed, match=r"no nvidia-cuda-mps-control on PATH.*leave step2, mps-alone, .* out"):
        Mps(spec, runtime, tmp_path)


def test_the_machines_own_daemon_is_never_spoken_to(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        assert str(up.control.pipe).startswith(str(runtime))
        daemon = psutil.Process(up.child.pid).environ()
    assert daemon["CUDA_MPS_PIPE_DIRECTORY"].startswith(str(runtime))


def test_a_pipe_folder_that_is_too_long_is_refused(tmp_path: Path) -> None:
    check_pipe(Path("/tmp/colo-12345678/mps/pipe"))
    with pytest.raises(StepFailed, match="at most 80"):
        check_pipe(tmp_path / ("x" * 80))


@pytest.mark.parametrize("text", ["CUDA_ERROR_UNKNOWN", "12\nFailed to terminate", "12 13", "-1"])
def test_a_message_is_not_a_list_of_nobody(text: str) -> None:
    with pytest.raises(ControlFailed, match="list of pids"):
        parse_pids(text)


def test_success_with_an_error_in_its_words_is_none(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    with started(nvidia, runtime, tmp_path) as up:
        nvidia.goes(answers={"get_server_status": "CUDA_ERROR_MPS_RPC_FAILURE"})
        with pytest.raises(ControlFailed, match=r"exit code 0.*CUDA_ERROR_MPS_RPC_FAILURE"):
            up.control.status(1)
        nvidia.goes()


def test_pids_are_read_a_line_each() -> None:
    assert parse_pids("12\n 345 \n\n") == [12, 345]
    assert parse_pids("") == []


def test_a_daemon_that_outlived_its_launcher_is_ended_by_the_next(nvidia: Nvidia, tmp_path: Path) -> None:
    from colo_lib.launch import rpc as runtime_module

    with runtime_module.runtime_folder() as folder:
        pipe = folder / "mps" / "pipe"
        pipe.mkdir(parents=True)
        env = child_environment(Control(pipe, folder / "mps").environment())
        left = Child("left", [str(nvidia.folder / mps_control.PROGRAM), "-f"], tmp_path / "left.log", env=env)
        assert wait_until((pipe / "control").exists)
        (folder / "owner.json").write_text('{"pid": 1, "started": 0.0}')
        runtime_module.remove_stale()
        assert wait_until(lambda: not left.running())
        assert not folder.exists()
        left.stop()


def test_the_folder_of_a_dead_daemon_is_told(nvidia: Nvidia, runtime: Path) -> None:
    (runtime / "nvidia-cuda-mps-control.pid").write_text("4194303\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "control"))
    with pytest.raises(ControlFailed, match="Cannot find MPS control daemon"):
        Control(runtime, runtime).ask("get_server_list")
