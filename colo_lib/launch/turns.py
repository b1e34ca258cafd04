"""The owner's side of `alternate`: start the process that lets the workloads take turns, keep its account."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from colo_lib.errors import StepFailed
from colo_lib.frames import write_frame
from colo_lib.launch.engines import Handles
from colo_lib.launch.loads import wait_for
from colo_lib.launch.process import Child
from colo_lib.params import Params

BEGIN_TIMEOUT_S = 20.0
ALTERNATE = Path(__file__).with_name("alternate.py")


def start_alternator(params: Params, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that lets the two workloads take turns; it has begun. Raises StepFailed for one that does not."""
    groups = handles.pids()
    command = [sys.executable, "-I", str(ALTERNATE), "--slice-ms", str(params.slice_ms)]
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
