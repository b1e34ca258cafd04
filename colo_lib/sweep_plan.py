"""The plan of a sweep: `NAME=V1,V2` words to cells, and the folder that keeps it and what became of each cell.

<sweeps_dir>/<sweep_id>/
  sweep.json                    schema version; base parameters; the axes; every cell with its changes
  cells/<cell>/params.yaml      the cell's parameters, whole: `colo run` takes them as they are
  cells/<cell>/runs/<run_id>/   its run folder (`.partial` while unfinished)
  cells/<cell>/cell.json        status done, failed, refused or lost; reason; attempts; where it ran; written last
  cells/<cell>/run.log          what `colo run` said
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from colo_lib.errors import InputError
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import now_utc
from colo_lib.params import Params, check, check_recorded, typed
from colo_lib.paths import CELL, SWEEP, cell_folder, cell_runs, check_run_id
from colo_lib.records import CellRecord, SweepAxis, SweepPlan, SweepRow, Value

MOST_CELLS = 500


# The sweep itself says where its cells' runs go and what they are called.
SET_BY_SWEEP = ("run", "run_name", "runs_dir", "block", "sweep", "sweeps_dir")
DONE, FAILED, REFUSED, LOST = "done", "failed", "refused", "lost"


@dataclass(frozen=True)
class Axis:
    """Parameters that change together: `values` holds a tuple a place, one value a name."""

    names: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]

    def record(self) -> SweepAxis:
        """The axis as the sweep's plan keeps it."""
        return SweepAxis(names=list(self.names), values=[list(values) for values in self.values])


@dataclass(frozen=True)
class GridCell:
    """One cell: its name and the parameters that it changes."""

    name: str
    changes: dict[str, Value]


def parse_axis(word: str) -> Axis:
    """`NAME=V1,V2` or, for parameters that change together, `NAME:NAME=V1:V1,V2:V2`.

    Values that hold commas are separated by ';' instead. Raises InputError naming what is wrong.
    """
    head, equals, tail = word.partition("=")
    names = tuple(name.strip() for name in head.split(":"))
    if not equals or not tail.strip() or not all(names):
        raise InputError(f"--over {word!r}: write NAME=V1,V2 (together: NAME:NAME=V1:V1,V2:V2)")
    for name in names:
        if name in SET_BY_SWEEP:
            raise InputError(f"--over {word!r}: {name!r} is set by the sweep itself")
    values = []
    for text in tail.split(";" if ";" in tail else ","):
        parts = text.split(":") if len(names) > 1 else [text]
        if len(parts) != len(names):
            raise InputError(f"--over {word!r}: {text!r} has {len(parts)} values for {len(names)} parameters")
        values.append(tuple(typed(name, part.strip()) for name, part in zip(names, parts, strict=True)))
    if len(set(map(repr, values))) != len(values):
        raise InputError(f"--over {word!r}: a value is given twice")
    return Axis(names, tuple(values))


def grid(base: Params, axes: Sequence[Axis]) -> list[GridCell]:
    """Every combination of the axes' values, the last axis fastest; raises InputError for one that `Params` refuses."""
    names = [name for axis in axes for name in axis.names]
    if not axes:
        raise InputError("nothing to vary: give --over NAME=V1,V2")
    if len(set(names)) != len(names):
        raise InputError(f"a parameter is varied twice: {', '.join(names)}")
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MOST_CELLS:
        raise InputError(f"{len(combinations)} cells: more than {MOST_CELLS}; vary fewer values at once")
    cells = []
    for number, places in enumerate(combinations, 1):
        changes = dict(zip(names, itertools.chain.from_iterable(places), strict=True))
        checked = check(base.model_dump() | changes, f"cell {number} of the sweep")
        cells.append(GridCell(f"cell-{number:03d}", {name: getattr(checked, name) for name in names}))
    return cells


def changes_in_words(changes: Mapping[str, Value]) -> str:
    """A cell's changes in words: `gen_concurrency = 2, blocks = 3`."""
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


def begin_sweep(params: Params, axes: Sequence[Axis], cells: Sequence[GridCell], jointly: bool = False) -> Path:
    """A new sweep folder under `params.sweeps_dir`, with its plan; raises InputError when it cannot be made."""
    name = f"{params.run_name}-{axes[0].names[0]}"[:48] + time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
    folder = Path(params.sweeps_dir) / check_run_id(name)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"parameter 'sweeps_dir' = {params.sweeps_dir!r}: {folder} cannot be made: {error}") from None
    SweepPlan(
        schema_version=SCHEMA_VERSION,
        sweep_id=folder.name,
        created_utc=now_utc(),
        params=params.model_dump(),
        jointly=jointly,
        over=[axis.record() for axis in axes],
        cells=[SweepRow(cell=cell.name, changes=cell.changes) for cell in cells],
    ).write(folder / SWEEP)
    return folder


def read_plan(folder: Path) -> tuple[Params, list[GridCell]]:
    """The base parameters and the cells of a sweep folder; raises InputError when it is none."""
    file = folder / SWEEP
    if not file.is_file():
        raise InputError(f"{folder} is no sweep folder: it has no {SWEEP}")
    try:
        plan = SweepPlan.read(file)
    except InputError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    return check_recorded(plan.params, str(file)), [GridCell(row.cell, row.changes) for row in plan.cells]


def is_joint(folder: Path) -> bool:
    """Whether the cells of a sweep are measured together, on shared engines."""
    return bool(SweepPlan.read(folder / SWEEP).jointly)


def find_sweep(named: str, sweeps_dir: str) -> Path:
    """A sweep's folder by path or by its name in `sweeps_dir`; raises InputError when there is none."""
    for candidate in (Path(named), Path(sweeps_dir) / named):
        if (candidate / SWEEP).is_file():
            return candidate
    raise InputError(f"no sweep {named!r}: give the folder that `colo sweep` named")


def cell_params(base: Params, cell: GridCell, folder: Path) -> Params:
    """The parameters of a cell; its run goes below the cell's own folder."""
    placed = {"runs_dir": str(cell_runs(cell_folder(folder, cell.name).absolute())), "run_name": cell.name, "run": ""}
    return check(base.model_dump() | cell.changes | placed, f"{cell.name} of {folder.name}")


def write_params(params: Params, file: Path) -> None:
    """A params file that `colo run` takes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def record_cell(folder: Path, record: CellRecord) -> None:
    """Write what became of a cell."""
    cell_folder(folder, record.cell).mkdir(parents=True, exist_ok=True)
    record.write(cell_folder(folder, record.cell) / CELL)


def recorded(folder: Path, cell: str) -> CellRecord | None:
    """What became of a cell, None when it has not come to an end."""
    file = cell_folder(folder, cell) / CELL
    return CellRecord.read(file) if file.is_file() else None
