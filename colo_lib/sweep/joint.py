"""A joint sweep: the cells' trials on engines that stay up, block by block, a shared baseline measured once.

Every cell still becomes a run of its own, whole: trials that count for several cells are copied into each, with
`measured_in` naming the cell that measured them. Trials go straight to the launcher, without a notebook each.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from colo_lib.capture.manifest import START, seal, write_json
from colo_lib.errors import InputError, StepFailed, StepSkipped
from colo_lib.launch.placement import Placement
from colo_lib.launch.runtime import runtime_folder
from colo_lib.launch.trial import run_trial, skip_trial
from colo_lib.params import Params
from colo_lib.paths import PARTIAL, TRIAL, cell_folder, cell_runs, trial_folder
from colo_lib.run.captures import record_captures
from colo_lib.run.flow import note_seconds, trial_line
from colo_lib.run.folder import begin, counts, held, resume, trial_status
from colo_lib.run.keeper import EngineKeeper
from colo_lib.sweep.cell import finished_run
from colo_lib.sweep.flow import Order
from colo_lib.sweep.folder import DONE, FAILED, REFUSED, CellRecord, cell_params, read_plan
from colo_lib.sweep.joint_plan import JointTrial, plan_joint, sharing

Say = Callable[[str], None]


@dataclass
class JointCell:
    """A cell under way: its parameters, its unfinished run folder, what failed in it, what it lacks in the end."""

    order: Order
    params: Params
    run: Path
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def folder(self, trial: JointTrial) -> Path:
        """Where the record of a trial belongs."""
        return trial_folder(self.run, trial.placement.step, trial.block)

    def lacks(self, trial: JointTrial) -> bool:
        """Whether the trial is not recorded here yet."""
        return not counts(trial_status(self.run, trial.placement.step, trial.block))

    def close(self, seconds: float) -> None:
        """Note the time of this sitting and, where nothing failed, make the folder a run."""
        note_seconds(self.run, seconds)
        if not self.failures:
            self.run = seal(self.run)


def carry_out_jointly(orders: list[Order], say: Say) -> Iterator[CellRecord]:
    """Carry out all cells at once on this machine; gives their records at the end, in the grid's order.

    A cell that cannot be begun is refused and takes no other with it. A capture that cannot be had is told, and its
    cell counts as done: what it measured is complete. Whatever interrupts us ends the engines and leaves the runs
    `.partial`, to be taken up again.
    """
    began = time.monotonic()
    told: dict[str, tuple[str, str | None]] = {}
    with ExitStack() as stack:
        cells = _open_cells(orders, stack, told)
        try:
            _measure(cells, stack.enter_context(runtime_folder()), say)
            _capture(cells, say)
        except KeyboardInterrupt:
            for cell in cells.values():
                note_seconds(cell.run, time.monotonic() - began)
            raise
        for name, cell in cells.items():
            cell.close(time.monotonic() - began)
            told[name] = (FAILED if cell.failures else DONE, "; ".join(cell.failures or cell.missing) or None)
    seconds, host = time.monotonic() - began, socket.gethostname()
    yield from (CellRecord(one.cell.name, *told[one.cell.name], one.attempt, host, seconds) for one in orders)


def _open_cells(orders: list[Order], stack: ExitStack, told: dict[str, tuple[str, str | None]]) -> dict[str, JointCell]:
    """The cells that are to be measured, each held until the stack ends; what became of the others goes into `told`."""
    cells = {}
    for order in orders:
        try:
            if finished_run(cell_runs(cell_folder(order.folder, order.cell.name))):
                told[order.cell.name] = (DONE, None)
                continue
            cell = _open_cell(order)
            stack.enter_context(held(cell.run))
            cells[order.cell.name] = cell
        except InputError as error:
            told[order.cell.name] = (REFUSED, str(error))
    return cells


def _capture(cells: dict[str, JointCell], say: Say) -> None:
    """The captures that cells want, after all trials: each starts engines of its own below nsys."""
    for name, cell in cells.items():
        if not cell.failures:
            cell.missing = record_captures(cell.params, cell.run, cell.params.step_names(), say)
            for sentence in cell.missing:
                say(f"{name}: {sentence}")


def _open_cell(order: Order) -> JointCell:
    """The cell's unfinished run, taken up or begun; raises InputError for one that is damaged."""
    base, _ = read_plan(order.folder)
    params = cell_params(base, order.cell, order.folder)
    runs = cell_runs(cell_folder(order.folder, order.cell.name))
    unfinished = sorted(file.parent for file in runs.glob(f"*{PARTIAL}/{START}"))
    run = resume(unfinished[-1], runs)[0] if unfinished else begin(params, say=lambda _: None)
    return JointCell(order, params, run)


def _measure(cells: dict[str, JointCell], runtime: Path, say: Say) -> None:
    """Every trial that a cell lacks, measured once and laid into all of its cells."""
    if not cells:
        return
    plan = plan_joint([(name, cell.params) for name, cell in cells.items()])
    keeper = EngineKeeper(runtime, next(iter(cells.values())).run / "logs")
    try:
        up = None
        for number, trial in enumerate(plan, 1):
            mine = [cells[name] for name in trial.cells]
            missing = [cell for cell in mine if cell.lacks(trial)]
            if not missing:
                continue
            have = next((cell for cell in mine if not cell.lacks(trial)), None)
            failure = None
            if have is None:
                if up not in (None, trial.round):
                    keeper.stop()  # engines of an earlier round would be no fresh start
                up, have = trial.round, missing[0]
                failure = _one_trial(have, trial, sharing(plan, trial), keeper, say)
            for cell in missing:
                if failure:
                    cell.failures.append(f"{trial.placement.step}, trial {trial.block}: {failure}")
                elif cell is not have:
                    copy_trial(have, cell, trial)
            where = f"{', '.join(trial.cells)}: {trial.placement.step}, block {trial.block}"
            say(f"[{number}/{len(plan)}] {where}: {trial_line(have.folder(trial), failure)}")
    finally:
        keeper.stop()


def _one_trial(
    cell: JointCell, trial: JointTrial, others: list[Placement], keeper: EngineKeeper, say: Say
) -> str | None:
    """Measure one trial into a cell's folder; None when it left a record that counts, else the cause."""
    folder = cell.folder(trial)
    try:
        handles = keeper.ready_for(trial.params, trial.placement, others, say)
        run_trial(trial.params, trial.placement, handles, folder, trial.block)
    except StepSkipped as skipped:
        skip_trial(trial.placement, folder, trial.block, str(skipped))
    except StepFailed as error:
        # An engine that failed a trial is not trusted with the next one.
        keeper.stop()
        return str(error)
    return None


def copy_trial(source: JointCell, target: JointCell, trial: JointTrial) -> None:
    """A trial's folder as another cell's own, but for the logs; it appears whole or not at all."""
    folder = target.folder(trial)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source.folder(trial), partial, ignore=shutil.ignore_patterns("logs"))
    told = json.loads((partial / TRIAL).read_text())
    write_json(partial / TRIAL, {"measured_in": source.order.cell.name} | told)
    partial.rename(folder)
