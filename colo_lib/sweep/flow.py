"""A sweep from its first cell to its last: cells are independent, what is measured is not measured again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from colo_lib.paths import cell_folder
from colo_lib.run.flow import terminable
from colo_lib.run.folder import held
from colo_lib.sweep.cell import carry_out_cell
from colo_lib.sweep.folder import DONE, CellRecord, cell_params, read_plan, record, recorded
from colo_lib.sweep.grid import GridCell, told

Say = Callable[[str], None]


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
        say(f"{order.cell.name}: {told(order.cell.changes)}")
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
        found = before[cell.name]
        if found is None or found.status != DONE:
            orders.append(Order(folder, cell, 1 + (found.attempts if found else 0)))
    began = time.monotonic()
    with terminable(), held(folder):
        for number, found in enumerate(execute(orders, say), 1):
            record(folder, found)
            left_s = (time.monotonic() - began) / number * (len(orders) - number)
            say(_line(found, number, len(orders), left_s))
    records = [recorded(folder, cell.name) for cell in cells]
    return [found for found in records if found is not None]


def _line(found: CellRecord, number: int, total: int, left_s: float) -> str:
    left = f"about {left_s // 60:.0f} min {left_s % 60:02.0f} s left" if number < total else "last cell ended"
    why = f": {found.reason}" if found.reason else ""
    return f"({number}/{total}) {found.cell} {found.status}{why}  ({left})"


def summary(records: list[CellRecord], cells: int) -> str:
    """How many cells were measured, and what became of the others."""
    done = [found for found in records if found.status == DONE]
    lines = [f"{len(done)} of {cells} cells measured"]
    lines += [f"  {found.cell} {found.status}: {found.reason}" for found in records if found.status != DONE]
    return "\n".join(lines)
