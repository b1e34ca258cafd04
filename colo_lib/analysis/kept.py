"""Kept fractions and aggregates, paired by block, with intervals; and step 1 against itself as the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from colo_lib.analysis.statistics import CONFIDENCE, POWER, RATES, by_block, estimate, paired_blocks, starts_of
from colo_lib.steps import KEPT, STEPS


def block_ratios(counted: pd.DataFrame) -> pd.DataFrame:
    """step, mechanism, block, start, quantity (gen, embed, aggregate, aggregate_per_device), ratio: one row each.

    The kept fraction is the rate in a step over the rate of the same workload in its baseline (`steps.STEPS`).
    aggregate = gen kept + embed kept, in units of the baseline's devices. Per device: each kept fraction counts for
    as many devices as its baseline had, and the sum is divided by the devices that the step used; config A is 1.0 by
    definition, and cores that together stand in for one device come out as one. `start`: `starts_of` the trials that
    the ratio is made of.
    """
    rows = []
    for step in KEPT:
        mine = counted[counted["step"] == step]
        if mine.empty:
            continue
        baselines = STEPS[step].baselines
        ratios = {
            workload: paired_blocks(counted, step, baselines[workload], column) for workload, column in RATES.items()
        }
        used = len(_devices(mine, "gen") | _devices(mine, "embed"))
        weights = {name: len(_devices(counted[counted["step"] == baselines[name]], name)) for name in RATES}
        quantities = {**ratios, "aggregate": (ratios["gen"] + ratios["embed"]).dropna()}
        weighted = (ratios["gen"] * weights["gen"] + ratios["embed"] * weights["embed"]).dropna()
        quantities["aggregate_per_device"] = weighted / used if used else weighted * np.nan
        for quantity, values in quantities.items():
            of = [quantity] if quantity in RATES else list(RATES)
            labels = starts_of(counted, [step, *(baselines[name] for name in of)], of)
            place = {"step": step, "mechanism": mine["mechanism"].iloc[0], "quantity": quantity}
            rows += [
                {**place, "block": block, "start": labels[block], "ratio": ratio} for block, ratio in values.items()
            ]
    return pd.DataFrame(rows, columns=["step", "mechanism", "block", "start", "quantity", "ratio"])


def kept_fractions(ratios: pd.DataFrame) -> pd.DataFrame:
    """A row a step and quantity of `block_ratios`: mean, low, high, blocks, starts, method, smallest_detectable.

    doubt_more, doubt_less: one-sided p-values of more and of less than 1, null under three starts of the engines.
    """
    shown = ["mean", "low", "high", "blocks", "starts", "method", "smallest_detectable"]
    rows = []
    for (step, quantity), group in ratios.groupby(["step", "quantity"], sort=False):
        found = estimate(group["ratio"].to_numpy(), list(group["start"]))
        doubts = [found.doubt(1.0, side) if found.across_starts else np.nan for side in (True, False)]
        rows.append((step, group["mechanism"].iloc[0], quantity, *(getattr(found, name) for name in shown), *doubts))
    return pd.DataFrame(rows, columns=["step", "mechanism", "quantity", *shown, "doubt_more", "doubt_less"])


def null_check(counted: pd.DataFrame, step: str = "step1", column: str = "gen_tokens_per_s") -> dict[str, float]:
    """A step against itself: odd blocks over even blocks, where nothing but noise and order can differ.

    ratio with its Welch interval low, high on the log scale (null under two blocks a side), odd, even: block counts,
    spread: standard deviation between blocks / mean, smallest_detectable: the shift of the ratio that these blocks show
    with 80 % power. Alternating order puts the step first in odd blocks and last in
    even ones, so an order effect shows here too. The interval of a sound run holds 1.
    """
    values = by_block(counted, step, column)
    logs = np.log(values[values > 0])
    odd, even = logs[logs.index % 2 == 1].to_numpy(), logs[logs.index % 2 == 0].to_numpy()
    told: dict[str, float] = {"odd": len(odd), "even": len(even)}
    told |= dict.fromkeys(("ratio", "low", "high", "smallest_detectable"), np.nan)
    told["spread"] = float(values.std(ddof=1) / values.mean()) if len(values) > 1 else np.nan
    if len(odd) and len(even):
        told["ratio"] = float(np.exp(odd.mean() - even.mean()))
    if len(odd) > 1 and len(even) > 1:
        test = stats.ttest_ind(odd, even, equal_var=False)
        interval, error = (
            test.confidence_interval(CONFIDENCE),
            np.sqrt(odd.var(ddof=1) / len(odd) + even.var(ddof=1) / len(even)),
        )
        reach = stats.t.ppf(0.5 + CONFIDENCE / 2, test.df) + stats.t.ppf(POWER, test.df)
        told |= {"low": float(np.exp(interval.low)), "high": float(np.exp(interval.high))}
        told["smallest_detectable"] = float(np.expm1(reach * error))
    return told


def _devices(trials: pd.DataFrame, workload: str) -> set[str]:
    return {device for devices in trials[f"{workload}_devices"] for device in devices}
