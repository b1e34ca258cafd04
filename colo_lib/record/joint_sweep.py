"""A joint sweep: cells on engines that stay up, block by block; what is the same for several is measured once.

Cells of a sweep differ in a few parameters, and most trials of most cells do not depend on them: gen alone does not
know how embed would be paced. Such a trial is measured once a block and counts for every cell that would repeat it;
the cells' kept fractions are then taken against one baseline, block by block.

Every cell still becomes a run of its own, whole: trials that count for several cells are copied into each, with
`measured_in` naming the cell that measured them. Trials go straight to the launcher, without a notebook each.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from colo_lib.errors import InputError, StepFailed, StepSkipped
from colo_lib.launch.pacing import shares
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import EmbedSpec, EngineSpec, GenSpec, Specs, specs_of
from colo_lib.launch.trial import run_trial, skip_trial
from colo_lib.params import PURPOSES, Params
from colo_lib.paths import PARTIAL, TRIAL, cell_folder, cell_runs, trial_folder
from colo_lib.placement import Placement, placement_of
from colo_lib.record.captures import record_captures
from colo_lib.record.plan import rounds_of, rounds_of_set
from colo_lib.record.run import EngineKeeper, note_seconds, trial_line
from colo_lib.record.run_folder import OpenRun, begin_run, resume, run_lock, seal
from colo_lib.record.sweep import Order, finished_run, unfinished_run
from colo_lib.records import CellRecord, Trial
from colo_lib.sweep_plan import DONE, FAILED, REFUSED, cell_params, read_plan

Say = Callable[[str], None]


@dataclass(frozen=True)
class JointTrial:
    """One trial to measure, as the first of the `cells` that it counts for wants it.

    Trials of different rounds never run on the same start of the engines.
    """

    specs: Specs
    block: int
    cells: tuple[str, ...]
    round: int = 1

    @property
    def placement(self) -> Placement:
        """Of its step."""
        return self.specs.trial.placement


def plan_joint(cells: Sequence[tuple[str, Params]]) -> list[JointTrial]:
    """Every trial of a joint sweep in the order in which it is measured.

    The blocks are spread over `starts` rounds of the first cell, in each of which every set of engines is started once,
    or less often where `starts_on_two` says so (`record.plan.plan_run`). Sets with the same gen stand together, and
    every second round runs them backwards. Blocks run in alternating order within a set. Raises InputError as
    `placement_of` does.
    """
    trials: dict[tuple[object, ...], JointTrial] = {}
    for name, params in cells:
        for step in params.step_names():
            placement = placement_of(step, params)
            specs, matters = specs_of(params, placement), repr(what_matters(params, placement))
            for block in range(1, params.blocks + 1):
                key = (step, block, matters)
                before = trials.get(key)
                names = (*before.cells, name) if before else (name,)
                trials[key] = JointTrial(before.specs if before else specs, block, names)
    groups = _by_engines(list(trials.values()))
    blocks = sorted({trial.block for trial in trials.values()})
    if not cells:
        return []
    first = cells[0][1]
    spread = [(group, rounds_of_set(blocks, first, group[0].placement)) for group in groups]
    return [
        replace(trial, round=number)
        for number in range(1, len(rounds_of(blocks, first.starts)) + 1)
        for group, rounds in (spread if number % 2 else spread[::-1])
        for block in rounds.get(number, [])
        for trial in _in_block(group, block)
    ]


def what_matters(params: Params, placement: Placement) -> dict[str, object]:
    """The parameters that a trial of `placement` depends on, by name, as their purposes say.

    An idle neighbour's load does not count: its engine holds memory and computes nothing.
    """
    where = placement.runs_gen, placement.runs_embed, shares(placement), placement.mechanism
    return {name: getattr(params, name) for name, purpose in PURPOSES.items() if purpose.matters(*where)}


def sharing(plan: Sequence[JointTrial], trial: JointTrial) -> list[Placement]:
    """Placements of all trials that use the same gen, mechanism and devices as `trial`."""
    return [other.placement for other in plan if other.specs.engines.gen == trial.specs.engines.gen]


def cells_of_one_start(cells: Sequence[tuple[str, Params]], workers: int = 1) -> list[list[str]]:
    """Names of cells by the LLM's servers that they need, so that what is kept up for one serves the others.

    Cells of equal sets of them stand together, in their own order. Where that makes fewer groups than `workers`, the
    largest are divided, as evenly as can be, until there is one for each worker or each cell is alone: every worker
    then starts a set of engines once a round, and none waits for another. Raises InputError as `placement_of` does.
    """
    groups: dict[object, list[str]] = {}
    for name, params in cells:
        servers = {specs_of(params, placement_of(step, params)).engines.gen for step in params.step_names()}
        groups.setdefault((params.starts, frozenset(servers)), []).append(name)
    parts = [1] * len(groups)
    found = list(groups.values())
    while sum(parts) < min(workers, len(cells)):
        largest = max(range(len(found)), key=lambda place: len(found[place]) / parts[place])
        parts[largest] += 1
    return [
        group[len(group) * part // count : len(group) * (part + 1) // count]
        for group, count in zip(found, parts, strict=True)
        for part in range(count)
    ]


def _by_engines(trials: list[JointTrial]) -> list[list[JointTrial]]:
    """Trials by the engines they need, in the order of appearance, those with the same gen next to each other.

    A trial in which embed is idle can use any embed: it goes with the first set of its gen.
    """
    sets: dict[GenSpec, dict[EmbedSpec, list[JointTrial]]] = {}
    first: dict[GenSpec, EngineSpec] = {}
    for trial in trials:
        identity = trial.specs.engines
        opening = first.setdefault(identity.gen, identity)
        embed = identity.embed if trial.placement.runs_embed else opening.embed
        sets.setdefault(identity.gen, {}).setdefault(embed, []).append(trial)
    return [group for by_embed in sets.values() for group in by_embed.values()]


def _in_block(group: list[JointTrial], block: int) -> list[JointTrial]:
    mine = [trial for trial in group if trial.block == block]
    return mine if block % 2 else mine[::-1]


@dataclass
class JointCell:
    """A cell under way: its unfinished run, what failed in it, what it lacks in the end."""

    order: Order
    run: OpenRun
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def folder(self, trial: JointTrial) -> Path:
        """Where the record of a trial belongs."""
        return trial_folder(self.run.folder, trial.placement.step, trial.block)

    def lacks(self, trial: JointTrial) -> bool:
        """Whether the trial is not recorded here yet."""
        return self.run.lacks(trial.placement.step, trial.block)

    def close(self, seconds: float) -> None:
        """Note the time of this sitting and, where nothing failed, make the folder a run."""
        note_seconds(self.run.folder, seconds)
        if not self.failures:
            seal(self.run.folder)


def carry_out_jointly(orders: list[Order], say: Say, check_unfinished: Callable[[Path], None]) -> Iterator[CellRecord]:
    """Carry out all cells at once on this machine; gives their records at the end, in the grid's order.

    A cell that cannot be begun is refused and takes no other with it. A capture that cannot be had is told, and its
    cell counts as done: what it measured is complete. Whatever interrupts us ends the engines and leaves the runs
    `.partial`, to be taken up again.
    """
    began = time.monotonic()
    outcomes: dict[str, tuple[str, str | None]] = {}
    with ExitStack() as stack:
        cells = _open_cells(orders, stack, outcomes, check_unfinished)
        try:
            _measure(cells, stack.enter_context(runtime_folder()), say)
            _capture(cells, say)
        except KeyboardInterrupt:
            for cell in cells.values():
                note_seconds(cell.run.folder, time.monotonic() - began)
            raise
        for name, cell in cells.items():
            cell.close(time.monotonic() - began)
            outcomes[name] = (FAILED if cell.failures else DONE, "; ".join(cell.failures or cell.missing) or None)
    seconds, host = time.monotonic() - began, socket.gethostname()
    for order in orders:
        status, reason = outcomes[order.cell.name]
        yield CellRecord(
            cell=order.cell.name, status=status, reason=reason, attempts=order.attempt, host=host, total_s=seconds
        )


def _open_cells(
    orders: list[Order],
    stack: ExitStack,
    outcomes: dict[str, tuple[str, str | None]],
    check_unfinished: Callable[[Path], None],
) -> dict[str, JointCell]:
    """The cells that are to be measured, each held until the stack ends; what became of the others goes into `told`."""
    cells = {}
    for order in orders:
        try:
            if finished_run(cell_runs(cell_folder(order.folder, order.cell.name))):
                outcomes[order.cell.name] = (DONE, None)
                continue
            cell = _open_cell(order, check_unfinished)
            stack.enter_context(run_lock(cell.run.folder))
            cells[order.cell.name] = cell
        except InputError as error:
            outcomes[order.cell.name] = (REFUSED, str(error))
    return cells


def _capture(cells: dict[str, JointCell], say: Say) -> None:
    """The captures that cells want, after all trials: each starts engines of its own below nsys."""
    for name, cell in cells.items():
        if not cell.failures:
            cell.missing = record_captures(cell.run, cell.run.params.step_names(), say)
            for sentence in cell.missing:
                say(f"{name}: {sentence}")


def _open_cell(order: Order, check_unfinished: Callable[[Path], None]) -> JointCell:
    """The cell's unfinished run, taken up or begun; raises InputError for one that is damaged."""
    base, _ = read_plan(order.folder)
    params = cell_params(base, order.cell, order.folder)
    runs = cell_runs(cell_folder(order.folder, order.cell.name))
    if unfinished := unfinished_run(runs):
        return JointCell(order, OpenRun(resume(unfinished, runs, check_unfinished).folder, params))
    return JointCell(order, begin_run(params, say=lambda _: None))


def _measure(cells: dict[str, JointCell], runtime: Path, say: Say) -> None:
    """Every trial that a cell lacks, measured once and laid into all of its cells."""
    if not cells:
        return
    plan = plan_joint([(name, cell.run.params) for name, cell in cells.items()])
    keeper = EngineKeeper(runtime, next(iter(cells.values())).run.folder / "logs")
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
                failure = _measure_trial(have, trial, sharing(plan, trial), keeper, say)
            for cell in missing:
                if failure:
                    cell.failures.append(f"{trial.placement.step}, trial {trial.block}: {failure}")
                elif cell is not have:
                    copy_trial(have, cell, trial)
            where = f"{', '.join(trial.cells)}: {trial.placement.step}, block {trial.block}"
            say(f"[{number}/{len(plan)}] {where}: {trial_line(have.folder(trial), failure)}")
    finally:
        keeper.stop()


def _measure_trial(
    cell: JointCell, trial: JointTrial, others: list[Placement], keeper: EngineKeeper, say: Say
) -> str | None:
    """Measure one trial into a cell's folder; None when it left a record that counts, else the cause."""
    folder = cell.folder(trial)
    try:
        handles = keeper.ready_for(trial.specs.engines, others, cell.run.needed_gib(), say)
        run_trial(trial.specs.trial, handles, folder, trial.block)
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
    record = Trial.read(partial / TRIAL)
    Trial.model_validate({"measured_in": source.order.cell.name} | record.plain()).write(partial / TRIAL)
    partial.rename(folder)
