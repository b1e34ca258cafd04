"""The only place that spells a file name of a run folder."""

from __future__ import annotations

import re
from pathlib import Path

from colo_lib.errors import InputError

RUN_ID = r"[a-z0-9][a-z0-9_-]{0,63}"
REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPOSITORY / "notebooks"
RECORDED = REPOSITORY / "recorded"
PARTIAL = ".partial"
START = "start.json"
MANIFEST = "manifest.json"
TRIAL = "trial.json"
SWEEP = "sweep.json"
CELL = "cell.json"
CAPTURE = "capture.json"


def from_checkout(path: str | Path) -> Path:
    """A relative path as seen from here or, when it is not there, from the checkout.

    JupyterLab runs a notebook in its own folder; its paths mean the same there as for `colo run`.
    """
    given = Path(path)
    in_notebooks = Path.cwd() == NOTEBOOKS
    return given if given.is_absolute() or (given.exists() and not in_notebooks) else REPOSITORY / given


def check_run_id(run_id: str) -> str:
    """`run_id` itself; raises InputError unless it is a plain lower-case name, since it becomes a folder."""
    if not re.fullmatch(RUN_ID, run_id):
        raise InputError(f"run id {run_id!r}: use a-z, 0-9, '-' and '_', at most 64, starting with a letter or digit")
    return run_id


def run_folder(runs_dir: str | Path, run_id: str) -> Path:
    """Where a finished run lies."""
    return Path(runs_dir) / check_run_id(run_id)


def partial_folder(runs_dir: str | Path, run_id: str) -> Path:
    """Where a run lies while it is not finished; it never counts under this name."""
    return Path(runs_dir) / (check_run_id(run_id) + PARTIAL)


def trial_folder(run: str | Path, step: str, trial: int) -> Path:
    """Folder of the `trial`-th trial (from 1) of a step."""
    return Path(run) / "steps" / step / f"trial-{trial}"


def capture_folder(run: str | Path, step: str) -> Path:
    """Folder of a step's Nsight Systems capture."""
    return Path(run) / "steps" / step / "capture"


def frame_file(folder: str | Path, frame: str) -> Path:
    """A frame of a trial: gen, requests, embed, slices, telemetry or pacing."""
    return Path(folder) / f"{frame}.parquet"


def cell_folder(sweep: str | Path, cell: str) -> Path:
    """Folder of one cell of a sweep."""
    return Path(sweep) / "cells" / check_run_id(cell)


def cell_runs(cell: str | Path) -> Path:
    """Folder that holds a cell's run."""
    return Path(cell) / "runs"
