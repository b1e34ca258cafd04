"""A sweep's cells side by side: rates and kept fractions with their intervals, a row a cell and measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from colo_lib.analyse.estimate import estimate
from colo_lib.analyse.kept import block_ratios, by_block, kept_fractions
from colo_lib.analyse.measure import GetFrame, measure
from colo_lib.params import Params

RATES = ("gen_tokens_per_s", "embed_sequences_per_s", "gap_p50_ms", "gap_p99_ms")
COLUMNS = ["cell", "step", "mechanism", "measure", "mean", "low", "high", "blocks"]


class CellRun(Protocol):
    """What is read of a cell's run (`parse.run_folder.Run`)."""

    params: Params
    trials: pd.DataFrame

    @property
    def frame(self) -> GetFrame:
        """`frame(step, trial, name)`."""


class Cell(Protocol):
    """What is read of a cell (`parse.sweep.SweepCell`)."""

    name: str
    changes: Mapping[str, Any]
    status: str
    reason: str | None
    run: Any


@dataclass(frozen=True)
class SweepMeasures:
    """`values`: `COLUMNS` and a column a varied parameter; measures are `RATES`, gen_kept, embed_kept, aggregate,
    aggregate_per_device. `cells`: cell, a column a varied parameter, status, reason, trials, counted.
    """

    values: pd.DataFrame
    cells: pd.DataFrame
    names: tuple[str, ...]

    def of(self, step: str, name: str) -> pd.DataFrame:
        """The rows of one step and measure that have a mean, in the order of the cells."""
        mine = self.values[(self.values["step"] == step) & (self.values["measure"] == name)]
        return mine[mine["mean"].notna()].reset_index(drop=True)


def collect(cells: Iterable[Cell], names: tuple[str, ...], seed: int) -> SweepMeasures:
    """Measure every cell that has a run; the others stay in `cells` with their status."""
    parts, rows = [], []
    for cell in cells:
        counted = trials = 0
        if cell.run is not None:
            values, counted = _measure_cell(cell.run, seed)
            trials = len(cell.run.trials)
            parts.append(values.assign(cell=cell.name, **{name: cell.changes[name] for name in names}))
        places = {name: cell.changes[name] for name in names}
        rows.append({"cell": cell.name, **places, "status": cell.status, "reason": cell.reason,
                     "trials": trials, "counted": counted})  # fmt: skip
    values = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, *names])
    return SweepMeasures(values, pd.DataFrame(rows), names)


def _measure_cell(run: CellRun, seed: int) -> tuple[pd.DataFrame, int]:
    measured = measure(run.trials, run.frame, run.params)
    counted = measured.counted
    mechanisms = dict(zip(counted["step"], counted["mechanism"], strict=True))
    rows = []
    for step, mechanism in mechanisms.items():
        for name in RATES:
            blocks = by_block(counted, step, name).to_numpy()
            if len(blocks):
                found = estimate(blocks, seed)
                rows.append((step, mechanism, name, found.mean, found.low, found.high, found.blocks))
    kept = kept_fractions(block_ratios(counted), seed)
    for row in kept.itertuples():
        name = f"{row.quantity}_kept" if row.quantity in ("gen", "embed") else row.quantity
        rows.append((row.step, row.mechanism, name, row.mean, row.low, row.high, row.blocks))
    return pd.DataFrame(rows, columns=COLUMNS[1:]), len(counted)


def with_prefill_share(measures: SweepMeasures, base: Params) -> SweepMeasures:
    """The measures with a column prefill_share = prompt / (prompt + output), tokens of a request."""

    def added(frame: pd.DataFrame) -> pd.DataFrame:
        prompt, output = (
            frame[name].astype("float64") if name in frame else float(getattr(base, name))
            for name in ("gen_prompt_tokens", "gen_output_tokens")
        )
        return frame.assign(prefill_share=prompt / (prompt + output))

    return SweepMeasures(added(measures.values), added(measures.cells), measures.names)


@dataclass(frozen=True)
class Difference:
    """`mean` with its 95 % interval [low, high]; `settled` where the interval leaves out zero."""

    mean: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


def difference(before: Any, after: Any) -> Difference:
    """after - before of two independent estimates (rows with mean, low, high): half-widths add as squares.

    Two intervals may overlap and their difference be settled all the same. Null bounds where one side has none.
    """
    mean = float(after.mean - before.mean)
    reach = float(np.hypot((after.high - after.low) / 2, (before.high - before.low) / 2))
    return Difference(mean, mean - reach, mean + reach)


def ratio_gain(before: Any, after: Any) -> Difference:
    """after / before - 1 of two independent positive estimates, by relative half-widths."""
    ratio = float(after.mean / before.mean)
    relative = np.hypot((after.high - after.low) / 2 / after.mean, (before.high - before.low) / 2 / before.mean)
    return Difference(ratio - 1, ratio * (1 - float(relative)) - 1, ratio * (1 + float(relative)) - 1)
