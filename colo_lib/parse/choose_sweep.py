"""Which sweep a notebook reads: the one named, else the newest that varies its parameter, else a simulated one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from colo_lib import paths
from colo_lib.params import Params
from colo_lib.parse.sweep import Sweep, find_sweeps, open_sweep

_kept: list[tempfile.TemporaryDirectory[str]] = []


def choose_sweep(params: Params, names: tuple[str, ...], example: str) -> Sweep:
    """The sweep of `params.sweep`, else the newest of `params.sweeps_dir` that varies one of `names`, else an example.

    Raises InputError if the named sweep cannot be read or varies none of `names`.
    """
    from colo_lib.errors import InputError

    if params.sweep:
        sweep = open_sweep(paths.from_checkout(params.sweep))
        if not set(names) & set(sweep.names):
            told = f"sweep {sweep.sweep_id} varies {', '.join(sweep.names)}"
            raise InputError(f"{told}; this notebook needs one over {' or '.join(names)}")
        return _told(sweep)
    for folder in find_sweeps(paths.from_checkout(params.sweeps_dir)):
        sweep = open_sweep(folder)
        if set(names) & set(sweep.names) and sweep.runs:
            return _told(sweep)
    return example_sweep(example)


def example_sweep(name: str) -> Sweep:
    """A small simulated sweep (a key of `examples.simulated_sweep.EXAMPLES`)."""
    from colo_lib.examples.simulated_sweep import write_sweep

    folder = tempfile.TemporaryDirectory(prefix="colo-example-sweep-")
    _kept.append(folder)
    sweep = open_sweep(write_sweep(Path(folder.name), name))
    print(f"EXAMPLE: no such sweep was found, so this notebook shows a SIMULATED one of {len(sweep.cells)} cells.")
    return sweep


def _told(sweep: Sweep) -> Sweep:
    note = " (SIMULATED: planted numbers)" if sweep.simulated else " (cores stand in for GPUs)" * sweep.stand_in
    print(f"Sweep {sweep.sweep_id}{note}: {len(sweep.runs)} of {len(sweep.cells)} cells measured.")
    return sweep
