"""How far what sharing reached lies under what it could at best give, over recorded runs and sweeps.

    python benchmarks/bound_error.py recorded/*-*[0-9]       # the table of docs/hardware.md

A row a shared step on one GPU; cells of a sweep have their levers beside. The bound is the product's own
(`colo_lib.analysis.bound`): from each workload alone, no interval. Two-GPU runs have no such step and no row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from colo_lib import paths
from colo_lib.analysis.operating_point import levers_in_words
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.run import Run, open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.steps import STEPS

COLUMNS = ["run", "in flight", "step", "embedder", "at most", "at best", "used up", "guess", "used up, guessed",
           "reached", "best / reached - 1", "guess / reached - 1", "filled at that split"]  # fmt: skip


def runs_in(folder: Path) -> Iterator[Run]:
    """The run in `folder`, or those of its cells where it is a sweep."""
    if (folder / paths.SWEEP).is_file():
        yield from open_sweep(folder).runs.values()
    else:
        yield open_run(folder)


def main() -> None:
    """Print a row a shared step, and the errors over all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    over, guess_over = [], []
    for folder in folders:
        for run in runs_in(folder):
            for row in RunAnalysis(run).against_best.itertuples():
                if row.reached != row.reached:
                    continue
                over.append(row.over)
                guess_over.append(row.guess_over)
                name, words = "-".join(folder.name.split("-")[:2]), levers_in_words(run.params, row.step)
                cells = [name, run.params.gen_concurrency, STEPS[row.step].name, words, f"{row.sure:.2f}"]
                cells += [f"{row.best:.2f}", row.binds or "nothing", f"{row.guess:.2f}", row.guess_binds or "nothing"]
                cells += [f"{row.reached:.2f}", f"{row.over:+.0%}", f"{row.guess_over:+.0%}", f"{row.filled:.0%}"]
                print(f"| {' | '.join(map(str, cells))} |")
    for name, errors in (("best", over), ("guess", guess_over)):
        if errors:
            print(f"\n{name} over reached, {len(errors)} rows: least {min(errors):+.0%}, median "
                  f"{np.median(errors):+.0%}, most {max(errors):+.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
