"""What being an MPS client costs, kernel by kernel: `mps-alone` beside step 1, from the captures of recorded runs.

    python benchmarks/mps_price_by_kernel.py recorded/h200-llama-*[0-9] …

Kernels of gen are paired by name and number of blocks. A row's cost is the kernels of step 1 times the change of their
mean duration, so that a mix that differs between the two windows does not count; `share` is that of all cost.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colo_lib.analysis.trace.window import Asked, view_of
from colo_lib.data.capture import read_capture

BLOCKS = {"1": 1, "2-8": 8, "9-131": 131, "132 (an SM each)": 132, "more": np.inf}
MOST = 5  # kernels listed


def durations(run: Path, step: str) -> pd.DataFrame:
    """Kernels of gen in the recorded window: `name`, `blocks`, `us` (duration)."""
    one = read_capture(run, step)
    view = view_of(one.capture, one.facts, Asked(), one.window_s)
    kernels, rows = view.capture.kernels, view.workloads["gen"].rows
    names = np.array([*view.capture.names, ""], dtype=object)[kernels.name[rows]]
    us = (kernels.end_ns[rows] - kernels.start_ns[rows]) / 1e3
    return pd.DataFrame({"name": names, "blocks": kernels.blocks[rows], "us": us})


def price(run: Path) -> pd.DataFrame:
    """A row a kernel of both: `count` and mean `alone` (us) of step 1, mean `client` (us), `cost` (us in all)."""
    alone, client = (durations(run, step).groupby(["name", "blocks"])["us"] for step in ("step1", "mps-alone"))
    both = pd.DataFrame({"count": alone.size(), "alone": alone.mean(), "client": client.mean()}).dropna().reset_index()
    return both.assign(time=both["count"] * both["alone"], cost=both["count"] * (both["client"] - both["alone"]))


def table(rows: pd.DataFrame) -> str:
    """Sums by a group's label, as shares: of the kernels, of their time, of the cost; and what a kernel costs, us."""
    share = rows / rows.sum()
    told = pd.DataFrame({"kernels": share["count"], "time": share["time"], "cost": share["cost"]}).map("{:.1%}".format)
    return told.assign(us_a_kernel=(rows["cost"] / rows["count"]).map("{:+.2f}".format)).to_string()


def main() -> None:
    """Print each run's price by number of blocks, and of the kernels that cost most."""
    for run in map(Path, sys.argv[1:]):
        found = price(run)
        mean = found["time"].sum() / found["count"].sum()
        more = found["cost"].sum() / found["time"].sum()
        print(f"\n{run.name}: {mean:.2f} us a kernel in step 1, {mean * (1 + more):.2f} as an MPS client ({more:+.1%})")
        sizes = pd.cut(found["blocks"], [0, *BLOCKS.values()], labels=list(BLOCKS))
        print(table(found.groupby(sizes, observed=True)[["count", "time", "cost"]].sum()))
        most = found.nlargest(MOST, "cost")
        for row in most.itertuples():
            share = row.cost / found["cost"].sum()
            change = f"{row.alone:7.2f} -> {row.client:6.2f} us, {row.blocks:4d} blocks"
            print(f"{share:6.1%} {change}  {str(row.name)[:70]}")


if __name__ == "__main__":
    main()
