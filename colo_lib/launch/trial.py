"""One trial: both workloads under load, a timed window in their steady state, a folder of frames.

What each engine's device memory is made of: as vLLM tells it in its log, as torch tells it in embed's process.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colo_lib.errors import ColoError, InputError, StepFailed
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import in_words
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import collect, package_environment, read_counters, wait_steady, watch_window
from colo_lib.launch.pacing import pacing_record
from colo_lib.launch.rpc import call, runtime_folder
from colo_lib.launch.specs import TrialSpec
from colo_lib.launch.under_load import begin_load, connect, settle
from colo_lib.launch.window import Window, measure_window
from colo_lib.paths import PARTIAL, TRIAL
from colo_lib.placement import Placement
from colo_lib.records import MeasuredTrial, MemoryParts, Trial, TrialEvidence
from colo_lib.telemetry.other_processes import OtherProcessesMeter, in_window
from colo_lib.telemetry.readings import Telemetry, convert

# vLLM's worker (v1/worker/gpu_worker.py, gpu_model_runner.py); a rank a line.
TOLD = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv_cache": re.compile(r"Available KV cache memory: ([\d.]+) GiB"),
    "graphs": re.compile(r"Graph capturing finished in \d+ secs?, took (-?[\d.]+) GiB"),
}
READ_BYTES = 4 * 2**20


def gen_parts(log: Path, given_kv_cache_gib: float) -> dict[str, float | None]:
    """weights, kv_cache, graphs of one rank of gen, GiB; None where the log does not tell."""
    try:
        said = log.read_bytes()[:READ_BYTES].decode(errors="replace")
    except OSError:
        said = ""
    found = {name: float(match[1]) if (match := pattern.search(said)) else None for name, pattern in TOLD.items()}
    if given_kv_cache_gib:
        found["kv_cache"] = given_kv_cache_gib  # given as bytes: vLLM takes them as they are
    return found


def embed_parts(told: dict[str, Any]) -> dict[str, float | None]:
    """weights, activations (most in use beyond them), cached (what torch keeps besides) of one process, GiB."""
    if not told:
        return {"weights": None, "activations": None, "cached": None}
    weights, peak, reserved = (float(told[name]) for name in ("weights", "peak", "reserved"))
    return {"weights": weights, "activations": peak - weights, "cached": reserved - peak}


def memory_parts(
    given_kv_cache_gib: float, handles: Handles, held_gib: dict[str, float | None]
) -> dict[str, MemoryParts | None]:
    """Parts of each workload's device memory, GiB a process; `rest` is what NVML counts beyond them.

    For gen the rest is activations and CUDA context, for embed the context. `held_gib`: NVML's figure by workload.
    """
    found: dict[str, MemoryParts | None] = {}
    if handles.gen is not None:
        parts = gen_parts(Path(handles.gen.log), given_kv_cache_gib)
        found["gen"] = with_rest(parts, held_gib.get("gen"), handles.tensor_parallel)
    for handle in handles.embeds[:1]:
        with suppress(OSError, ValueError):
            told = call(handle, "status", timeout_s=10.0).get("memory_gib", {})
            found["embed"] = with_rest(embed_parts(told), held_gib.get("embed"), len(handles.embeds))
    return found


def with_rest(parts: dict[str, float | None], held_gib: float | None, processes: int) -> MemoryParts:
    """`parts`, and what a process holds beyond them: None unless NVML's figure and the weights are known."""
    if held_gib is None or parts.get("weights") is None:
        return MemoryParts(**parts, rest=None)
    rest_gib = held_gib / processes - sum(value for value in parts.values() if value is not None)
    return MemoryParts(**parts, rest=rest_gib)


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
