"""Which run a notebook reads: the one named, else the newest finished one, else a recorded or a simulated example."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.params import Params, check_recorded
from colo_lib.parse.json_file import checked, read_object
from colo_lib.parse.records import Manifest
from colo_lib.parse.run_folder import Run, find_runs, newest_run, open_run

# What two runs of one pair of models have in common.
PAIR = ("gen_model", "embed_model", "weights", "gen_concurrency", "device")


def choose_run(params: Params) -> Run:
    """The run of `params.run`, else the newest finished one of `params.runs_dir`, else an example.

    A relative path is looked for from here, then from the checkout. Raises InputError if the named run cannot be read.
    """
    if params.run:
        return _told(open_run(paths.from_checkout(params.run)))
    newest = newest_run(paths.from_checkout(params.runs_dir))
    return _told(open_run(newest)) if newest else example_run()


def named_run(name: str, runs_dir: str) -> Path:
    """The folder that a command's RUN means: a path, or the name of a run, or of an unfinished one, in `runs_dir`."""
    folder = Path(name)
    if folder.exists() or len(folder.parts) != 1:
        return folder
    named = Path(runs_dir) / folder
    unfinished = named.with_name(named.name + paths.PARTIAL)
    return unfinished if unfinished.exists() and not named.exists() else named


def example_run() -> Run:
    """So that every notebook reaches its end where nothing was measured yet: a recorded run, else a simulated one."""
    recorded = newest_run(paths.RECORDED)
    if recorded:
        run = open_run(recorded)
        device = run.manifest["machine"]["device_name"]
        print(f"EXAMPLE: no finished run was found here; this one was recorded on {device}.")
        return run
    from colo_lib.examples.folder import example_folder
    from colo_lib.examples.plan import Plan
    from colo_lib.examples.simulated import write_run

    run = open_run(write_run(example_folder(), Plan(run_id="example-simulated")))
    print("EXAMPLE: no finished run was found, so this notebook shows a SIMULATED one. `colo run` measures a real one.")
    return run


def alike(params: Params, pair: Params, steps: tuple[str, ...]) -> Run | None:
    """A run that has `steps` and `pair`'s models and concurrency: of here, of a sweep, or a recorded one; or None.

    The newest of the first of these places that has one; damaged ones are passed over.
    """
    for root in (paths.from_checkout(params.runs_dir), paths.from_checkout(params.sweeps_dir), paths.RECORDED):
        folders = [
            *find_runs(root),
            *(run for cell in sorted(Path(root).glob("*/cells/*/runs")) for run in find_runs(cell)),
        ]
        for folder in folders:
            with suppress(InputError):
                if _fits(folder, pair, steps):
                    return open_run(folder)
    return None


def _fits(folder: Path, pair: Params, steps: tuple[str, ...]) -> bool:
    """Whether a run has `steps` and measures `pair`; raises InputError for one that is damaged."""
    own = check_recorded(checked(Manifest, read_object(folder / paths.MANIFEST), folder).params, str(folder))
    return set(steps) <= set(own.step_names()) and all(getattr(own, name) == getattr(pair, name) for name in PAIR)


def _told(run: Run) -> Run:
    note = " (SIMULATED: planted numbers)" if run.simulated else " (cores stand in for GPUs)" if run.stand_in else ""
    print(f"Run {run.run_id}{note}: {len(run.trials)} trials, {(run.trials['status'] == 'done').sum()} of them count.")
    return run
