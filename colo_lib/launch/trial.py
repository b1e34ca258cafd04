"""One trial: both workloads under load, a timed window in their steady state, a folder of frames.

Its record tells what the window says (rates, their drift, whether the trial counts) and what each engine's device
memory is made of: as vLLM tells it in its log, as torch tells it in embed's process.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import ValidationError

from colo_lib.child_environment import package_environment
from colo_lib.errors import ColoError, InputError, StepFailed
from colo_lib.frames import SCHEMA_VERSION, age_spread, sequence_work, token_work
from colo_lib.json_records import in_words
from colo_lib.launch.arrivals import POISSON
from colo_lib.launch.child import Child
from colo_lib.launch.embed_over_http import EmbedServerHandle
from colo_lib.launch.embed_proof import refuse_unproved, unproved
from colo_lib.launch.engines import Handles
from colo_lib.launch.gen_load import ClientUse, look_at_load
from colo_lib.launch.load import (
    begin_load,
    collect_frames,
    connect,
    finish_due,
    read_counters,
    settle,
    wait_steady,
    watch_window,
)
from colo_lib.launch.pacing import pacing_record
from colo_lib.launch.rpc import call, runtime_folder
from colo_lib.launch.specs import DemandSpec, LoadSpec, TrialSpec
from colo_lib.launch.vllm_server import ServerCounters
from colo_lib.paths import PARTIAL, TRIAL, frame_file
from colo_lib.placement import Placement
from colo_lib.records import DemandFacts, GenLoad, MeasuredTrial, MemoryParts, Trial, TrialEvidence, WindowFacts
from colo_lib.telemetry.other_processes import OtherProcessesMeter, in_window
from colo_lib.telemetry.readings import Telemetry, convert
from colo_lib.telemetry.watchdog import SamplerJob

# vLLM's worker (v1/worker/gpu_worker.py, gpu_model_runner.py); a rank a line.
LOG_LINES = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv_cache": re.compile(r"Available KV cache memory: ([\d.]+) GiB"),
    "graphs": re.compile(r"Graph capturing finished in \d+ secs?, took (-?[\d.]+) GiB"),
}
READ_BYTES = 4 * 2**20
LEAST_FREE_BYTES = 256 * 2**20
LEAST_EVENTS = 10


def gen_parts(log: Path, given_kv_cache_gib: float) -> dict[str, float | None]:
    """weights, kv_cache, graphs of one rank of gen, GiB; None where the log does not tell."""
    try:
        said = log.read_bytes()[:READ_BYTES].decode(errors="replace")
    except OSError:
        said = ""
    parts = {name: float(match[1]) if (match := pattern.search(said)) else None for name, pattern in LOG_LINES.items()}
    if given_kv_cache_gib:
        parts["kv_cache"] = given_kv_cache_gib  # given as bytes: vLLM takes them as they are
    return parts


def embed_parts(memory: dict[str, Any]) -> dict[str, float | None]:
    """weights, activations (most in use beyond them), cached (what torch keeps besides) of one process, GiB."""
    if not memory:
        return {"weights": None, "activations": None, "cached": None}
    weights, peak, reserved = (float(memory[name]) for name in ("weights", "peak", "reserved"))
    return {"weights": weights, "activations": peak - weights, "cached": reserved - peak}


def device_memory_parts(
    given_kv_cache_gib: float, handles: Handles, held_gib: dict[str, float | None]
) -> dict[str, MemoryParts | None]:
    """Parts of each workload's device memory, GiB a process; `rest` is what NVML counts beyond them.

    For gen the rest is activations and CUDA context, for embed the context. `held_gib`: NVML's figure by workload.
    """
    by_workload: dict[str, MemoryParts | None] = {}
    if handles.gen is not None:
        parts = gen_parts(Path(handles.gen.log), given_kv_cache_gib)
        by_workload["gen"] = with_rest(parts, held_gib.get("gen"), handles.tensor_parallel)
    for handle in handles.embeds[:1]:
        if isinstance(handle, EmbedServerHandle):
            # No KV cache is given where the model embeds without one: what vLLM says counts.
            embed = gen_parts(Path(handle.log), 0.0) if handle.log else embed_parts({})
            by_workload["embed"] = with_rest(embed, held_gib.get("embed"), len(handles.embeds))
            continue
        with suppress(OSError, ValueError):
            memory = call(handle, "status", timeout_s=10.0).get("memory_gib", {})
            by_workload["embed"] = with_rest(embed_parts(memory), held_gib.get("embed"), len(handles.embeds))
    return by_workload


def with_rest(parts: dict[str, float | None], held_gib: float | None, processes: int) -> MemoryParts:
    """`parts`, and what a process holds beyond them: None unless NVML's figure and the weights are known."""
    if held_gib is None or parts.get("weights") is None:
        return MemoryParts(**parts, rest=None)
    rest_gib = held_gib / processes - sum(value for value in parts.values() if value is not None)
    return MemoryParts(**parts, rest=rest_gib)


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
        pacing=pacing_record(spec.load.pacing, placement), embed_unproved=unproved(placement, handles),
    )  # fmt: skip
    try:
        check_disk(partial)
        with ExitStack() as stack:
            record = record.joined(_measured(spec, handles, partial, stack))
    except (ColoError, OSError, KeyboardInterrupt, ValidationError) as error:
        message = in_words(error) if isinstance(error, ValidationError) else str(error)
        _close(partial, folder, record.joined(reason=message or type(error).__name__))
        if isinstance(error, KeyboardInterrupt | ColoError):
            raise
        raise StepFailed(f"{placement.step}, trial {trial}: {message}") from error
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
    refuse_unproved(spec.placement, handles)
    runtime = stack.enter_context(runtime_folder())
    loads = connect(spec, handles, runtime, folder, stack)
    sampler = start_sampler(spec, handles, runtime, folder, stack)
    begin_load(spec, handles, loads, runtime, folder, stack)
    wait_steady(spec.window, loads, handles)
    before = handles.evidence()
    meter, counters = (
        OtherProcessesMeter([handles.owner_pid, *handles.own_pids()["gen"], *handles.own_pids()["embed"]]),
        [],
    )
    start_ns = time.monotonic_ns()
    meter.start(start_ns / 1e9)
    counters.append(read_counters(spec.window, loads, handles))
    watch_window(spec.window, loads, handles, start_ns + int(spec.window.window_s * 1e9))
    counters.append(read_counters(spec.window, loads, handles))
    end_ns = start_ns + int(spec.window.window_s * 1e9)
    stranger_cores = meter.stop(time.monotonic())
    after = handles.evidence()
    memory = memory_gib(handles)
    finish_due(spec, loads, handles, end_ns)
    settle(loads, runtime, folder)
    collect_frames(loads, runtime, folder)
    sampler.stop()
    telemetry = convert(runtime / "telemetry.jsonl", folder)
    parts = None
    if spec.placement.device == "cuda":
        memory = telemetry.memory_gib(start_ns, end_ns)
        parts = device_memory_parts(spec.kv_cache_gib, handles, memory)
    window = Window(
        start_ns, end_ns, counters[0], counters[1], stranger_cores, loads.client_use(start_ns, end_ns),
        tuple(loads.undone_due_ns),
    )  # fmt: skip
    facts = measure_window(spec, folder, window)
    if against := device_doubts(telemetry, start_ns, end_ns):
        facts = facts.joined(status="invalid", reason="; ".join(filter(None, [facts.reason, *against])))
    return MeasuredTrial(
        **facts.plain(), memory_gib=memory, memory_parts_gib=parts,
        telemetry_cost=telemetry.cost, telemetry=telemetry.record(),
        mechanism_evidence=None if before is None else TrialEvidence(before=before, after=after),
    )  # fmt: skip


def device_doubts(telemetry: Telemetry, start_ns: int, end_ns: int) -> list[str]:
    """What the telemetry says against a trial: a GPU that was lost, somebody else who computed on it."""
    reasons = [f"NVML lost GPU {', '.join(telemetry.lost())}: restart the host"] if telemetry.lost() else []
    if strangers := in_window(telemetry.seen, start_ns, end_ns):
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in strangers)
        reasons.append(f"others computed on the GPU: {names}; end them, or choose another GPU in devices")
    return reasons


def start_sampler(spec: TrialSpec, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The telemetry sampler; a trial goes on without it when it fails."""
    job = SamplerJob(
        out=str(runtime / "telemetry.jsonl"),
        hz=spec.window.telemetry_hz,
        device=spec.placement.device,
        devices=spec.placement.all_devices,
        workloads=handles.own_pids(),
        owner_pid=handles.owner_pid,
    )
    command = [sys.executable, "-m", "colo_lib.telemetry.watchdog", json.dumps(asdict(job))]
    child = Child("telemetry", command, folder / "logs" / "telemetry.log", env=package_environment({}), grace_s=2.0)
    stack.callback(child.stop)
    return child


def memory_gib(handles: Handles) -> dict[str, float | None]:
    """Proportional host memory of each workload's processes and what is available, GiB."""
    import psutil

    held: dict[str, float | None] = {}
    for name, roots in handles.own_pids().items():
        total = 0
        for root in roots:
            with suppress(psutil.Error):
                process = psutil.Process(root)
                total += sum(member.memory_full_info().pss for member in [process, *process.children(recursive=True)])
        held[name] = total / 2**30 if roots else None
    return held | {"free": psutil.virtual_memory().available / 2**30}


@dataclass(frozen=True)
class Window:
    """[start_ns, end_ns) of CLOCK_MONOTONIC; vLLM's own counters around it; cores that strangers used in it."""

    start_ns: int
    end_ns: int
    before: ServerCounters | None
    after: ServerCounters | None
    stranger_cores: float
    client: ClientUse = field(default_factory=lambda: ClientUse(1))
    undone_due_ns: tuple[int, ...] = ()
    """When the embedder's requests were due that were never done."""

    @property
    def seconds(self) -> float:
        """Length."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass
class _Gen:
    """What gen did in a window."""

    tokens: int | None = None
    per_s: float | None = None
    server_per_s: float | None = None
    server_gap_ms: float | None = None
    disagreement: float | None = None
    drift: float | None = None
    load: GenLoad | None = None
    marks: list[str] = field(default_factory=list)


def measure_window(spec: TrialSpec, folder: Path, window: Window) -> WindowFacts:
    """The part of a trial's record that its frames give; its status says whether it counts."""
    placement, gen, reasons = spec.placement, _Gen(), list[str]()
    sequences: int | None = None
    embed_per_s: float | None = None
    drift: dict[str, float | None] = {"gen": None, "embed": None}
    if placement.runs_gen:
        gen = _measure_gen(spec.load, folder, window, reasons)
        drift["gen"] = gen.drift
    if placement.runs_embed:
        work, span = sequence_work(pq.read_table(frame_file(folder, "embed"))), (window.start_ns, window.end_ns)
        sequences, drift["embed"], embed_per_s = work.ended(*span), work.drift(*span), work.rate(*span)
        if not sequences:
            reasons.append("no embedding batch was done in the window")
    demand = demand_facts(spec, folder, window)
    facts = WindowFacts(
        window_start_ns=window.start_ns, window_end_ns=window.end_ns, window_s=window.seconds,
        gen_tokens=gen.tokens, gen_tokens_per_s=gen.per_s, gen_server_tokens_per_s=gen.server_per_s,
        gen_server_mean_gap_ms=gen.server_gap_ms, clock_disagreement=gen.disagreement,
        embed_sequences=sequences, embed_sequences_per_s=embed_per_s, drift_fraction=drift,
        neighbour=neighbour(placement), stranger_cores=window.stranger_cores, gen_load=gen.load, marks=gen.marks,
        demand=demand, status="done", reason=None,
    )  # fmt: skip
    reasons += doubts(spec, facts)
    return facts.joined(status="invalid", reason="; ".join(reasons)) if reasons else facts


def demand_facts(spec: TrialSpec, folder: Path, window: Window) -> dict[str, DemandFacts] | None:
    """What was asked of each workload that has a demand, and how many of its requests were due in the window."""
    facts, load, placement = {}, spec.load, spec.placement
    if placement.runs_gen and load.gen_demand is not None:
        due_ns = np.asarray(pq.read_table(frame_file(folder, "requests"))["submitted_ns"])
        facts["gen"] = _due_facts(load.gen_demand, due_ns, window)
    if placement.runs_embed and load.embed_demand is not None:
        done_ns = np.asarray(pq.read_table(frame_file(folder, "embed"))["started_ns"])
        facts["embed"] = _due_facts(load.embed_demand, np.concatenate([done_ns, window.undone_due_ns]), window)
    return facts or None


def _due_facts(demand: DemandSpec, due_ns: np.ndarray, window: Window) -> DemandFacts:
    due = int(((due_ns >= window.start_ns) & (due_ns < window.end_ns)).sum())
    return DemandFacts(arrivals=demand.arrivals, rate=demand.rate * demand.size, due=due)


def _measure_gen(load: LoadSpec, folder: Path, window: Window, reasons: list[str]) -> _Gen:
    """Token rate by the client's clock and by vLLM's own counter; what speaks against the trial goes to `reasons`."""
    tokens, requests = (pq.read_table(frame_file(folder, name)) for name in ("gen", "requests"))
    work, span = token_work(tokens, requests), (window.start_ns, window.end_ns)
    total = work.ended(*span)
    errors = [text for text in requests["error"].to_pylist() if text]
    if errors:
        reasons.append(f"{len(errors)} requests failed, the first with {errors[0]}")
    if total < LEAST_EVENTS:
        reasons.append(f"only {total} tokens arrived in the window")
    gen = _Gen(total, work.rate(*span), drift=work.drift(*span))
    if window.before and window.after:
        # vLLM's counters are read shortly before and after the window's ends: compare over the same span of time.
        before, after = window.before, window.after
        came = work.ended(int(before.t_ns), int(after.t_ns))
        served, gaps = after.tokens - before.tokens, after.gap_count - before.gap_count
        gen.server_per_s = served / ((after.t_ns - before.t_ns) / 1e9)
        gen.disagreement = abs(came / served - 1) if served else None
        if gaps:
            gen.server_gap_ms = (after.gap_sum_s - before.gap_sum_s) / gaps * 1e3
        if after.cached_tokens > before.cached_tokens:
            reasons.append("vLLM's prefix cache served part of a prompt")
    found = look_at_load(load, window.before, window.after, window.client)
    reasons += found.reasons
    gen.load, gen.marks = found.facts.joined(age_spread=age_spread(tokens, requests, *span)), found.marks
    return gen


def doubts(spec: TrialSpec, facts: WindowFacts) -> list[str]:
    """Why a measured trial does not count; empty when it does."""
    reasons = []
    disagreement = facts.clock_disagreement
    # One engine step in flight at either end is the grain of the comparison.
    grain = 2 * spec.load.concurrency / max(1, facts.gen_tokens or 1)
    if disagreement is not None and disagreement > max(spec.window.max_clock_disagreement, grain):
        reasons.append(f"our token rate and vLLM's own counter differ by {disagreement:.1%}")
    for name, drift in (facts.drift_fraction or {}).items():
        if drift is not None and drift > spec.window.max_drift_fraction + chance(facts, name):
            reasons.append(f"{name} still drifted: the window's halves differ by {drift:.0%}")
    if spec.placement.device == "cpu" and (facts.stranger_cores or 0.0) > spec.window.max_stranger_cores:
        reasons.append(f"other processes used {facts.stranger_cores:.2f} cores")
    return reasons


def chance(facts: WindowFacts, workload: str) -> float:
    """By how much a window's halves differ by chance alone, four standard deviations, where requests are due at random.

    Counts of n / 2 in each half: their ratio is off 1 by sqrt(4 / n).
    """
    demand = (facts.demand or {}).get(workload)
    return 4 * math.sqrt(4 / max(1, demand.due)) if demand is not None and demand.arrivals == POISSON else 0.0


def neighbour(placement: Placement) -> str:
    """What the other workload's engine does in a step that runs one alone."""
    return "under load" if placement.runs_gen and placement.runs_embed else "given no work"
