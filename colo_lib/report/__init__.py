"""Executed notebooks to one self-contained HTML page: `make_report(run_folder, reports_dir)`."""

from __future__ import annotations

from pathlib import Path


def make_report(run_folder: Path, reports_dir: Path) -> Path:
    """Execute the reading notebooks on a finished run and write `<reports_dir>/<run_id>.html`; gives its path.

    Raises InputError for a run that cannot be read, StepFailed naming the notebook that did not reach its end.
    """
    from colo_lib.report.page import make_report as make

    return make(Path(run_folder), Path(reports_dir))
