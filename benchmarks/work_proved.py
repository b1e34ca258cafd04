"""Are the rates of recorded runs backed by work? What they demand of the tensor cores against what those did.

    python benchmarks/work_proved.py recorded/*-*[0-9]       # the table of docs/hardware.md

A row a step and device of a run; trials that several cells of a sweep share count once. The reckoning is the product's
own (`colo_lib.analysis.work`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bound_error import runs_in  # noqa: E402
from colo_lib.analysis import work  # noqa: E402
from colo_lib.analysis.run_analysis import RunAnalysis  # noqa: E402
from colo_lib.steps import STEPS  # noqa: E402


def work_in(folder: Path) -> pd.DataFrame:
    """`work_of_trials` of a run or of all cells of a sweep, each measured trial once, and the requests in flight."""
    parts = []
    for run in runs_in(folder):
        analysis = RunAnalysis(run)
        parts.append(analysis.work.assign(in_flight=run.params.gen_concurrency))
    # A trial that counts for several cells is a copy of one, to the last digit.
    return pd.concat(parts, ignore_index=True).drop_duplicates(["step", "trial", "device", "demanded", "measured"])


def main() -> int:
    """Print the table in Markdown, and what all of it comes to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    columns = ["run", "in flight", "step", "device", "trials", "LLM, TFLOP/s", "embedder, TFLOP/s", "demanded, %",
               "active, %", "active / demanded", "said"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    every = []
    for folder in parser.parse_args().folders:
        done = work_in(folder)
        every.append(done)
        for flight, cells in done.groupby("in_flight", sort=False):
            for row in work.by_step(cells).itertuples():
                ratio = f"{row.ratio:.2f}" if row.ratio == row.ratio else "—"
                words = ["-".join(folder.name.split("-")[:2]), flight, STEPS[row.step].name, row.device, row.trials]
                words += [f"{row.gen_tflops:.2f}", f"{row.embed_tflops:.1f}", f"{row.demanded:.2%}"[:-1]]
                words += [f"{row.measured:.2%}"[:-1], ratio, row.said]
                print(f"| {' | '.join(map(str, words))} |")
    joined = pd.concat(every, ignore_index=True)
    print(f"\n{work.work_sentence(joined)}")
    print(joined.groupby("said").agg(trials=("ratio", "size"), least=("ratio", "min"), median=("ratio", "median"),
                                     most=("ratio", "max")).round(2).to_string())  # fmt: skip
    return int((joined["said"] == work.UNBACKED).any())


if __name__ == "__main__":
    sys.exit(main())
