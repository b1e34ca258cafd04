"""One trial: both workloads under load, a timed window in their steady state, a folder of frames."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.capture.manifest import write_json
from colo_lib.capture.telemetry import convert
from colo_lib.errors import ColoError, InputError, StepFailed
from colo_lib.frames import write_frame
from colo_lib.launch.embed import EmbedHandle, order, read_rows
from colo_lib.launch.engines import Handles
from colo_lib.launch.gen import server_counters
from colo_lib.launch.placement import Placement
from colo_lib.launch.process import Child, child_environment
from colo_lib.launch.runtime import runtime_folder
from colo_lib.launch.strangers import StrangerMeter
from colo_lib.launch.window import Window, measure
from colo_lib.params import Params
from colo_lib.paths import PARTIAL, TRIAL
from colo_lib.schema import SCHEMA_VERSION

ALTERNATE = Path(__file__).with_name("alternate.py")
POLL_S = 0.05
CLIENT_TIMEOUT_S = 20.0
LEAST_FREE_BYTES = 256 * 2**20


@dataclass
class Loads:
    """What is under load in this trial, and how to ask it how far it is."""

    client: EmbedHandle | None
    embeds: tuple[EmbedHandle, ...]

    def each(self) -> list[tuple[str, EmbedHandle]]:
        """(workload, handle) of every source of load."""
        return ([("gen", self.client)] if self.client else []) + [("embed", handle) for handle in self.embeds]

    def progress(self) -> dict[str, dict[str, Any]]:
        """Events so far and the time of the last one, per workload. Raises StepFailed for one that reports an error."""
        found: dict[str, dict[str, Any]] = {}
        for name, handle in self.each():
            told = order(handle, "status")
            if told.get("error"):
                raise StepFailed(f"{name}: {told['error']}")
            events = told["tokens"] if name == "gen" else told["batches"]
            last_ns = told["last_ns"] if name == "gen" else told["last_done_ns"]
            before = found.get(name, {"events": 0, "last_ns": None})
            stamps = [stamp for stamp in (before["last_ns"], last_ns) if stamp is not None]
            found[name] = {"events": before["events"] + events, "last_ns": max(stamps, default=None)}
        return found


def run_trial(params: Params, placement: Placement, handles: Handles, folder: Path, trial: int) -> dict[str, Any]:
    """Carry out one trial into `folder`; returns its record, the content of trial.json.

    A trial that cannot be measured is recorded as failed with its cause and raised as StepFailed.
    The folder gets its name only when its record is written.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "logs").mkdir(parents=True)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "step": placement.step, "trial": trial, "block": trial,
        "mechanism": placement.mechanism, "status": "failed", "reason": None,
        "devices": {"gen": placement.gen_devices, "embed": placement.embed_devices},
        "pids": handles.pids(), "latency_clock": "client",
    }  # fmt: skip
    try:
        check_disk(partial)
        with ExitStack() as stack:
            record |= _measured(params, placement, handles, partial, stack)
    except (ColoError, OSError, KeyboardInterrupt) as error:
        record["reason"] = str(error) or type(error).__name__
        _close(partial, folder, record)
        if isinstance(error, KeyboardInterrupt | ColoError):
            raise
        raise StepFailed(f"{placement.step}, trial {trial}: {error}") from error
    _close(partial, folder, record)
    return record


def check_disk(folder: Path) -> None:
    """Raises InputError when less is free than a trial may need."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise InputError(f"{folder}: {free / 2**20:.0f} MiB free, a trial needs {LEAST_FREE_BYTES / 2**20:.0f}: make room")


def _close(partial: Path, folder: Path, record: dict[str, Any]) -> None:
    with suppress(OSError):
        write_json(partial / TRIAL, record)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _measured(params: Params, placement: Placement, handles: Handles, folder: Path, stack: ExitStack) -> dict[str, Any]:
    handles.check_alive()
    runtime = stack.enter_context(runtime_folder())
    loads = Loads(None, handles.embeds if placement.runs_embed else ())
    if placement.runs_gen:
        loads.client = start_client(params, handles, runtime, folder, stack)
    sampler = start_sampler(params, placement, handles, runtime, folder, stack)
    for _, handle in loads.each():
        order(handle, "start")
        stack.callback(_stop_quietly, handle, runtime)
    if placement.mechanism == "cpu-alternating":
        alternator = start_alternator(params, handles, runtime, folder, stack)
    wait_steady(params, loads, handles)
    meter, counters = StrangerMeter([handles.owner_pid, *handles.pids()["gen"], *handles.pids()["embed"]]), []
    start_ns = time.monotonic_ns()
    meter.start(start_ns / 1e9)
    counters.append(_counters(placement, handles))
    watch_window(params, loads, handles, start_ns + int(params.window_s * 1e9))
    counters.append(_counters(placement, handles))
    end_ns = start_ns + int(params.window_s * 1e9)
    stranger_cores = meter.stop(time.monotonic())
    memory = memory_gib(handles)
    if placement.mechanism == "cpu-alternating":
        end_alternator(alternator, runtime, folder)
    collect(loads, runtime, folder)
    sampler.stop()
    cost = convert(runtime / "telemetry.jsonl", folder)
    window = Window(start_ns, end_ns, counters[0], counters[1], stranger_cores)
    return measure(params, placement, folder, window) | {"memory_gib": memory, "telemetry_cost": cost}


def _counters(placement: Placement, handles: Handles) -> dict[str, float] | None:
    return server_counters(handles.gen) if placement.runs_gen and handles.gen else None


def start_client(params: Params, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> EmbedHandle:
    """The load client of gen, ready for orders."""
    from colo_lib.launch.models import resolve_models

    assert handles.gen is not None
    socket_path, log = runtime / "client.sock", folder / "logs" / "client.log"
    job = {
        "socket": str(socket_path),
        "port": handles.gen.port,
        "concurrency": params.gen_concurrency,
        "prompt_tokens": params.gen_prompt_tokens,
        "output_tokens": params.gen_output_tokens,
        "vocab_size": resolve_models(params).gen_vocab_size,
        "seed": params.seed,
    }
    command = [sys.executable, "-m", "colo_lib.launch.gen_client", json.dumps(job)]
    child = Child("client", command, log, env=package_environment({"COLO_GEN_KEY": handles.gen.key}), grace_s=1.0)
    stack.callback(child.stop)
    handle = EmbedHandle(socket=str(socket_path), pid=child.pid, log=str(log))
    wait_for(lambda: _answers(handle), child, CLIENT_TIMEOUT_S, "the load client")
    return handle


def package_environment(additions: dict[str, str]) -> dict[str, str]:
    """A child's environment in which this very package is importable."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    return child_environment(additions | {"PYTHONPATH": path})


def start_sampler(
    params: Params, placement: Placement, handles: Handles, runtime: Path, folder: Path, stack: ExitStack
) -> Child:
    """The telemetry sampler; a trial goes on without it when it fails."""
    job = {
        "out": str(runtime / "telemetry.jsonl"),
        "hz": params.telemetry_hz,
        "device": params.device,
        "devices": placement.all_devices,
        "workloads": handles.pids(),
    }
    command = [sys.executable, "-m", "colo_lib.capture.telemetry", json.dumps(job)]
    child = Child("telemetry", command, folder / "logs" / "telemetry.log", env=package_environment({}), grace_s=2.0)
    stack.callback(child.stop)
    return child


def start_alternator(params: Params, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that lets the two workloads take turns."""
    groups = handles.pids()
    command = [sys.executable, "-I", str(ALTERNATE), "--slice-ms", str(params.slice_ms)]
    for name in ("gen", "embed"):
        command += [f"--{name}", ",".join(map(str, groups[name]))]
    command += ["--out", str(runtime / "slices.txt")]
    child = Child("alternator", command, folder / "logs" / "alternator.log", grace_s=3.0)
    # Whatever becomes of the alternator, nobody stays stopped.
    stack.callback(_continue_all, [group for part in groups.values() for group in part])
    stack.callback(child.stop)
    return child


def _continue_all(groups: list[int]) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGCONT)


def end_alternator(child: Child, runtime: Path, folder: Path) -> None:
    """Stop taking turns and keep who ran when, in slices.parquet; raises StepFailed when it had died."""
    if not child.running():
        raise StepFailed(f"the alternator ended unasked; its last lines:\n{child.tail()}")
    child.stop()
    rows = [line.split() for line in (runtime / "slices.txt").read_text().splitlines()]
    names, starts, ends = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"workload": list(names), "start_ns": [int(t) for t in starts], "end_ns": [int(t) for t in ends]}
    write_frame(folder, "slices", columns)


def _answers(handle: EmbedHandle) -> bool:
    with suppress(OSError):
        return bool(order(handle, "status", timeout_s=5.0))
    return False


def wait_for(condition: Callable[[], bool], child: Child, timeout_s: float, what: str) -> None:
    """Poll until the condition holds; raises StepFailed when the child ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not child.running() or time.monotonic() > deadline:
            raise StepFailed(f"{what} did not start within {timeout_s:g} s; its last lines:\n{child.tail()}")
        time.sleep(POLL_S)


def wait_steady(params: Params, loads: Loads, handles: Handles) -> None:
    """Until every workload has delivered and the warm-up is over; raises StepFailed after stall_timeout_s of silence."""
    start = time.monotonic()
    while True:
        progress = loads.progress()
        if all(told["events"] > 0 for told in progress.values()):
            break
        _check_waiting(params, progress, handles, time.monotonic() - start, start)
        time.sleep(POLL_S)
    watch_window(params, loads, handles, time.monotonic_ns() + int(params.warmup_s * 1e9))


def watch_window(params: Params, loads: Loads, handles: Handles, until_ns: int) -> None:
    """Wait until a monotonic time; raises StepFailed as soon as an engine ends or a workload stalls."""
    began = time.monotonic()
    while (left_ns := until_ns - time.monotonic_ns()) > 0:
        time.sleep(min(0.5, left_ns / 1e9))
        _check_waiting(params, loads.progress(), handles, time.monotonic() - began, began)


def _check_waiting(params: Params, progress: dict[str, Any], handles: Handles, waited_s: float, began_s: float) -> None:
    handles.check_alive()
    for name, told in progress.items():
        last_s = told["last_ns"] / 1e9 if told["last_ns"] else began_s
        silent_s = min(waited_s, time.monotonic() - last_s)
        if silent_s > params.stall_timeout_s:
            raise StepFailed(f"{name} delivered nothing for stall_timeout_s = {params.stall_timeout_s:g} s")


def collect(loads: Loads, runtime: Path, folder: Path) -> None:
    """Stop every load and write the frames."""
    parts = []
    for number, (name, handle) in enumerate(loads.each()):
        target = str(folder) if name == "gen" else str(runtime / f"rows{number}")
        order(handle, "stop", to=target)
        if name == "embed":
            parts += read_rows(Path(target)).tolist()
    if loads.embeds:
        columns = zip(*sorted(parts, key=lambda row: row[1]), strict=True) if parts else ((), (), (), ())
        names = ("started_ns", "done_ns", "sequences", "tokens")
        write_frame(folder, "embed", dict(zip(names, map(list, columns), strict=True)))


def _stop_quietly(handle: EmbedHandle, runtime: Path) -> None:
    with suppress(OSError, ValueError):
        order(handle, "stop", timeout_s=5.0, to=str(runtime / f"unread-{handle.pid}"))


def memory_gib(handles: Handles) -> dict[str, float | None]:
    """Proportional memory of each workload's processes and what is available, GiB."""
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


