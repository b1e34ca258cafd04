"""Telemetry against a stand-in NVML that refuses, lies, hangs and crashes: null with a reason, never a failed trial."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.data.run import read_frame
from colo_lib.launch.child import Child
from colo_lib.launch.trial import device_doubts
from colo_lib.paths import REPOSITORY
from colo_lib.records import TelemetryCost
from colo_lib.telemetry.readings import Telemetry, convert, read_lines
from colo_lib.telemetry.sampler import next_due
from colo_lib.telemetry.watchdog import SamplerJob
from tests.processes import wait_until

STAND_IN = Path(__file__).parents[1] / "standins" / "pynvml.py"
EVERYTHING = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "energy_mj", "temperature_c", "throttle_reasons",
              "utilization", "memory_utilization", "memory_used_gib", "sm_active", "sm_occupancy", "tensor_active",
              "dram_active", "nvlink_gib_s")  # fmt: skip


@contextmanager
def sampling(folder: Path, **behaviour: Any) -> Iterator[Path]:
    """The watched sampler on a GPU that behaves so; yields the file of its lines and ends it after the block."""
    shutil.copy(STAND_IN, folder / "pynvml.py")
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    lines = folder / "telemetry.jsonl"
    job = SamplerJob(str(lines), 15.0, "cuda", ["0"], {"gen": [os.getpid()]}, os.getpid())
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    command = [sys.executable, "-m", "colo_lib.telemetry.watchdog", json.dumps(asdict(job))]
    child = Child("telemetry", command, folder / "telemetry.log", env=environment, grace_s=1.0)
    try:
        yield lines
    finally:
        child.stop()


def sampled(folder: Path, enough: Callable[[Telemetry], Any] | None = None, **behaviour: Any) -> Telemetry:
    """What was told once `enough` held (a few samples, if nothing else is asked)."""
    with sampling(folder, **behaviour) as lines:
        until = enough or (lambda told: len(device_rows(told)) > 4)
        assert wait_until(lambda: until(read_lines(lines)), 30), (folder / "telemetry.log").read_text()
    return convert(lines, folder)


def device_rows(told: Telemetry) -> list[dict[str, Any]]:
    return [row for row in told.rows if row["scope"] == "device"]


def test_every_field_of_a_willing_gpu(tmp_path: Path) -> None:
    told = sampled(tmp_path, processes=[[os.getpid(), 3 * 2**30], [1, 5 * 2**30]])
    last = device_rows(told)[-1]
    assert {name for name in EVERYTHING if last[name] is None} == set()
    assert (last["power_w"], last["sm_active"], last["dram_active"], last["nvlink_gib_s"]) == (412.0, 0.625, 0.71, 1.0)
    assert told.absent == {}
    assert told.cost.samples > 4
    assert 0 < told.cost.cpu_fraction < 1
    # Another's five GiB are no part of gen's three.
    memory = told.memory_gib(0, 2**62)
    assert memory == {"gen": 3.0, "embed": None, "free": 70.0}
    assert pq.read_table(tmp_path / "telemetry.parquet").num_rows == len(told.rows)


def test_a_client_of_mps_is_counted_once(tmp_path: Path) -> None:
    both = [[os.getpid(), 3 * 2**30]]
    assert sampled(tmp_path, processes=both, mps_processes=both).memory_gib(0, 2**62)["gen"] == 3.0


def test_a_field_that_is_not_supported_is_null_with_its_reason(tmp_path: Path) -> None:
    told = sampled(
        tmp_path,
        fail={
            "nvmlDeviceGetTotalEnergyConsumption": "NotSupported",
            "nvmlDeviceGetPowerUsage": "NoPermission",
            "nvmlDeviceGetUtilizationRates": "NotSupported",
            "nvmlDeviceGetMPSComputeRunningProcesses": "FunctionNotFound",
        },
        gpm_refused={"60": True},
    )
    last = device_rows(told)[-1]
    for name in ("energy_mj", "power_w", "utilization", "memory_utilization", "nvlink_gib_s"):
        assert last[name] is None
    assert (last["temperature_c"], last["sm_active"]) == (54, 0.625)
    reasons = told.absent["0"]
    assert "NotSupported" in reasons["energy_mj"]
    assert "NoPermission" in reasons["power_w"]
    assert "NotSupported" in reasons["nvlink_gib_s"]
    assert "FunctionNotFound" in " ".join(reasons.values())
    assert "namespace" in reasons["memory of a workload"] or "container" in reasons["memory of a workload"]


@pytest.mark.parametrize("how", ["missing", "FunctionNotFound"])
def test_an_old_driver_is_asked_by_the_former_name(tmp_path: Path, how: str) -> None:
    told = sampled(tmp_path, fail={"nvmlDeviceGetCurrentClocksEventReasons": how})
    assert device_rows(told)[-1]["throttle_reasons"] == 4


def test_a_gpu_without_gpm_says_so(tmp_path: Path) -> None:
    told = sampled(tmp_path, has_gpm=False)
    assert device_rows(told)[-1]["sm_active"] is None
    assert "Hopper" in told.absent["0"]["GPM"]


def test_garbage_is_null_and_quoted(tmp_path: Path) -> None:
    lies = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates")
    told = sampled(tmp_path, fail=dict.fromkeys(lies, "garbage"), gpm={"2": 4200.0, "3": float("nan")})
    last = device_rows(told)[-1]
    for name in ("power_w", "memory_used_gib", "utilization", "sm_active", "sm_occupancy"):
        assert last[name] is None, name
    assert "1.8446744073709552e+17" in told.absent["0"]["utilization"]
    assert told.totals_gib == {}
    assert last["dram_active"] == 0.71


def test_a_lost_gpu_is_told_and_the_sampler_goes_on(tmp_path: Path) -> None:
    after = {"nvmlDeviceGetPowerUsage": 3}
    lost = lambda told: "power_w" in told.absent.get("0", {}) and len(device_rows(told)) > 8  # noqa: E731
    told = sampled(tmp_path, lost, fail={"nvmlDeviceGetPowerUsage": "GpuIsLost"}, after=after)
    assert [row["power_w"] for row in device_rows(told)][:3] == [412.0] * 3
    assert device_rows(told)[-1]["power_w"] is None
    assert told.lost() == ["0"]
    assert device_doubts(told, 0, 1) == ["NVML lost GPU 0: restart the host"]
    assert told.gaps == []


def test_a_driver_that_does_not_answer_at_all_leaves_the_workloads_rows(tmp_path: Path) -> None:
    told = sampled(tmp_path, fail={"nvmlInit": "LibRmVersionMismatch"})
    assert "LibRmVersionMismatch" in told.absent["0"]["all fields"]
    assert [row["processes"] >= 1 for row in told.rows if row["scope"] == "workload"][-1]


def test_a_crash_is_restarted_once_and_the_gap_recorded(tmp_path: Path) -> None:
    more = lambda told: told.gaps and told.gaps[0].end_ns  # noqa: E731
    told = sampled(tmp_path, more, fail={"nvmlDeviceGetTemperature": "segfault"}, once=str(tmp_path / "crashed"),
                   after={"nvmlDeviceGetTemperature": 4})  # fmt: skip
    assert len(told.gaps) == 1
    assert "SIGSEGV" in told.gaps[0].reason
    assert told.gaps[0].start_ns < told.gaps[0].end_ns
    assert told.cost.samples >= 1


def test_a_second_crash_ends_the_sampling_for_good(tmp_path: Path) -> None:
    twice = lambda told: len(told.gaps) == 2  # noqa: E731
    told = sampled(tmp_path, twice, fail={"nvmlDeviceGetTemperature": "segfault"},
                   after={"nvmlDeviceGetTemperature": 2})  # fmt: skip
    assert told.gaps[1].end_ns is None
    assert told.cost == TelemetryCost()


def test_a_call_that_hangs_is_ended_and_told(tmp_path: Path) -> None:
    again = lambda told: told.gaps and told.gaps[0].end_ns  # noqa: E731
    told = sampled(tmp_path, again, fail={"nvmlDeviceGetTemperature": "hang"}, once=str(tmp_path / "hung"),
                   after={"nvmlDeviceGetTemperature": 3})  # fmt: skip
    assert "hangs" in told.gaps[0].reason


@pytest.mark.timeout(120)  # the call hangs for an hour
def test_a_hung_sampler_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with sampling(tmp_path, fail={"nvmlDeviceGetTemperature": "hang"}) as lines:
        assert wait_until(lines.exists)
    assert convert(lines, tmp_path).cost == TelemetryCost()


def test_half_a_line_and_garbage_are_passed_over(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(
        b'{"t_ns": 5, "scope": "device", "name": "0", "power_w": 1.5}\n\xff\xfe\n[1]\n{"t_ns": "late"}\n'
        b'{"t_ns": 6, "scope": "device", "name": "0", "power_w": "hot"}\n{"t_ns": 7, "scope": "dev'
    )
    told = convert(lines, tmp_path)
    assert [(row["t_ns"], row["power_w"]) for row in told.rows] == [(5, 1.5)]
    assert pq.read_table(tmp_path / "telemetry.parquet")["power_w"].to_pylist() == [1.5]


def test_no_lines_make_an_empty_frame(tmp_path: Path) -> None:
    assert convert(tmp_path / "never-written", tmp_path) == Telemetry()
    assert pq.read_table(tmp_path / "telemetry.parquet").num_rows == 0


def test_the_sampler_ends_with_its_watcher(tmp_path: Path) -> None:
    with sampling(tmp_path) as lines:
        assert wait_until(lambda: device_rows(read_lines(lines)))
        sampler = subprocess.run(["pgrep", "-f", f"capture.telemetry.*{lines}"], capture_output=True, text=True)
        for pid in map(int, sampler.stdout.split()):
            os.kill(pid, signal.SIGKILL)


@given(st.floats(0.001, 10.0), st.floats(0.0, 1e3))
def test_a_late_sample_is_not_caught_up_on(period_s: float, took_periods: float) -> None:
    """One in time keeps to the period; after one that was not, half a period passes before the next."""
    now_s = 100.0 + took_periods * period_s
    following_s = next_due(100.0, period_s, now_s)
    assert following_s - now_s >= period_s / 2 * (1 - 1e-6)
    assert following_s == 100.0 + period_s or took_periods >= 0.5 * (1 - 1e-6)


def test_a_slip_of_the_driver_is_null_and_takes_no_other_value_with_it(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    row = {"t_ns": 5, "scope": "device", "name": "0", "power_w": 1e12, "temperature_c": -3.0, "sm_clock_mhz": 1980.0}
    lines.write_text(json.dumps(row) + "\n")
    convert(lines, tmp_path)
    (read,) = read_frame(tmp_path / "telemetry.parquet", "telemetry").to_dict("records")
    assert read["sm_clock_mhz"] == 1980.0
    assert math.isnan(read["power_w"])
    assert math.isnan(read["temperature_c"])
