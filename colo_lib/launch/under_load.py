"""Put the engines of a placement under load: the client, the embedding processes, who takes turns, who paces."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed
from colo_lib.frames import write_frame
from colo_lib.launch.engines import Handles
from colo_lib.launch.loads import CLIENT_TIMEOUT_S, Loads, package_environment, start_client, stop_quietly, wait_for
from colo_lib.launch.orders import order
from colo_lib.launch.pacing import shares, start_order
from colo_lib.launch.placement import Placement
from colo_lib.launch.process import Child
from colo_lib.launch.turns import end_alternator, start_alternator
from colo_lib.params import Params
from colo_lib.schema import PACING

ALTERNATOR, PACER = "alternator", "pacer"


def connect(
    params: Params, placement: Placement, handles: Handles, runtime: Path, folder: Path, stack: ExitStack
) -> Loads:
    """Everything that will be under load, ready for orders and at rest; the stack ends what was started for it."""
    loads = Loads(None, tuple(handles.embeds[number] for number in placement.embeds_at_work))
    if placement.runs_gen:
        loads.client = start_client(params, handles, runtime, folder, stack)
    return loads


def begin(
    params: Params, placement: Placement, handles: Handles, loads: Loads, runtime: Path, folder: Path, stack: ExitStack
) -> None:
    """Give every workload its work; the stack takes it away again."""
    for name, handle in loads.each():
        order(handle, "start", **(start_order(params, placement) if name == "embed" else {}))
        stack.callback(stop_quietly, handle, runtime)
    if placement.mechanism == "cpu-alternating":
        loads.mechanism.append(start_alternator(params, handles, runtime, folder, stack))
    if params.embed_pacing == "slo" and shares(placement):
        loads.mechanism.append(start_pacer(params, loads, runtime, folder, stack))


def start_pacer(params: Params, loads: Loads, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that paces embed by gen's gaps."""
    assert loads.client is not None
    job: dict[str, Any] = {
        "client": asdict(loads.client), "embeds": [asdict(embed) for embed in loads.embeds],
        "slo_gap_ms": params.slo_gen_gap_ms, "concurrency": params.gen_concurrency,
        "out": str(runtime / "pacing.jsonl"),
    }  # fmt: skip
    command = [sys.executable, "-m", "colo_lib.launch.pacer", json.dumps(job)]
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
