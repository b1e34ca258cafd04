"""Which sweep a notebook reads: the one named, else the newest that varies its parameter, else an example."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.parse.sweep import Sweep, find_sweeps, open_sweep


def choose_sweep(
    params: Params, names: tuple[str, ...], example: str, steps: tuple[str, ...] = ("step2",), whole: bool = False
) -> Sweep:
    """The sweep of `params.sweep`, else the newest of `params.sweeps_dir` that fits, else a recorded or simulated one.

    One fits that varies one of `names` and has one of `steps`. Of a sweep that varies more than `names` only the cells
    are taken that differ from the first in `names` alone, unless `whole`.
    Raises InputError if the named sweep cannot be read or varies none of `names`.
    """
    if params.sweep:
        sweep = open_sweep(paths.from_checkout(params.sweep))
        if not set(names) & set(sweep.names):
            told = f"sweep {sweep.sweep_id} varies {', '.join(sweep.names)}"
            raise InputError(f"{told}; this notebook needs one over {' or '.join(names)}")
        return _told(sweep, names, whole)
    own = _first_fitting(find_sweeps(paths.from_checkout(params.sweeps_dir)), names, steps)
    if own:
        return _told(own, names, whole)
    recorded = _first_fitting(find_sweeps(paths.RECORDED), names, steps)
    if recorded:
        device = next(iter(recorded.runs.values())).manifest["machine"]["device_name"]
        print(f"EXAMPLE: no such sweep was found here; this one was recorded on {device}.")
        return _told(recorded, names, whole)
    return example_sweep(example)


def _first_fitting(folders: Iterable[Path], names: tuple[str, ...], steps: tuple[str, ...]) -> Sweep | None:
    """The first sweep of which two cells or more, a line over `names`, were measured in one of `steps`."""
    for folder in folders:
        sweep = open_sweep(folder)
        if set(names) & set(sweep.names) and set(steps) & sweep.steps and len(sweep.along(names).runs) > 1:
            return sweep
    return None


def example_sweep(name: str) -> Sweep:
    """A small simulated sweep (a key of `examples.simulated_sweep.EXAMPLES`)."""
    from colo_lib.examples.folder import example_folder
    from colo_lib.examples.simulated_sweep import write_sweep

    sweep = open_sweep(write_sweep(example_folder(), name))
    print(f"EXAMPLE: no such sweep was found, so this notebook shows a SIMULATED one of {len(sweep.cells)} cells.")
    return sweep


def _told(sweep: Sweep, names: tuple[str, ...], whole: bool) -> Sweep:
    note = " (SIMULATED: planted numbers)" if sweep.simulated else " (cores stand in for GPUs)" * sweep.stand_in
    chosen = sweep if whole else sweep.along(names)
    line = (
        ""
        if len(chosen.cells) == len(sweep.cells)
        else f"; {len(chosen.cells)} differ in {' and '.join(chosen.names)} alone"
    )
    print(f"Sweep {sweep.sweep_id}{note}: {len(sweep.runs)} of {len(sweep.cells)} cells measured{line}.")
    return chosen
