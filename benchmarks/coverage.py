"""How often the interval of a kept fraction holds the truth, and how often a verdict is false, by the kind of noise.

    python benchmarks/coverage.py                 # the table of docs/statistics.md; 2,000 runs a cell, about a minute
    python benchmarks/coverage.py --runs 200

A run has a shared step and its baseline in every block, as `colo run` carries them out: in rounds that start the
engines anew, every second round backwards. Simulated; the estimate is the product's own
(`colo_lib.analysis.statistics`).
For comparison stands what taking blocks for independent repetitions gives, as the workbook did before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from colo_lib.analysis.statistics import estimate
from colo_lib.record.plan import rounds_of

KEPT = 0.95  # at the verdict's bound: any verdict is a false one
NOISE = 0.02
Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def independent(rng: np.random.Generator, blocks: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """log rates (2, blocks) of step and baseline: trials that differ by 2 %, nothing else."""
    return _starts(blocks, starts), rng.normal(0, NOISE, (2, blocks))


def heavy(rng: np.random.Generator, blocks: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """The same spread with heavy tails: Student's t of three degrees of freedom."""
    return _starts(blocks, starts), rng.standard_t(3, (2, blocks)) * NOISE / np.sqrt(3)


def drifting(rng: np.random.Generator, blocks: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """A machine that wanders: each trial, in the order in which they run, steps by 2 % from the one before."""
    labels = _starts(blocks, starts)
    order = [
        (step, block)
        for number, own in enumerate(rounds_of(range(blocks), starts))
        for step in ((0, 1) if number % 2 == 0 else (1, 0))
        for block in own
    ]
    walk, found = np.cumsum(rng.normal(0, NOISE, 2 * blocks)), np.zeros((2, blocks))
    for value, place in zip(walk, order, strict=True):
        found[place] = value
    return labels, found


def started(rng: np.random.Generator, blocks: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the engines that differ by as much as trials do, of each step its own."""
    labels = _starts(blocks, starts)
    effects = rng.normal(0, NOISE, (2, starts))
    return labels, rng.normal(0, NOISE, (2, blocks)) + effects[:, labels]


KINDS: dict[str, Draw] = {
    "independent": independent,
    "heavy tails": heavy,
    "a wandering machine": drifting,
    "starts differ as trials do": started,
}


def _starts(blocks: int, starts: int) -> np.ndarray:
    rounds = rounds_of(range(blocks), starts)
    return np.repeat(np.arange(len(rounds)), [len(own) for own in rounds])


def by_blocks(values: np.ndarray) -> tuple[float, float]:
    """Student's t over blocks, whichever start they ran on."""
    logs = np.log(values)
    reach = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))


def row(draw: Draw, blocks: int, starts: int, runs: int) -> tuple[float, float, float, float]:
    """(coverage, share of false verdicts, median width, coverage by blocks) of `runs` simulated runs."""
    rng = np.random.default_rng([blocks, starts])
    covered = false = naive = 0
    widths = []
    for _ in range(runs):
        labels, logs = draw(rng, blocks, starts)
        values = KEPT * np.exp(logs[0] - logs[1])
        found = estimate(values, labels.tolist())
        covered += found.low <= KEPT <= found.high
        widths.append(found.high - found.low)
        false += found.across_starts and min(found.doubt(KEPT, True), found.doubt(KEPT, False)) < 0.025
        low, high = by_blocks(values)
        naive += low <= KEPT <= high
    return covered / runs, false / runs, float(np.median(widths)), naive / runs


def main() -> None:
    """Print the table, ready for docs/statistics.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=2000, help="simulated runs a cell of the table")
    runs = options.parse_args().runs
    print("| noise | starts x blocks a start | interval holds the truth | false verdicts | width | by blocks alone |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, draw in KINDS.items():
        for starts, each in ((1, 5), (3, 1), (5, 1), (8, 1), (3, 2), (5, 2)):
            covered, false, width, naive = row(draw, starts * each, starts, runs)
            print(f"| {name} | {starts} x {each} | {covered:.1%} | {false:.1%} | {width:.3f} | {naive:.1%} |")


if __name__ == "__main__":
    main()
