"""What share of a run's time lies inside windows, and what share it would be with other windows, blocks and starts.

    python benchmarks/time_in_windows.py recorded/h*-*[0-9] --window-s 30 --blocks 5 --starts 3

A row a run, from its records alone: seconds inside windows of the seconds in all; median seconds from the end of a
window to the start of the next one on the same engines, and at a change of engines (their end, the start of the next
ones, the first warm-up); what lies before the first window and after the last, captures included. Trials that do not
count are counted here: they took their time too.

The last columns are a PROJECTION, no measurement: the run's own plan with the windows, blocks and starts that are
asked for, at the seconds between windows that the run shows (or --between-s and --change-s). The first start and the
last end count as one change, at the compile cache of later starts. Sweeps are passed over: their cells share engines.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from colo_lib.data.run import Run, open_run
from colo_lib.errors import InputError
from colo_lib.paths import SWEEP
from colo_lib.record.plan import plan_run

COLUMNS = ["run", "windows, s", "in all, s", "share", "between windows, s", "at a change of engines, s",
           "before and after, s", "projected share", "aimed at"]  # fmt: skip
AIMS = {"cpu": 0.5, "cuda": 0.8}


@dataclass(frozen=True)
class Overheads:
    """Seconds of a run inside windows, in all, and outside: medians between two windows; the rest of the whole."""

    measured_s: float
    total_s: float
    between_s: float
    change_s: float
    outside_s: float
    captured: bool

    @classmethod
    def of(cls, run: Run) -> Overheads:
        """From the windows of all trials that have one."""
        windows = run.trials.dropna(subset=["window_start_ns"]).sort_values("window_start_ns")
        starts_s, ends_s = windows["window_start_ns"] / 1e9, windows["window_end_ns"] / 1e9
        gaps_s = (starts_s.shift(-1) - ends_s).dropna()
        engines = windows[["gen_start", "embed_start"]].fillna("")
        changed = (engines.shift(-1) != engines).any(axis=1).reindex(gaps_s.index)
        total_s = float(run.manifest.total_s or np.nan)
        span_s = float(ends_s.max() - starts_s.min())
        measured_s, between_s = float((ends_s - starts_s).sum()), float(gaps_s[~changed].median())
        # One set of engines has no change: its start and its end are all that lies outside.
        change_s = float(gaps_s[changed].median()) if changed.any() else total_s - span_s
        captured = any(capture.status == "done" for capture in run.manifest.captures or [])
        return cls(measured_s, total_s, between_s, change_s, total_s - span_s, captured)

    def projected(self, run: Run, window_s: float, blocks: int, starts: int) -> float:
        """The share of the time inside windows that a run of the same steps would have."""
        plan = plan_run(run.params.model_copy(update={"window_s": window_s, "blocks": blocks, "starts": starts}))
        engines = [(trial.round, trial.placement.engine_key()) for trial in plan.trials]
        changes, trials = 1 + sum(a != b for a, b in pairwise(engines)), len(engines)
        beside_s = changes * self.change_s + (trials - changes) * self.between_s
        return trials * window_s / (trials * window_s + beside_s)


def row_of(run: Run, asked: argparse.Namespace) -> list[str]:
    """A row of `COLUMNS`."""
    spent = Overheads.of(run)
    assumed = {name: seconds for name in ("between_s", "change_s") if (seconds := getattr(asked, name)) is not None}
    projected = replace(spent, **assumed).projected(run, asked.window_s, asked.blocks, asked.starts)
    outside = f"{spent.outside_s:.0f}{', captures included' if spent.captured else ''}"
    return [
        run.run_id, f"{spent.measured_s:.0f}", f"{spent.total_s:.0f}", f"{spent.measured_s / spent.total_s:.0%}",
        f"{spent.between_s:.1f}", f"{spent.change_s:.0f}", outside,
        f"{projected:.0%}", f"{AIMS[run.params.device]:.0%}",
    ]  # fmt: skip


def main() -> None:
    """Print a row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--window-s", type=float, default=30.0, help="of the projection (default: 30)")
    parser.add_argument("--blocks", type=int, default=5, help="of the projection (default: 5)")
    parser.add_argument("--starts", type=int, default=3, help="of the projection (default: 3)")
    parser.add_argument("--between-s", type=float, help="project with these seconds between windows, not the run's")
    parser.add_argument("--change-s", type=float, help="project with these seconds at a change of engines")
    options = parser.parse_args()
    print(f"projected: windows of {options.window_s:g} s, {options.blocks} blocks, {options.starts} starts")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for folder in options.folders:
        if (folder / SWEEP).is_file():
            print(f"{folder.name}: a sweep, passed over")
            continue
        try:
            print(f"| {' | '.join(row_of(open_run(folder), options))} |")
        except InputError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
