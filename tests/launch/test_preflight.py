"""What is told before a run, and who voids a trial: strangers by descent, whatever NVML leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.errors import InputError
from colo_lib.hardware.nvml import GpuLook, GpuRow
from colo_lib.launch.preflight import about, preflight
from colo_lib.launch.trial import device_doubts
from colo_lib.params import Params, check, split_list
from colo_lib.placement import placement_of
from colo_lib.telemetry.other_processes import OtherProcess, OtherProcesses, Seen, in_window
from colo_lib.telemetry.readings import Telemetry

PLAIN: dict[str, Any] = {
    "index": 0, "uuid": "GPU-a", "name": "NVIDIA H200", "mig": False, "compute_mode": 0, "power_limit_w": 700.0,
    "power_limit_default_w": 700.0, "clock_event_reasons": 1, "persistence": True, "ecc": True,
    "compute_processes": [], "mps_processes": [],
}  # fmt: skip
CUDA = check({"device": "cuda", "devices": "0", "steps": "step1,step2,step3,step4"}, "test")


def told(params: Params, gpu: dict[str, Any]) -> list[str]:
    """What `preflight` says of a run on one GPU."""
    placements = [placement_of(step, params) for step in params.step_names()]
    return preflight(split_list(params.devices), placements, GpuLook("ok", gpus=[GpuRow.from_plain(gpu)]))


@pytest.fixture
def other() -> Iterator[int]:
    """A process that is a child of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_plain_gpu_needs_no_words() -> None:
    assert told(CUDA, PLAIN) == []


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"mps_processes": [{"pid": 4194303, "gib": None}]}, "not visible here (pid 4194303)"),
        ({"clock_event_reasons": 0x4 | 0x40}, "the power limit holds"),
        ({"power_limit_w": 500.0}, "500 W of 700 (nvidia-smi -pl 700"),
        ({"power_limit_w": 650.0, "power_limit_default_w": 650.0}, "datasheet says 700"),
        ({"persistence": False}, "nvidia-smi -pm 1"),
        ({"ecc": False}, "ECC is off"),
    ],
)
def test_what_is_in_the_way_is_told_with_the_remedy(facts: dict[str, Any], told: str) -> None:
    assert any(told in sentence for sentence in about(GpuRow.from_plain(PLAIN | facts))), facts


def test_a_process_on_the_gpu_is_named_with_its_memory() -> None:
    facts = {"compute_processes": [{"pid": os.getpid(), "gib": 2.0}]}
    assert any(f"pid {os.getpid()}, 2.0 GiB" in line for line in about(GpuRow.from_plain(PLAIN | facts)))


def test_what_nvml_does_not_tell_is_left_out() -> None:
    assert about(GpuRow(0)) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"compute_mode": 3}, "step1: .*EXCLUSIVE_PROCESS"), ({"mig": True}, "step1: .*MIG mode.*-mig 0")],
)
def test_a_mode_that_rules_a_step_out_is_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        told(CUDA, PLAIN | facts)


def test_mps_alone_may_have_the_gpu_exclusively() -> None:
    params = CUDA.model_copy(update={"steps": "step2"})
    assert told(params, PLAIN | {"compute_mode": 3}) == []


def test_ours_are_known_by_descent(other: int) -> None:
    strangers = OtherProcesses(os.getpid())
    assert strangers.look([os.getpid(), other], 1) is None
    line = strangers.look([os.getpid(), other, 1], 2)
    assert line is not None
    assert [one.pid for one in line.strangers] == [1]
    assert line.unknown is None
    assert strangers.look([other, 1], 3) is None
    assert strangers.look([other], 4) == Seen(4, ())


def test_our_own_that_ended_is_no_stranger_afterwards(other: int) -> None:
    strangers = OtherProcesses(os.getpid())
    strangers.look([other], 1)
    os.kill(other, 9)
    os.waitpid(other, 0)
    assert strangers.look([other], 2) is None


def test_pids_of_another_namespace_say_nothing() -> None:
    line = OtherProcesses(os.getpid()).look([4194302, 4194303], 1)
    assert line is not None
    assert "namespace" in str(line.unknown)
    assert in_window([line], 0, 10) == []


def test_a_stranger_in_the_window_makes_the_trial_invalid() -> None:
    seen = [
        Seen(10, (OtherProcess(7, "train of ann"),)),
        Seen(20, ()),
    ]
    told = Telemetry(seen=seen)
    assert device_doubts(told, 0, 10) == device_doubts(told, 20, 30) == []
    (doubt,) = device_doubts(told, 15, 30)
    assert "train of ann (pid 7)" in doubt


@given(st.lists(st.tuples(st.integers(0, 100), st.sets(st.integers(1, 5))), max_size=8), st.integers(0, 90))
def test_whoever_was_there_at_any_time_is_found(changes: list[tuple[int, set[int]]], start: int) -> None:
    lines = [
        Seen(t, tuple(OtherProcess(pid, "x") for pid in sorted(pids))) for t, pids in sorted(dict(changes).items())
    ]
    expected = set()
    for moment in range(start, start + 10):
        before = [line for line in lines if line.t_ns <= moment]
        expected |= {one.pid for one in before[-1].strangers} if before else set()
    assert {one.pid for one in in_window(lines, start, start + 10)} == expected
