"""Render a finished run folder as one self-contained HTML page, and print the page's path.

The notebooks that read a run are executed on it; their copies stay beside the page.

examples:
  colo report runs/cpu-20261124-101500
  colo report cpu-20261124-101500 -o page.html     a run of runs/ by its name
  colo report RUN --figures figures                its figures as files too
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a finished run folder, or the name of one in --runs-dir")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="keep its figures as files too, SVG and PNG")
    parser.add_argument("--runs-dir", default="runs", help="where runs lie (default: %(default)s)")
    parser.add_argument("--reports-dir", default="reports", help="where pages go (default: %(default)s)")


def carry_out(options: argparse.Namespace) -> int:
    """Make the page and print its path; 0 done, 1 a notebook failed, 2 the run cannot be read."""
    from colo_lib.parse.choose import named_run
    from colo_lib.report.make import make_report

    folder = named_run(options.run, options.runs_dir)
    print(make_report(folder, Path(options.reports_dir), options.output, options.figures))
    return 0
