"""Render a finished run folder as one self-contained HTML page, and print the page's path.

The notebooks that read a run are executed on it; their copies stay beside the page. Several runs, of one GPU type or
of several, come side by side on one page instead. reports/index.html lists every page there with its verdict.

examples:
  colo report runs/cpu-20261124-101500
  colo report cpu-20261124-101500 -o page.html     a run of runs/ by its name
  colo report RUN RUN RUN                          side by side: verdicts, kept fractions, what differs
  colo report RUN --figures figures                its figures as files too
  colo report sweeps/h100-20261124-101500          a sweep: what its notebooks show
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="+",
        help="a finished run folder, the name of one in --runs-dir, or a sweep",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="keep its figures as files too, SVG and PNG")
    parser.add_argument("--runs-dir", default="runs", help="where runs lie (default: %(default)s)")
    parser.add_argument(
        "--reports-dir", type=Path, default=Path("reports"), help="where pages go (default: %(default)s)"
    )


def carry_out(options: argparse.Namespace) -> int:
    """Make the page and print its path; 0 done, 1 a notebook failed, 2 a run cannot be read."""
    from colo_lib.errors import InputError
    from colo_lib.paths import SWEEP
    from colo_lib.report.page import make_report
    from colo_lib.report.side_by_side import make_side_by_side
    from colo_lib.report.sweep_page import make_sweep_report
    from colo_lib.select import named_run

    if sweeps := [Path(name) for name in options.run if (Path(name) / SWEEP).is_file()]:
        if len(options.run) > 1:
            raise InputError(f"{sweeps[0]} is a sweep, whose page stands alone: give it by itself")
        print(make_sweep_report(sweeps[0], options.reports_dir, options.output, options.figures))
        return 0
    folders = [named_run(name, options.runs_dir) for name in options.run]
    if len(folders) == 1:
        print(make_report(folders[0], options.reports_dir, options.output, options.figures))
        return 0
    if options.figures:
        raise InputError("--figures keeps the figures of one run: give one RUN")
    print(make_side_by_side(folders, options.reports_dir, options.output))
    return 0
