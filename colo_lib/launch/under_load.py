"""Put the engines of a placement under load: the client, the embedding processes, who takes turns, who paces.

The owner's side of `alternate`: start the process that lets the workloads take turns, keep its account.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed
from colo_lib.frames import PACING, write_frame
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import CLIENT_TIMEOUT_S, Loads, package_environment, start_client, stop_quietly, wait_for
from colo_lib.launch.pacing import shares, start_order
from colo_lib.launch.rpc import call
from colo_lib.launch.specs import LoadSpec, TrialSpec

ALTERNATOR, PACER = "alternator", "pacer"


def connect(spec: TrialSpec, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Loads:
    """Everything that will be under load, ready for orders and at rest; the stack ends what was started for it."""
    loads = Loads(None, tuple(handles.embeds[number] for number in spec.placement.embeds_at_work))
    if spec.placement.runs_gen:
        loads.client = start_client(spec.load, handles, runtime, folder, stack)
    return loads


def begin_load(spec: TrialSpec, handles: Handles, loads: Loads, runtime: Path, folder: Path, stack: ExitStack) -> None:
    """Give every workload its work; the stack takes it away again."""
    placement = spec.placement
    for name, handle in loads.each():
        call(handle, "start", **(asdict(start_order(spec.load.pacing, placement)) if name == "embed" else {}))
        stack.callback(stop_quietly, handle, runtime)
    if placement.mechanism == "cpu-alternating":
        loads.mechanism.append(start_alternator(spec.load.slice_ms, handles, runtime, folder, stack))
    if spec.load.pacing.kind == "slo" and shares(placement):
        loads.mechanism.append(start_pacer(spec.load, loads, runtime, folder, stack))


def start_pacer(load: LoadSpec, loads: Loads, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that paces embed by gen's gaps."""
    assert loads.client is not None
    job: dict[str, Any] = {
        "client": asdict(loads.client), "embeds": [asdict(embed) for embed in loads.embeds],
        "slo_gap_ms": load.pacing.gen_gap_ms, "concurrency": load.concurrency,
        "out": str(runtime / "pacing.jsonl"),
    }  # fmt: skip
    command = [sys.executable, "-m", "colo_lib.launch.pacing", json.dumps(job)]
    child = Child(PACER, command, folder / "logs" / "pacer.log", env=package_environment({}), grace_s=1.0)
    stack.callback(child.stop)
    # The warm-up is for finding the duty: it begins when somebody looks for it.
    wait_for(lambda: Path(job["out"]).exists(), child, CLIENT_TIMEOUT_S, "the pacer")
    return child


def settle(loads: Loads, runtime: Path, folder: Path) -> None:
    """End who takes turns and who paces, and keep their accounts; raises StepFailed for one that had died."""
    for child in loads.mechanism:
        if child.name == ALTERNATOR:
            end_alternator(child, runtime, folder)
        elif child.name == PACER:
            end_pacer(child, runtime, folder)


def end_pacer(child: Child, runtime: Path, folder: Path) -> None:
    """End the pacer; its rows go to pacing.parquet."""
    if not child.running():
        raise StepFailed(f"the pacer ended unasked; its last lines:\n{child.tail()}")
    child.stop()
    rows = [json.loads(line) for line in (runtime / "pacing.jsonl").read_text().splitlines() if line.endswith("}")]
    write_frame(folder, "pacing", {name: [row[name] for row in rows] for name in PACING} if rows else {})


BEGIN_TIMEOUT_S = 20.0
ALTERNATE = Path(__file__).with_name("alternate.py")


def start_alternator(slice_ms: float, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that lets the two workloads take turns; it has begun. Raises StepFailed for one that does not."""
    groups = handles.pids()
    command = [sys.executable, "-I", str(ALTERNATE), "--slice-ms", str(slice_ms)]
    for name in ("gen", "embed"):
        command += [f"--{name}", ",".join(map(str, groups[name]))]
    command += ["--out", str(runtime / "slices.txt")]
    child = Child("alternator", command, folder / "logs" / "alternator.log", grace_s=20.0)
    # Whatever becomes of the alternator, nobody stays stopped.
    stack.callback(_continue_all, [group for part in groups.values() for group in part])
    stack.callback(child.stop)
    # A trial that began without it would be no trial of taking turns.
    wait_for((runtime / "slices.txt").exists, child, BEGIN_TIMEOUT_S, "the alternator")
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
