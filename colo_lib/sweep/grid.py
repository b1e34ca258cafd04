"""The grid of a sweep: `NAME=V1,V2` words to cells, every value checked before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colo_lib.errors import InputError
from colo_lib.params import Params, check, typed

MOST_CELLS = 500
# The sweep itself says where its cells' runs go and what they are called.
OWN = ("run", "run_name", "runs_dir", "block", "sweep", "sweeps_dir")


@dataclass(frozen=True)
class Axis:
    """Parameters that change together: `values` holds a tuple a place, one value a name."""

    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class GridCell:
    """One cell: its name and the parameters that it changes."""

    name: str
    changes: dict[str, Any]


def parse_axis(word: str) -> Axis:
    """`NAME=V1,V2` or, for parameters that change together, `NAME:NAME=V1:V1,V2:V2`.

    Values that hold commas are separated by ';' instead. Raises InputError naming what is wrong.
    """
    head, equals, tail = word.partition("=")
    names = tuple(name.strip() for name in head.split(":"))
    if not equals or not tail.strip() or not all(names):
        raise InputError(f"--over {word!r}: write NAME=V1,V2 (together: NAME:NAME=V1:V1,V2:V2)")
    for name in names:
        if name in OWN:
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


def told(changes: dict[str, Any]) -> str:
    """A cell's changes in words: `gen_concurrency = 2, blocks = 3`."""
    return ", ".join(f"{name} = {value}" for name, value in changes.items())
