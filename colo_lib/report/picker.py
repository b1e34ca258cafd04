"""Which runs are there to read: a table for notebooks, with the line to paste into the parameters cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from colo_lib import paths
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.run import find_runs, open_run
from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.report import notebook_output
from colo_lib.report.sections import NOTEBOOK

MOST = 8  # newest runs that are judged; each costs a second or two
COLUMNS = ["To read it, set", "Hypothesis", "Device", "Models", "Trials that count", "Recorded"]


def show_runs(params: Params) -> None:
    """Display the finished runs of `params.runs_dir` and the recorded ones; nothing where `params.run` names one."""
    if not params.run:
        caption = f"Finished runs, newest first (the newest {MOST} of each place): paste a line and run all again."
        found = runs_table(paths.from_checkout(params.runs_dir), paths.RECORDED)
        notebook_output.show_table(found, "runs", caption, section=NOTEBOOK)


def runs_table(*places: Path) -> pd.DataFrame:
    """A row a finished run of each place, newest first: how to name it, its verdict, and what it ran on."""
    rows = [_row(folder) for place in places for folder in find_runs(place)[:MOST]]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(folder: Path) -> tuple[str, ...]:
    """One run; one that cannot be read is told with the reason, and stops nothing."""
    shown = folder.relative_to(paths.REPOSITORY) if folder.is_relative_to(paths.REPOSITORY) else folder
    line = f'run = "{shown.as_posix()}"'
    try:
        run = open_run(folder)
        status = RunAnalysis(run).verdict.status
    except InputError as error:
        return (line, f"unreadable: {error}", *["—"] * 4)
    label = " (SIMULATED)" if run.simulated else " (cores stand in)" if run.stand_in else ""
    counted = int((run.trials["status"] == "done").sum())
    return (
        line,
        status,
        f"{run.manifest.machine.device_name}{label}",
        " + ".join(str(run.manifest.model_of(name).name) for name in ("gen", "embed")),
        f"{counted} of {len(run.trials)}",
        run.manifest.created_utc or "not recorded",
    )
