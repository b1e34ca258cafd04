"""A sweep from its first cell to its last: cells are independent, what is measured is not measured again.

A cell is `colo run` on its parameters, as a guarded child of its own, so that a cell's end is no other's.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from colo_lib.child_environment import package_environment
from colo_lib.launch.child import Child, tail
from colo_lib.params import Params
from colo_lib.paths import MANIFEST, PARTIAL, START, cell_folder, cell_runs
from colo_lib.record.run import terminable
from colo_lib.record.run_folder import run_lock
from colo_lib.records import CellRecord
from colo_lib.sweep_plan import (
    DONE,
    FAILED,
    REFUSED,
    GridCell,
    cell_params,
    changes_in_words,
    read_plan,
    record_cell,
    recorded,
    write_params,
)

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
        if unfinished := unfinished_run(runs):
            order = ["--resume", str(unfinished)]
        else:
            write_params(params, folder / "params.yaml")
            order = [str(folder / "params.yaml")]
        words = [sys.executable, "-m", "colo_lib.cli", "run", *order, "--no-report"]
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
    reason = None if status == DONE else last_words(log)
    if status == DONE and not finished_run(runs):
        status, reason = FAILED, "colo run said it was done but left no finished run"
    return CellRecord(
        cell=cell, status=status, reason=reason, attempts=attempts, host=socket.gethostname(),
        total_s=time.monotonic() - began,
    )  # fmt: skip


def finished_run(runs: Path) -> Path | None:
    """The finished run folder of a cell, or None."""
    return next((file.parent for file in sorted(runs.glob(f"*/{MANIFEST}")) if file.parent.suffix != PARTIAL), None)


def unfinished_run(runs: Path) -> Path | None:
    """The newest unfinished run folder of a cell, or None."""
    return max((file.parent for file in runs.glob(f"*{PARTIAL}/{START}")), default=None)


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


def last_words(log: Path) -> str:
    """Why a command of ours ended as it did, from its log."""
    lines = tail(log, 40).splitlines()
    named = [line.removeprefix("colo: ") for line in lines if line.startswith("colo: ")]
    return "; ".join(named) or (lines[-1] if lines else "colo run said nothing")


@dataclass(frozen=True)
class Order:
    """One cell to carry out: its plan, and which attempt this is (from 1)."""

    folder: Path
    cell: GridCell
    attempt: int


Execute = Callable[[list[Order], Say], Iterator[CellRecord]]


def carry_out_here(orders: list[Order], say: Say) -> Iterator[CellRecord]:
    """One cell after the other on this machine: two at once would measure each other."""
    for order in orders:
        params, _ = read_plan(order.folder)
        say(f"{order.cell.name}: {changes_in_words(order.cell.changes)}")
        target = cell_folder(order.folder, order.cell.name)
        wanted = cell_params(params, order.cell, order.folder)
        yield carry_out_cell(wanted, target, order.cell.name, order.attempt, say)


def carry_out_sweep(folder: Path, say: Say, execute: Execute = carry_out_here) -> list[CellRecord]:
    """Carry out every cell that is not done; gives the record of each, in the grid's order.

    Ctrl-C and SIGTERM raise KeyboardInterrupt after everything has been ended; `colo sweep --resume` goes on.
    """
    _, cells = read_plan(folder)
    before = {cell.name: recorded(folder, cell.name) for cell in cells}
    orders = []
    for cell in cells:
        record = before[cell.name]
        if record is None or record.status != DONE:
            orders.append(Order(folder, cell, 1 + (record.attempts if record else 0)))
    began = time.monotonic()
    with terminable(), run_lock(folder):
        for number, record in enumerate(execute(orders, say), 1):
            record_cell(folder, record)
            left_s = (time.monotonic() - began) / number * (len(orders) - number)
            say(_line(record, number, len(orders), left_s))
    records = [recorded(folder, cell.name) for cell in cells]
    return [record for record in records if record is not None]


def _line(record: CellRecord, number: int, total: int, left_s: float) -> str:
    left = f"about {left_s // 60:.0f} min {left_s % 60:02.0f} s left" if number < total else "last cell ended"
    why = f": {record.reason}" if record.reason else ""
    return f"({number}/{total}) {record.cell} {record.status}{why}  ({left})"


def sweep_summary(records: list[CellRecord], cells: int) -> str:
    """How many cells were measured, and what became of the others."""
    done = [record for record in records if record.status == DONE]
    lines = [f"{len(done)} of {cells} cells measured"]
    lines += [f"  {record.cell} {record.status}: {record.reason}" for record in records if record.status != DONE]
    return "\n".join(lines)
