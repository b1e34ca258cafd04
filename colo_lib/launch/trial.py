"""One trial: both workloads under load, a timed window in their steady state, a folder of frames."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from pydantic import ValidationError

from colo_lib.errors import ColoError, InputError, StepFailed
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import in_words
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import collect, package_environment, read_counters, wait_steady, watch_window
from colo_lib.launch.memory_parts import memory_parts
from colo_lib.launch.pacing import pacing_record
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import TrialSpec
from colo_lib.launch.under_load import begin_load, connect, settle
from colo_lib.launch.window import Window, measure_window
from colo_lib.paths import PARTIAL, TRIAL
from colo_lib.placement import Placement
from colo_lib.records import MeasuredTrial, Trial, TrialEvidence
from colo_lib.telemetry.other_processes import OtherProcessesMeter, in_window
from colo_lib.telemetry.readings import Telemetry, convert

LEAST_FREE_BYTES = 256 * 2**20


def run_trial(spec: TrialSpec, handles: Handles, folder: Path, trial: int) -> Trial:
    """Carry out one trial into `folder`; returns its record, the content of trial.json.

    A trial that cannot be measured is recorded as failed with its cause and raised as StepFailed.
    The folder gets its name only when its record is written.
    """
    placement, partial = spec.placement, folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "logs").mkdir(parents=True)
    record = Trial(
        schema_version=SCHEMA_VERSION, step=placement.step, trial=trial, block=trial,
        mechanism=placement.mechanism, status="failed", reason=None, devices=placement.devices_record(),
        pids=handles.pids(), engine_starts=handles.starts(), latency_clock="client",
        pacing=pacing_record(spec.load.pacing, placement),
    )  # fmt: skip
    try:
        check_disk(partial)
        with ExitStack() as stack:
            record = record.joined(_measured(spec, handles, partial, stack))
    except (ColoError, OSError, KeyboardInterrupt, ValidationError) as error:
        told = in_words(error) if isinstance(error, ValidationError) else str(error)
        _close(partial, folder, record.joined(reason=told or type(error).__name__))
        if isinstance(error, KeyboardInterrupt | ColoError):
            raise
        raise StepFailed(f"{placement.step}, trial {trial}: {told}") from error
    _close(partial, folder, record)
    return record


def skip_trial(placement: Placement, folder: Path, trial: int, reason: str) -> None:
    """Record that a trial was not carried out, and why: the machine lacks what its step is about."""
    folder.mkdir(parents=True, exist_ok=True)
    Trial(
        schema_version=SCHEMA_VERSION, step=placement.step, trial=trial, block=trial,
        mechanism=placement.mechanism, status="skipped", reason=reason, devices=placement.devices_record(),
    ).write(folder / TRIAL)  # fmt: skip


def check_disk(folder: Path) -> None:
    """Raises InputError when less is free than a trial may need."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        needed = LEAST_FREE_BYTES / 2**20
        raise InputError(f"disk full: {folder} has {free / 2**20:.0f} MiB free, a trial needs {needed:.0f}: make room")


def _close(partial: Path, folder: Path, record: Trial) -> None:
    with suppress(OSError):
        record.write(partial / TRIAL)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _measured(spec: TrialSpec, handles: Handles, folder: Path, stack: ExitStack) -> MeasuredTrial:
    handles.check_alive()
    runtime = stack.enter_context(runtime_folder())
    loads = connect(spec, handles, runtime, folder, stack)
    sampler = start_sampler(spec, handles, runtime, folder, stack)
    begin_load(spec, handles, loads, runtime, folder, stack)
    wait_steady(spec.window, loads, handles)
    before = handles.evidence()
    meter, counters = OtherProcessesMeter([handles.owner_pid, *handles.pids()["gen"], *handles.pids()["embed"]]), []
    start_ns = time.monotonic_ns()
    meter.start(start_ns / 1e9)
    counters.append(read_counters(spec.window, loads, handles))
    watch_window(spec.window, loads, handles, start_ns + int(spec.window.window_s * 1e9))
    counters.append(read_counters(spec.window, loads, handles))
    end_ns = start_ns + int(spec.window.window_s * 1e9)
    stranger_cores = meter.stop(time.monotonic())
    after = handles.evidence()
    memory = memory_gib(handles)
    settle(loads, runtime, folder)
    collect(loads, runtime, folder)
    sampler.stop()
    told = convert(runtime / "telemetry.jsonl", folder)
    parts = None
    if spec.placement.device == "cuda":
        memory = told.memory_gib(start_ns, end_ns)
        parts = memory_parts(spec.kv_cache_gib, handles, memory)
    window = Window(start_ns, end_ns, counters[0], counters[1], stranger_cores)
    facts = measure_window(spec, folder, window)
    if doubts := device_doubts(told, start_ns, end_ns):
        facts = facts.joined(status="invalid", reason="; ".join(filter(None, [facts.reason, *doubts])))
    return MeasuredTrial(
        **facts.plain(), memory_gib=memory, telemetry_cost=told.cost, telemetry=told.record(), memory_parts_gib=parts,
        mechanism_evidence=None if before is None else TrialEvidence(before=before, after=after),
    )  # fmt: skip


def device_doubts(told: Telemetry, start_ns: int, end_ns: int) -> list[str]:
    """What the telemetry says against a trial: a GPU that was lost, somebody else who computed on it."""
    found = [f"NVML lost GPU {', '.join(told.lost())}: restart the host"] if told.lost() else []
    if strangers := in_window(told.seen, start_ns, end_ns):
        names = ", ".join(f"{one.name} (pid {one.pid})" for one in strangers)
        found.append(f"others computed on the GPU: {names}; end them, or choose another GPU in devices")
    return found


def start_sampler(spec: TrialSpec, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The telemetry sampler; a trial goes on without it when it fails."""
    job = {
        "out": str(runtime / "telemetry.jsonl"),
        "hz": spec.window.telemetry_hz,
        "device": spec.placement.device,
        "devices": spec.placement.all_devices,
        "workloads": handles.pids(),
        "owner_pid": handles.owner_pid,
    }
    command = [sys.executable, "-m", "colo_lib.telemetry.watchdog", json.dumps(job)]
    child = Child("telemetry", command, folder / "logs" / "telemetry.log", env=package_environment({}), grace_s=2.0)
    stack.callback(child.stop)
    return child


def memory_gib(handles: Handles) -> dict[str, float | None]:
    """Proportional host memory of each workload's processes and what is available, GiB."""
    import psutil

    found: dict[str, float | None] = {}
    for name, roots in handles.pids().items():
        total = 0
        for root in roots:
            with suppress(psutil.Error):
                process = psutil.Process(root)
                total += sum(member.memory_full_info().pss for member in [process, *process.children(recursive=True)])
        found[name] = total / 2**30 if roots else None
    return found | {"free": psutil.virtual_memory().available / 2**30}
