"""A sweep's cells side by side: rates and kept fractions with their intervals, a row a cell and measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from colo_lib.analyse.estimate import LEAST_STARTS, Estimate, estimate
from colo_lib.analyse.kept import block_ratios, rate, ratio
from colo_lib.analyse.measure import GetFrame, measure
from colo_lib.params import Params
from colo_lib.schema import BASELINES

RATES = ("gen_tokens_per_s", "embed_sequences_per_s", "gap_p50_ms", "gap_p99_ms")
COLUMNS = ["cell", "step", "mechanism", "measure", "mean", "low", "high", "blocks", "starts", "estimate"]


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
    aggregate_per_device, and gap_p99_ratio: the p99 inter-token gap over that of the step's baseline, paired by block.
    `estimate` is the `estimate.Estimate` behind a row's mean and interval. `cells`: cell, a column a varied parameter,
    status, reason, trials, counted.
    """

    values: pd.DataFrame
    cells: pd.DataFrame
    names: tuple[str, ...]

    def of(self, step: str, name: str) -> pd.DataFrame:
        """The rows of one step and measure that have a mean, in the order of the cells."""
        mine = self.values[(self.values["step"] == step) & (self.values["measure"] == name)]
        return mine[mine["mean"].notna()].reset_index(drop=True)


def collect(cells: Iterable[Cell], names: tuple[str, ...]) -> SweepMeasures:
    """Measure every cell that has a run; the others stay in `cells` with their status."""
    parts, rows = [], []
    for cell in cells:
        counted = trials = 0
        if cell.run is not None:
            values, counted = _measure_cell(cell.run)
            trials = len(cell.run.trials)
            parts.append(values.assign(cell=cell.name, **{name: cell.changes[name] for name in names}))
        places = {name: cell.changes[name] for name in names}
        rows.append({"cell": cell.name, **places, "status": cell.status, "reason": cell.reason,
                     "trials": trials, "counted": counted})  # fmt: skip
    values = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, *names])
    return SweepMeasures(values, pd.DataFrame(rows), names)


def _measure_cell(run: CellRun) -> tuple[pd.DataFrame, int]:
    measured = measure(run.trials, run.frame, run.params)
    counted = measured.counted
    mechanisms = dict(zip(counted["step"], counted["mechanism"], strict=True))
    found: list[tuple[str, str, str, Estimate]] = []
    for step, mechanism in mechanisms.items():
        found += [(step, mechanism, name, rate(counted, step, name)) for name in RATES]
        baseline = BASELINES[step][0]
        if baseline not in (None, step):
            found.append((step, mechanism, "gap_p99_ratio", ratio(counted, step, baseline, "gap_p99_ms")))
    for (step, quantity), group in block_ratios(counted).groupby(["step", "quantity"], sort=False):
        name = f"{quantity}_kept" if quantity in ("gen", "embed") else str(quantity)
        found.append((str(step), mechanisms[step], name, estimate(group["ratio"].to_numpy(), list(group["start"]))))
    rows = [(*place, one.mean, one.low, one.high, one.blocks, one.starts, one) for *place, one in found if one.blocks]
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
    """`mean` with its 95 % interval [low, high] from `starts` starts of the engines at the least."""

    mean: float
    low: float
    high: float
    starts: float

    @property
    def settled(self) -> bool:
        """Whether the interval is over starts of the engines and lies on one side of zero."""
        return bool(self.starts >= LEAST_STARTS and (self.low > 0 or self.high < 0))


def difference(before: Any, after: Any) -> Difference:
    """after - before of two independent estimates (rows with mean, low, high, starts): half-widths add as squares.

    Two intervals may overlap and their difference be settled all the same. Null bounds where one side has none.
    """
    mean = float(after.mean - before.mean)
    reach = float(np.hypot((after.high - after.low) / 2, (before.high - before.low) / 2))
    return Difference(mean, mean - reach, mean + reach, min(before.starts, after.starts))


def ratio_gain(before: Any, after: Any) -> Difference:
    """after / before - 1 of two independent positive estimates, by relative half-widths."""
    ratio = float(after.mean / before.mean)
    relative = np.hypot((after.high - after.low) / 2 / after.mean, (before.high - before.low) / 2 / before.mean)
    ends = (ratio * (1 - float(relative)) - 1, ratio * (1 + float(relative)) - 1)
    return Difference(ratio - 1, *ends, min(before.starts, after.starts))
