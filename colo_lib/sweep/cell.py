"""One cell: `colo run` on its parameters, as a guarded child of its own, so that a cell's end is no other's."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from colo_lib.launch.loads import package_environment
from colo_lib.launch.logs import tail
from colo_lib.launch.process import Child
from colo_lib.params import Params
from colo_lib.paths import MANIFEST, PARTIAL, cell_runs
from colo_lib.run.folder import START
from colo_lib.sweep.folder import DONE, FAILED, REFUSED, CellRecord, write_params

Say = Callable[[str], None]
POLL_S = 0.2
GRACE_S = 60.0  # `colo run` ends its engines when it is told to end
STATUSES = {0: DONE, 2: REFUSED}


def carry_out_cell(params: Params, folder: Path, cell: str, attempts: int, say: Say) -> CellRecord:
    """Record the cell's run below `folder` or take it up where it stopped; says each trial as it ends.

    Whatever interrupts us ends the child and all that it started; the run stays `.partial`, to be resumed.
    """
    began = time.monotonic()
    runs, log = cell_runs(folder), folder / "run.log"
    if not finished_run(runs):
        words = [sys.executable, "-m", "colo_lib.cli", "run", *_order(params, folder, runs), "--no-report"]
        log.unlink(missing_ok=True)
        environment = dict(os.environ) | package_environment({"PYTHONUNBUFFERED": "1"})
        child = Child(cell, words, log, env=environment, grace_s=GRACE_S)
        try:
            _follow(child, log, lambda line: say(f"{cell} {line}"))
        finally:
            child.stop()
        code = child.exit_code()
    else:
        code = 0
    status = STATUSES.get(code if code is not None else 1, FAILED)
    reason = None if status == DONE else _reason(log)
    if status == DONE and not finished_run(runs):
        status, reason = FAILED, "colo run said it was done but left no finished run"
    return CellRecord(cell, status, reason, attempts, socket.gethostname(), time.monotonic() - began)


def finished_run(runs: Path) -> Path | None:
    """The finished run folder of a cell, or None."""
    return next((file.parent for file in sorted(runs.glob(f"*/{MANIFEST}")) if file.parent.suffix != PARTIAL), None)


def _order(params: Params, folder: Path, runs: Path) -> list[str]:
    """What `colo run` is told: the unfinished run that is there, else the cell's params file."""
    unfinished = sorted(file.parent for file in runs.glob(f"*{PARTIAL}/{START}"))
    if unfinished:
        return ["--resume", str(unfinished[-1])]
    file = folder / "params.yaml"
    write_params(params, file)
    return [str(file)]


def _follow(child: Child, log: Path, say: Say) -> None:
    """Wait for the child's end; say each line in which it reports a trial."""
    with open(log, encoding="utf-8", errors="replace") as stream:
        running = True
        while running:
            running = child.running()
            for line in stream:
                if line.startswith("["):
                    say(line.rstrip())
            if running:
                time.sleep(POLL_S)


def _reason(log: Path) -> str:
    lines = tail(log, 40).splitlines()
    named = [line.removeprefix("colo: ") for line in lines if line.startswith("colo: ")]
    return "; ".join(named) or (lines[-1] if lines else "colo run said nothing")
