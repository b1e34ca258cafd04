"""Time slices, MIG instances and SM partitions: proved, or told why not; an absent one is skipped, never measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.hardware.nvml import MigDevice
from colo_lib.launch import engines
from colo_lib.launch.embed_server import embed_environment
from colo_lib.launch.mechanisms import sm_hold, start_mechanism, time_slicing, verify
from colo_lib.launch.mechanisms.mig import Mig, select_instances
from colo_lib.launch.mechanisms.sm_partition import NotHere, check_scaling
from colo_lib.launch.mechanisms.time_slicing import TimeSlicing
from colo_lib.launch.rpc import Handle
from colo_lib.launch.vllm_server import gen_environment
from colo_lib.mechanism_records import MigEvidence, MpsFacts, Partition, TimeSlicedEvidence
from tests.launch.mechanisms.conftest import Nvidia, Tenant, cuda, tenants

TWO = [{"uuid": "MIG-b", "sms": 60, "gib": 71}, {"uuid": "MIG-a", "sms": 60, "gib": 71}]
THREE = [*TWO, {"uuid": "MIG-c", "sms": 16, "gib": 18}]
LISTED = [MigDevice(profile="p", **one) for one in THREE]


def test_the_absence_of_mps_is_proved(nvidia: Nvidia, runtime: Path, tenant: Tenant) -> None:
    spec = cuda("step3")
    slices = start_mechanism(spec, runtime, runtime)
    assert isinstance(slices, TimeSlicing)
    gen, embed = (tenant(name, slices.environment(name)) for name in ("gen", "embed"))
    evidence = verify(slices.facts(), tenants(gen, embed))
    assert isinstance(evidence, TimeSlicedEvidence)
    assert evidence.mps_clients_by_nvml == []
    assert evidence.mps_variables == {}
    slices.close()
    assert nvidia.orders() == []


def test_a_client_of_mps_voids_a_time_sliced_trial(nvidia: Nvidia, runtime: Path, tenant: Tenant) -> None:
    slices = TimeSlicing(cuda("step3").placement, runtime)
    gen, embed = tenant("gen", {}), tenant("embed", {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps"})
    with pytest.raises(StepFailed, match=r"void: pid \d+ carries .*nvidia-mps"):
        verify(slices.facts(), tenants(gen, embed))
    nvidia.has(mps_processes=[[gen.pid, 0]])
    with pytest.raises(StepFailed, match=rf"void: pids \[{gen.pid}\] are MPS clients by NVML"):
        verify(slices.facts(), tenants(gen, gen))


def test_what_nvml_does_not_tell_is_no_proof_of_absence(nvidia: Nvidia, runtime: Path, tenant: Tenant) -> None:
    nvidia.has(fail={"nvmlDeviceGetMPSComputeRunningProcesses": "NotSupported"})
    slices = TimeSlicing(cuda("step3").placement, runtime)
    gen = tenant("gen", {})
    evidence = verify(slices.facts(), tenants(gen, gen))
    assert isinstance(evidence, TimeSlicedEvidence)
    assert str(evidence.mps_clients_by_nvml).startswith("could not look")


def test_a_daemon_of_the_machine_cannot_be_attached_to(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr(time_slicing, "DEFAULT_PIPE", tmp_path)
    slices = TimeSlicing(cuda("step3").placement, runtime)
    gen = tenant("gen", slices.environment("gen"))
    pipe = Path(slices.environment("gen")["CUDA_MPS_PIPE_DIRECTORY"])
    assert list(pipe.iterdir()) == []
    assert verify(slices.facts(), tenants(gen, gen))
    assert (tmp_path / "control").exists()


@pytest.mark.parametrize(
    ("nvml", "told"),
    [({"answers": {"nvmlDeviceGetComputeMode": 3}}, "EXCLUSIVE_PROCESS.*-c DEFAULT"), ({"mig": TWO}, "MIG mode")],
)
def test_a_gpu_that_cannot_be_shared_plainly_is_told(
    nvidia: Nvidia, runtime: Path, nvml: dict[str, object], told: str
) -> None:
    nvidia.has(**nvml)
    with pytest.raises(StepFailed, match=told):
        TimeSlicing(cuda("step3").placement, runtime)


def test_each_workload_gets_an_instance_of_its_own(nvidia: Nvidia, tenant: Tenant) -> None:
    spec = cuda("mig", gen_gpu_memory_utilization=0.45)
    nvidia.has(mig=THREE)
    mig = Mig(spec)
    assert (mig.environment("gen"), mig.environment("embed")) == (
        {"CUDA_VISIBLE_DEVICES": "MIG-a"},
        {"CUDA_VISIBLE_DEVICES": "MIG-b"},
    )
    # 0.45 of the whole GPU's 80 GiB are 36 of the instance's 71.
    assert mig.adjusted(spec.gen).gpu_memory_utilization == pytest.approx(36 / 71, abs=1e-3)
    gen, embed = (tenant(name, mig.environment(name)) for name in ("gen", "embed"))
    nvidia.has(mig=[TWO[0] | {"pids": [embed.pid]}, TWO[1] | {"pids": [gen.pid]}])
    evidence = verify(mig.facts(), tenants(gen, embed))
    assert isinstance(evidence, MigEvidence)
    assert evidence.instances["gen"].profile == "3g.71gb"
    assert evidence.listed_by_nvml == {"gen": [gen.pid], "embed": [embed.pid]}
    nvidia.has(mig=[TWO[0] | {"pids": [embed.pid, gen.pid]}, TWO[1]])
    with pytest.raises(StepFailed, match=r"void: gen .* is not on its MIG instance MIG-a alone"):
        verify(mig.facts(), tenants(gen, embed))
    nvidia.has(mig=TWO[:1])
    with pytest.raises(StepFailed, match="MIG-a of gen is gone"):
        verify(mig.facts(), tenants(gen, embed))


def test_named_instances_come_first() -> None:
    wanted = cuda("mig", mig_embed_uuid="MIG-a").gen.mechanism.instances
    assert wanted is not None
    assert {name: one.uuid for name, one in select_instances(wanted, LISTED, "0").items()} == {
        "embed": "MIG-a",
        "gen": "MIG-b",
    }
    with pytest.raises(StepSkipped, match=r"mig_gen_uuid' = 'MIG-x': GPU 0 has MIG-b"):
        select_instances(("MIG-x", ""), LISTED, "0")


@pytest.mark.parametrize(
    ("nvml", "told"),
    [({}, "not in MIG mode; .*-mig 1"), ({"mig": TWO[:1]}, "has 1 MIG instances, the step needs two; .*-cgi")],
)
def test_without_two_instances_the_step_is_skipped_with_the_commands(
    nvidia: Nvidia, nvml: dict[str, object], told: str
) -> None:
    nvidia.has(**nvml)
    with pytest.raises(StepSkipped, match=told):
        Mig(cuda("mig"))


def partition(nvidia: Nvidia, runtime: Path, logs: Path, **changes: object) -> tuple[Partition, Any, dict[str, str]]:
    """The partition that was found, embed's job and its environment; the mechanism is ended."""
    spec = cuda("sm-partition", gen_python=str(nvidia.python), **changes)
    found = start_mechanism(spec, runtime, logs)
    assert found is not None
    facts, job, environment = found.facts(), found.embed_job(), found.environment("embed")
    found.close()
    assert isinstance(facts, MpsFacts)
    assert facts.partition is not None
    return facts.partition, job, environment


def test_a_green_context_comes_first(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    found, job, _ = partition(nvidia, runtime, tmp_path)
    assert found.plain() == {
        "backend": "green-context", "all_sms": 132, "held_sms": 32,
        "slowdown_demanded": pytest.approx(4.125), "slowdown_measured": pytest.approx(4.125),
    }  # fmt: skip
    assert job["hold"]["sms"] == 32
    assert nvidia.orders()[-1] == "quit"


def test_a_hold_that_does_not_hold_is_passed_over(nvidia: Nvidia, runtime: Path, tmp_path: Path) -> None:
    nvidia.goes(hold={"green-context": {"factor": 0.25}})
    found, job, environment = partition(nvidia, runtime, tmp_path)
    assert found.backend == "mps-static"
    assert environment["CUDA_MPS_SM_PARTITION"].endswith("x4")
    assert job == {}


def test_every_backends_reason_is_told(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLO_LIBSMCTRL", raising=False)
    nvidia.goes(partitions="no option", hold={"green-context": {"error": "cuda-bindings does not import"}})
    with pytest.raises(StepSkipped) as skipped:
        partition(nvidia, runtime, tmp_path)
    for told in (
        "green-context: cuda-bindings",
        "mps-static: mps: this driver's nvidia-cuda-mps-control has no static partitions",
        "libsmctrl: no libsmctrl",
    ):
        assert told in str(skipped.value)
    assert list(runtime.iterdir()) == [runtime / "owner.json"]


def test_the_users_library_is_tried(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLO_LIBSMCTRL", "/opt/libsmctrl.so")
    _, job, _ = partition(nvidia, runtime, tmp_path, sm_partition_backend="libsmctrl", sm_partition_embed_sms=30)
    assert job["hold"]["library"] == "/opt/libsmctrl.so"


@pytest.mark.parametrize(("held_ms", "holds"), [(4.1, True), (3.0, True), (2.8, False), (1.0, False), (7.0, False)])
def test_scaling_decides(held_ms: float, holds: bool) -> None:
    if holds:
        assert check_scaling(132, 32, 1.0, held_ms).slowdown_measured == held_ms
    else:
        with pytest.raises(NotHere, match="does not hold"):
            check_scaling(132, 32, 1.0, held_ms)


def test_a_check_without_torch_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", sm_hold.__file__, '{"backend": "green-context", "sms": 8}'],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "torch" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize("step", ["mig", "sm-partition"])
def test_cores_have_neither(runtime: Path, step: str) -> None:
    spec = cuda(step, device="cpu")
    with pytest.raises(StepSkipped, match="cores stand in"):
        start_mechanism(spec, runtime, runtime)


LIMITS = [
    f"CUDA_MPS_{name}" for name in ("PIPE_DIRECTORY", "ACTIVE_THREAD_PERCENTAGE", "CLIENT_PRIORITY", "SM_PARTITION")
]


@given(st.dictionaries(st.sampled_from(LIMITS), st.from_regex(r"[a-z0-9/]{1,20}", fullmatch=True), min_size=1))
def test_nothing_of_mps_is_inherited_from_the_callers_shell(shell: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shell.items():
            patch.setenv(name, value)
        spec = cuda("step1")
        for found in (gen_environment(spec.gen, "key"), embed_environment(spec.embed, ("0",))):
            assert not [name for name in found if name.startswith("CUDA_MPS_")]


def test_nvlink_multicast_stays_off_unless_the_caller_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cuda("configB", devices="0,1")
    monkeypatch.delenv("NCCL_NVLS_ENABLE", raising=False)
    assert gen_environment(spec.gen, "key")["NCCL_NVLS_ENABLE"] == "0"
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    assert gen_environment(spec.gen, "key")["NCCL_NVLS_ENABLE"] == "1"


def test_engines_start_one_after_the_other(
    nvidia: Nvidia, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Engine:
        """Notes when it is started, whether it waits for its turn on the device, and when it is ready."""

        def __init__(self, *words: object) -> None:
            self.name = "embed" if isinstance(words[1], tuple) else "gen"
            self.handle = Handle("socket", 1, "log")
            waits = any(isinstance(word, dict) and "gate" in word for word in words)
            told.append(f"{self.name} starts" + ", off the device" * waits)

        def wait_ready(self, _: object) -> float:
            told.append(f"{self.name} is ready")
            return 0.0

        def stop(self) -> None:
            told.append(f"{self.name} ends")

    monkeypatch.setattr(engines, "GenServer", Engine)
    monkeypatch.setattr(engines, "EmbedProcess", Engine)
    spec = cuda("configA", devices="0,1", gen_python=str(nvidia.python))
    nvidia.has(devices=2)
    both = engines.Engines(spec, runtime, tmp_path)
    both.start(want_gen=True, want_embed=True)
    both.stop()
    assert told == [
        "gen starts", "embed starts, off the device", "gen is ready", "embed is ready", "embed ends", "gen ends",
    ]  # fmt: skip
