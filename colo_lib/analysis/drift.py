"""What moved while a run went on: a trend over its trials, a block unlike the others, clocks that changed.

So is a recorded rate that the rows behind it do not give. None of it makes a trial invalid after the fact: it is named
beside the verdict, so that a reader can look.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy import stats

from colo_lib.analysis.statistics import CONFIDENCE, RATES
from colo_lib.steps import TABLE, WORKLOADS, mechanisms_in, names_in

LEAST_CHANGE = 0.02  # a trend over the whole run smaller than this is not worth a sentence
LEAST_OUTLIER = 0.10  # a block's ratio must be off by this much, as a fraction, to be named
FAR = 5.0  # and by this many robust standard deviations (1.4826 x median absolute deviation) of the other blocks
MOST_CLOCK_CHANGE = 0.03
TREND_COLUMNS = ["workload", "change", "low", "high", "trials"]


def trends(counted: pd.DataFrame) -> pd.DataFrame:
    """A row a workload: by which fraction its rate changed from the run's first trial to its last, all steps together.

    Least squares of log rate on the window's start with a level for each step, so that the steps' own differences do
    not pass for a trend; [low, high] is the 95 % interval of the change (null under two degrees of freedom).
    """
    rows = []
    for workload, column in RATES.items():
        usable = counted[counted[column] > 0]
        change = _trend(usable, column)
        if change is not None:
            rows.append((workload, *(float(np.expm1(value)) for value in change), len(usable)))
    return pd.DataFrame(rows, columns=TREND_COLUMNS)


def _trend(trials: pd.DataFrame, column: str) -> tuple[float, float, float] | None:
    """(log change over the run, low, high), None where the trials do not determine one."""
    when = trials["window_start_ns"].astype("float64").to_numpy()
    if len(trials) < 2 or np.ptp(when) == 0:
        return None
    when = (when - when.min()) / np.ptp(when)
    levels = pd.get_dummies(trials["step"]).to_numpy(dtype="float64")
    design = np.column_stack([when, levels])
    freedom = len(trials) - design.shape[1]
    if freedom < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    logs = np.log(trials[column].to_numpy(dtype="float64"))
    solved, *_ = np.linalg.lstsq(design, logs, rcond=None)
    variance = float(((logs - design @ solved) ** 2).sum()) / freedom
    error = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    change = float(solved[0])
    return change, change - reach, change + reach


def bad_blocks(ratios: pd.DataFrame) -> pd.DataFrame:
    """Blocks whose ratio lies far from the other blocks' of the same step.

    Columns: step, mechanism, quantity, block, ratio, others.
    `ratios`: `statistics.block_ratios`. Needs four blocks: with fewer nothing tells which of them is the odd one.
    `others` is the median of the other blocks.
    """
    rows = []
    shown = ratios[ratios["quantity"].isin(list(RATES)) & (ratios["ratio"] > 0)]
    for (step, quantity), group in shown.groupby(["step", "quantity"], sort=False):
        logs = np.log(group["ratio"].to_numpy())
        for place in range(len(logs) if len(logs) >= 4 else 0):
            others = np.delete(logs, place)
            spread = 1.4826 * float(np.median(np.abs(others - np.median(others))))
            off = abs(logs[place] - np.median(others))
            if off > max(FAR * spread, np.log1p(LEAST_OUTLIER)):
                row = group.iloc[place]
                rows.append(
                    (
                        step,
                        row["mechanism"],
                        quantity,
                        int(row["block"]),
                        row["ratio"],
                        float(np.exp(np.median(others))),
                    )
                )
    return pd.DataFrame(rows, columns=["step", "mechanism", "quantity", "block", "ratio", "others"])


def moved_clocks(samples: pd.DataFrame) -> pd.DataFrame:
    """Trials whose mean SM clock is off the median of their step's trials.

    Columns: step, trial, device, clock_mhz, usual_mhz, mechanism.
    `samples`: `telemetry_series`. What a step does to the clocks meets each of its trials alike; what meets one of
    them alone (heat, a power cap, a neighbour) is not the step's doing. Over 3 % is named; steps of one trial are not.
    """
    columns = ["step", "trial", "device", "clock_mhz", "usual_mhz"]
    if samples.empty or samples["sm_clock_mhz"].isna().all():
        return pd.DataFrame(columns=[*columns, "mechanism"])
    counted = samples[samples["in_window"] & (samples["status"] == "done") & (samples["scope"] == "device")]
    means = counted.groupby(["step", "trial", "name"], sort=False)["sm_clock_mhz"].mean().dropna().reset_index()
    means["usual_mhz"] = means.groupby(["step", "name"])["sm_clock_mhz"].transform("median")
    off = (means["sm_clock_mhz"] / means["usual_mhz"] - 1).abs() > MOST_CLOCK_CHANGE
    renamed = means[off].rename(columns={"name": "device", "sm_clock_mhz": "clock_mhz"})
    moved = renamed[columns].reset_index(drop=True)
    return moved.assign(mechanism=moved["step"].map(mechanisms_in(samples)))


def apart(counted: pd.DataFrame) -> list[str]:
    """Sentences naming shared steps whose trials all ran before, or all after, those of a baseline.

    Blocks pair by number; where engines had to be restarted between the two, one number stands for two times, and a
    drift from one to the other does not cancel. Steps of one block are not named: they say so themselves.
    """
    sentences = []
    starts = {str(step): group["window_start_ns"] for step, group in counted.groupby("step")}
    names = names_in(counted)
    for row in TABLE:
        for baseline in dict.fromkeys(name for name in row.baselines.values() if name not in (None, row.id)):
            mine, other = starts.get(row.id), starts.get(str(baseline))
            if mine is None or other is None or min(len(mine), len(other)) < 2:
                continue
            if mine.min() > other.max() or mine.max() < other.min():
                when = "after" if mine.min() > other.max() else "before"
                sentences.append(
                    f"{names[row.id]}: all its trials ran {when} those of {names[str(baseline)]}: a drift between them "
                    "would pass for a loss or a gain; more 'starts' alternate them"
                )
    return sentences


def warnings(trend: pd.DataFrame, bad: pd.DataFrame, clocks: pd.DataFrame) -> list[str]:
    """Sentences naming what moved; empty when nothing did."""
    names = names_in(bad) | names_in(clocks)
    sentences = [
        f"the {WORKLOADS[row.workload]}'s rate changed by {row.change:+.1%} from the run's first trial to its last "
        f"(95 % interval {row.low:+.1%} to {row.high:+.1%}): alternating blocks cancel a steady trend, an uneven one "
        "they do not"
        for row in trend.itertuples()
        if abs(row.change) > LEAST_CHANGE and (row.low > 0 or row.high < 0)
    ]
    sentences += [
        f"{names[row.step]}, block {row.block}: the {WORKLOADS[row.quantity]} kept {row.ratio:.2f} there and "
        f"{row.others:.2f} in the other blocks; nothing recorded makes that block invalid, so it counts, and widens "
        "the interval"
        for row in bad.itertuples()
    ]
    sentences += [
        f"{names[row.step]}, trial {row.trial}: device {row.device} ran at {row.clock_mhz:.0f} MHz, in the step's "
        f"other trials at {row.usual_mhz:.0f}: something other than the step moved its clock"
        for row in clocks.itertuples()
    ]
    return sentences


def disagreements(trials: pd.DataFrame, tolerance: float = 0.001) -> list[str]:
    """Sentences naming every trial whose recorded rate is off the one that its frames give by over `tolerance`."""
    sentences, names = [], names_in(trials)
    for workload, unit in (("gen", "tokens_per_s"), ("embed", "sequences_per_s")):
        recorded, computed = trials[f"recorded_{workload}_{unit}"], trials[f"{workload}_{unit}"]
        off = (recorded / computed - 1).abs() > tolerance
        # Records of the first runs count whole tokens and batches.
        whole = trials["gen_tokens" if workload == "gen" else "embed_sequences"]
        seconds = (trials["window_end_ns"] - trials["window_start_ns"]) / 1e9
        off &= (recorded * seconds / whole - 1).abs() > tolerance
        sentences += [
            f"{names[row.step]}, trial {row.trial}: its record says {recorded[row.Index]:.4g} "
            f"{unit.replace('_per_', '/')} of the {WORKLOADS[workload]}, its rows give {computed[row.Index]:.4g}; "
            "the rows are used"
            for row in trials[off].itertuples()
        ]
    return sentences


def marked(trials: pd.DataFrame) -> list[str]:
    """A sentence a step for each kind of mark on its trials that count, the first in full."""
    sentences, names = [], names_in(trials)
    for step, group in trials[trials["status"] == "done"].groupby("step", sort=False):
        kinds: dict[str, list[tuple[str, int]]] = {}
        for marks, trial in zip(group["marks"], group["trial"], strict=True):
            for mark in marks if isinstance(marks, list) else ():
                kinds.setdefault(re.sub(r"[\d.,]+", "#", mark), []).append((mark, int(trial)))
        for (mark, trial), *others in kinds.values():
            more = f" (the like in {len(others)} more of its trials)" if others else ""
            sentences.append(f"{names[step]}, trial {trial}: {mark}{more}")
    return sentences


def unsteady(null: dict[str, float]) -> list[str]:
    """A sentence if step 1 against itself (`statistics.null_check`) does not hold 1: more than noise differs then."""
    if not (null["low"] > 1 or null["high"] < 1):
        return []
    return [
        f"the LLM alone in odd blocks over itself in even blocks is {null['ratio']:.3f} (95 % interval "
        f"{null['low']:.3f} to {null['high']:.3f}), not 1: the run drifted or the order mattered, "
        "so its intervals may be too narrow"
    ]
