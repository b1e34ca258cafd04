"""Open a sweep's folder: its cells with what became of each, and their finished runs, checked as any run is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colo_lib import paths
from colo_lib.data.run import Run, find_runs, open_run
from colo_lib.errors import InputError
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import checked, damaged, read_object
from colo_lib.params import Params, check_recorded, names_touching
from colo_lib.records import Cell, SweepPlan, Value

NOT_RUN = "not run"
# Which steps a cell has, and what is captured of them, changes none of their trials.
WITHOUT_EFFECT = names_touching("plan", "capture")
MAX_PLAN_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class SweepCell:
    """A cell: what it changes, its status (done, failed, refused, lost, 'not run'), and its run where it is done."""

    name: str
    changes: Mapping[str, Value]
    status: str
    reason: str | None
    run: Run | None


@dataclass(frozen=True)
class Sweep:
    """A sweep: its base parameters, the names that it varies, and its cells in the grid's order."""

    folder: Path
    sweep_id: str
    params: Params
    names: tuple[str, ...]
    cells: list[SweepCell]

    @property
    def runs(self) -> dict[str, Run]:
        """Cell -> its finished run."""
        return {cell.name: cell.run for cell in self.cells if cell.run is not None}

    @property
    def steps(self) -> set[str]:
        """Steps that any of its runs has."""
        return {step for run in self.runs.values() for step in run.params.step_names()}

    def along(self, names: Sequence[str]) -> Sweep:
        """The cells that differ from the first one in `names` alone; what no trial depends on may differ too.

        A sweep that changes one thing at a time holds several such lines. `names` of what is left are those that the
        sweep varies.
        """
        varied = tuple(name for name in self.names if name in names)
        others = [name for name in self.names if name not in varied and name not in WITHOUT_EFFECT]
        first = self.cells[0].changes
        line = [cell for cell in self.cells if all(cell.changes[name] == first[name] for name in others)]
        return replace(self, cells=line, names=varied)

    @property
    def simulated(self) -> bool:
        """True where any of its runs holds planted numbers."""
        return any(run.simulated for run in self.runs.values())

    @property
    def stand_in(self) -> bool:
        """True where cores stood in for GPUs in any of its runs."""
        return any(run.stand_in for run in self.runs.values())


def open_sweep(folder: str | Path) -> Sweep:
    """Open a sweep, finished or not; raises InputError for a folder that is none or a cell that is damaged."""
    outline = sweep_outline(folder)
    return replace(outline, cells=[_opened(outline.folder, cell) for cell in outline.cells])


def sweep_outline(folder: str | Path) -> Sweep:
    """A sweep with what became of its cells, none of whose runs is opened; raises InputError as `open_sweep` does."""
    root = Path(folder)
    loaded = read_object(root / paths.SWEEP, MAX_PLAN_BYTES)
    if loaded.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{root}: schema version {loaded.get('schema_version')!r}, this workbook reads {SCHEMA_VERSION}"
        )
    plan = checked(SweepPlan, loaded, root / paths.SWEEP)
    names = tuple(name for axis in plan.over for name in axis.names)
    cells = [_cell_outline(root, row.cell, row.changes) for row in plan.cells]
    return Sweep(root, plan.sweep_id, check_recorded(plan.params, str(root)), names, cells)


def measured_along(folder: str | Path, names: Sequence[str], steps: Sequence[str]) -> int:
    """Measured cells that differ from a sweep's first one in `names` alone, as far as the records of the cells say.

    0 for a sweep that varies none of `names`, or has none of `steps`. Raises InputError as `open_sweep` does.
    """
    sweep = sweep_outline(folder)
    done = [cell for cell in sweep.cells if cell.status == "done"]
    planned = {step for cell in done for step in sweep.params.model_copy(update=dict(cell.changes)).step_names()}
    if not set(names) & set(sweep.names) or not set(steps) & planned:
        return 0
    return sum(cell.status == "done" for cell in sweep.along(names).cells)


def find_sweeps(sweeps_dir: str | Path) -> list[Path]:
    """Sweep folders, newest first by the plan's own time."""
    sweeps = []
    for file in Path(sweeps_dir).glob(f"*/{paths.SWEEP}"):
        try:
            sweeps.append((str(read_object(file, MAX_PLAN_BYTES).get("created_utc", "")), file.parent))
        except InputError:
            continue
    return [folder for _, folder in sorted(sweeps, reverse=True)]


def _cell_outline(root: Path, name: str, changes: dict[str, Value]) -> SweepCell:
    file = paths.cell_folder(root, name) / paths.CELL
    if not file.is_file():
        return SweepCell(name, changes, NOT_RUN, None, None)
    record = Cell.read(file, MAX_PLAN_BYTES)
    return SweepCell(name, changes, record.status, record.reason, None)


def _opened(root: Path, cell: SweepCell) -> SweepCell:
    if cell.status != "done":
        return cell
    folder = paths.cell_folder(root, cell.name)
    runs = find_runs(paths.cell_runs(folder))
    if not runs:
        raise damaged(folder, "counts as done but holds no finished run")
    return replace(cell, run=open_run(runs[0]))
