"""A mean with its 95 % interval over starts of the engines, each of which holds one or more blocks of trials.

Trials on the same engines share what that start brought along: where its memory lies, which kernels were tuned, how its
graphs were captured. Blocks within one start are therefore no independent repetitions of the experiment; starts are.
The model has both spreads: value = mean + effect of the start + noise of the block (one-way random effects). Its
interval is Student's t over the means of the starts, with starts - 1 degrees of freedom, which is exact where every
start has as many blocks (Searle, Casella and McCulloch, Variance Components, 1992, chapter 3).

Rates and ratios of rates are positive, and what disturbs them multiplies: they are averaged as logarithms.

`rate`, `rates` and `ratio` make such a mean of a step's trials that count, one value a block; `kept_fractions` of what
each workload keeps of its rate alone, paired by block; `null_check` of step 1 against itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from colo_lib.steps import KEPT, STEPS

CONFIDENCE = 0.95
POWER = 0.80
LEAST_STARTS = 3

"""Fewer starts give no interval over starts, and settle nothing: with two, Student's t reaches 12.7 errors."""

LEAST_BLOCKS = 3

"""Fewer blocks within a start give no interval at all."""

# workload -> the column of its rate in a frame of trials
RATES = {"gen": "gen_tokens_per_s", "embed": "embed_sequences_per_s"}


@dataclass(frozen=True)
class Estimate:
    """A mean over `blocks` values from `starts` starts of the engines, its interval [low, high], and how it was made.

    `low`, `high`: null where there are too few. `across_starts`: whether the interval is over starts; otherwise it
    says what these engines did, and nothing of engines started anew. `smallest_detectable`: the shift of the mean
    that as many starts (or blocks) of this spread show with 80 % power.
    `centre`, `error`, `freedom`: the mean on the scale of the model (logarithms where `log`), its standard error and
    degrees of freedom. `between`, `within`: standard deviations of the starts' effects and of the blocks within a
    start, on that scale; null where there are too few to tell.
    """

    mean: float
    low: float
    high: float
    blocks: int
    starts: int
    across_starts: bool
    method: str
    smallest_detectable: float
    log: bool
    centre: float
    error: float
    freedom: float
    between: float
    within: float

    def doubt(self, threshold: float, at_least: bool) -> float:
        """One-sided p-value of the claim that the true value is at least (or at most) `threshold`.

        The smallest probability of an estimate like this one if the claim were false; null without an interval.
        """
        if not np.isfinite([self.low, self.high]).all():
            return float("nan")
        at = np.log(threshold) if self.log and threshold > 0 else -np.inf if self.log else threshold
        distance = (self.centre - at) if at_least else (at - self.centre)
        if self.error == 0:
            return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.freedom))


def estimate(values: Sequence[float] | np.ndarray, starts: Sequence[Hashable], positive: bool = True) -> Estimate:
    """The mean of one value a block, with its interval; `starts`: the start that each block belongs to.

    `positive`: the values are rates, times or ratios, and their mean is the geometric one; where one of them is zero
    the arithmetic mean stands, with an interval that ends at zero. Values that are not finite are left out.
    From three starts on the interval is over starts. Below, it is over the blocks within the starts, with the starts'
    own differences taken out, and `across_starts` is False.
    """
    raw = np.asarray(values, dtype="float64")
    good = np.isfinite(raw)
    labels = [label for label, usable in zip(starts, good, strict=True) if usable]
    raw = raw[good]
    log = positive and bool(len(raw)) and bool((raw > 0).all())
    scaled = np.log(raw) if log else raw
    groups = [scaled[[label == name for label in labels]] for name in dict.fromkeys(labels)]
    count, number = len(raw), len(groups)
    means = np.array([group.mean() for group in groups])
    centre = float(means.mean()) if number else np.nan
    between, within = _spreads(groups, means)
    across = number >= LEAST_STARTS
    if across:
        error, freedom = float(means.std(ddof=1)) / np.sqrt(number), float(number - 1)
        method = f"95 %, Student's t over {number} starts of the engines"
    else:
        error, freedom = _within_error(groups, within), float(count - number)
        method = f"95 %, Student's t over {count} blocks within {_starts(number)}"
        if count < LEAST_BLOCKS or freedom < 1:
            error, method = np.nan, f"no interval: {count} blocks within {_starts(number)} are too few"
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error if freedom >= 1 else np.nan
    low, high = centre - reach, centre + reach
    mean, low, high = (float(np.exp(end)) if log else float(end) for end in (centre, low, high))
    if positive and not log:
        low, method = max(0.0, low), method + ", arithmetic since a value is zero"
    detectable = (reach + float(stats.t.ppf(POWER, freedom)) * error) if freedom >= 1 else np.nan
    shift = mean * float(np.expm1(detectable)) if log else detectable
    return Estimate(mean, low, high, count, number, across, method, shift, log, centre, error, freedom, between, within)


def _starts(number: int) -> str:
    return "one start of the engines" if number == 1 else f"{number} starts of the engines"


def _spreads(groups: Sequence[np.ndarray], means: np.ndarray) -> tuple[float, float]:
    """(standard deviation of the starts' effects, of the blocks within a start), by the analysis of variance."""
    count, number = sum(map(len, groups)), len(groups)
    inside = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    within = float(np.sqrt(inside / (count - number))) if count > number else np.nan
    if number < 2:
        return np.nan, within
    blocks_a_start = number / sum(1 / len(group) for group in groups)  # harmonic: the means are weighed alike
    noise = within**2 / blocks_a_start if np.isfinite(within) else 0.0
    return float(np.sqrt(max(0.0, means.var(ddof=1) - noise))), within


def _within_error(groups: Sequence[np.ndarray], within: float) -> float:
    """Standard error of the mean of the starts' means if only the blocks' noise counted."""
    if not groups or not np.isfinite(within):
        return np.nan
    return float(within * np.sqrt(sum(1 / len(group) for group in groups)) / len(groups))


def sides_of_one(more: Sequence[float], less: Sequence[float]) -> list[str]:
    """'more', 'less' or 'not settled' of several ratios against 1, all judged at once, by their one-sided p-values."""
    held = holm([min(pair) if np.isfinite(pair).all() else np.nan for pair in zip(more, less, strict=True)])
    return [
        "not settled" if not sure else "more" if up < down else "less"
        for sure, up, down in zip(held, more, less, strict=True)
    ]


def holm(doubts: Sequence[float], level: float = (1 - CONFIDENCE) / 2) -> list[bool]:
    """Which of several claims hold together, by their one-sided p-values: all wrong ones stay out at `level`.

    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979. Claims
    without a p-value do not hold; they count, since they were asked.
    """
    order = sorted(range(len(doubts)), key=lambda place: doubts[place] if np.isfinite(doubts[place]) else np.inf)
    held = [False] * len(doubts)
    for rank, place in enumerate(order):
        if not (np.isfinite(doubts[place]) and doubts[place] <= level / (len(doubts) - rank)):
            break
        held[place] = True
    return held


def by_block(counted: pd.DataFrame, step: str | None, column: str) -> pd.Series:
    """Mean of `column` over each block's trials of `step` that count, indexed by block; blocks without are absent."""
    return counted[counted["step"] == step].groupby("block")[column].mean().dropna()


def paired_blocks(counted: pd.DataFrame, step: str | None, baseline: str | None, column: str) -> pd.Series:
    """`column` of `step` / `column` of `baseline` in the same block, indexed by block."""
    return (by_block(counted, step, column) / by_block(counted, baseline, column)).dropna()


def starts_of(counted: pd.DataFrame, steps: Iterable[str | None], workloads: Iterable[str]) -> pd.Series:
    """Which starts of the engines each block's trials of `steps` ran on: a label a block, indexed by block.

    Blocks get the same label where any of these trials ran on the same start of any of these workloads' engines, also
    by way of other blocks: what has the same label is no independent repetition. Trials whose record names no engine
    (`gen_start`, `embed_start` empty) count as one start.
    """
    mine = counted[counted["step"].isin([step for step in steps if step is not None])]
    label = {int(block): int(block) for block in sorted(mine["block"].unique())}
    names = [(f"{workload}_start", mine) for workload in workloads]
    for column, trials in names:
        for _, group in trials[trials[_runs(column)].notna()].groupby(column, dropna=False):
            linked = {label[int(block)] for block in group["block"]}
            label = {block: min(linked) if current in linked else current for block, current in label.items()}
    return pd.Series(label, dtype="int64")


def _runs(start_column: str) -> str:
    """The rate that is null where a step gives the workload of `gen_start` or `embed_start` no work."""
    return RATES[start_column.removesuffix("_start")]


def rate(counted: pd.DataFrame, step: str | None, column: str, workload: str | None = None) -> Estimate:
    """A measure of one step with its interval; `workload`: whose engines' starts tell (by default by the column)."""
    return over_starts(counted, by_block(counted, step, column), [step], [workload or workload_of(column)])


def rates(counted: pd.DataFrame) -> pd.DataFrame:
    """A row a workload and step that it has a rate in: workload, step, mean, low, high, blocks, starts."""
    rows = [
        (workload, step, estimated.mean, estimated.low, estimated.high, estimated.blocks, estimated.starts)
        for workload, column in RATES.items()
        for step in sorted(counted["step"].unique())
        if (estimated := rate(counted, step, column)).blocks
    ]
    return pd.DataFrame(rows, columns=["workload", "step", "mean", "low", "high", "blocks", "starts"])


def ratio(counted: pd.DataFrame, step: str, baseline: str | None, column: str) -> Estimate:
    """`column` of `step` / `column` of `baseline`, paired by block, with its interval."""
    return over_starts(counted, paired_blocks(counted, step, baseline, column), [step, baseline], [workload_of(column)])


def over_starts(
    counted: pd.DataFrame,
    values: pd.Series,
    steps: Iterable[str | None],
    workloads: Iterable[str],
    positive: bool = True,
) -> Estimate:
    """The estimate of `values` (one a block, indexed by block), made of the trials of `steps` by `workloads`."""
    labels = starts_of(counted, steps, workloads)
    return estimate(values.to_numpy(), [int(labels[block]) for block in values.index], positive)


def workload_of(column: str) -> str:
    """Whose measure a column of `trial_metrics.NUMBERS` is."""
    return "embed" if column.startswith(("embed", "batch")) else "gen"


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
        kept = estimate(group["ratio"].to_numpy(), list(group["start"]))
        doubts = [kept.doubt(1.0, side) if kept.across_starts else np.nan for side in (True, False)]
        rows.append((step, group["mechanism"].iloc[0], quantity, *(getattr(kept, name) for name in shown), *doubts))
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
    check: dict[str, float] = {"odd": len(odd), "even": len(even)}
    check |= dict.fromkeys(("ratio", "low", "high", "smallest_detectable"), np.nan)
    check["spread"] = float(values.std(ddof=1) / values.mean()) if len(values) > 1 else np.nan
    if len(odd) and len(even):
        check["ratio"] = float(np.exp(odd.mean() - even.mean()))
    if len(odd) > 1 and len(even) > 1:
        test = stats.ttest_ind(odd, even, equal_var=False)
        interval, error = (
            test.confidence_interval(CONFIDENCE),
            np.sqrt(odd.var(ddof=1) / len(odd) + even.var(ddof=1) / len(even)),
        )
        reach = stats.t.ppf(0.5 + CONFIDENCE / 2, test.df) + stats.t.ppf(POWER, test.df)
        check |= {"low": float(np.exp(interval.low)), "high": float(np.exp(interval.high))}
        check["smallest_detectable"] = float(np.expm1(reach * error))
    return check


def _devices(trials: pd.DataFrame, workload: str) -> set[str]:
    return {device for devices in trials[f"{workload}_devices"] for device in devices}


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not np.isfinite(value):
        return "—"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:,.{min(digits, 3)}f}"


def with_interval(mean: float, low: float, high: float, starts: float) -> str:
    """'0.80 [0.76, 0.84]'; where fewer than three starts of the engines stand behind it, that is said; or no interval.

    `starts`: starts of the engines behind the estimate (`Estimate.starts`).
    """
    if not np.isfinite([low, high]).all():
        return f"{number(mean)} (no interval)"
    return f"{number(mean)} [{number(low)}, {number(high)}{within_starts(starts)}]"


def within_starts(starts: float) -> str:
    """', within one start' where an interval tells nothing of engines started anew, else nothing.

    Nothing either where `starts` is null: what is no estimate of ours has no starts.
    """
    if starts >= LEAST_STARTS or np.isnan(starts):
        return ""
    return ", within one start" if starts <= 1 else f", within {starts:.0f} starts"
