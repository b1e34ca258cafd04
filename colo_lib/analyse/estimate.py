"""A mean over blocks with its 95 % interval: bootstrap, widened where there are too few blocks for it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over `blocks` values, its interval [low, high] (null under two blocks) and how it was made.

    `smallest_detectable`: the shift of the mean that this many blocks of this spread show with 80 % power.
    """

    mean: float
    low: float
    high: float
    blocks: int
    method: str
    smallest_detectable: float


def estimate(values: np.ndarray, seed: int, least: float = 0.0) -> Estimate:
    """The mean of one value a block, with a 95 % interval that ends at `least`, below which no value can be.

    scipy's bootstrap over blocks (BCa; percentile where BCa is undefined) resamples the blocks at hand, so it never
    leaves their range and covers at most 1 - 2^(1-n) of the time: 75 % at three blocks. Student's t over blocks has
    no such ceiling. The wider of the two holds, so that few blocks read as little knowledge.
    """
    kept = np.asarray(values, dtype="float64")
    kept = kept[np.isfinite(kept)]
    count = len(kept)
    if count < 2:
        mean = float(kept[0]) if count else np.nan
        return Estimate(mean, np.nan, np.nan, count, "no interval from fewer than two blocks", np.nan)
    error = float(kept.std(ddof=1)) / np.sqrt(count)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    low, high, method = _bootstrap(kept, seed)
    mean = float(kept.mean())
    detectable = (reach + float(stats.t.ppf(POWER, count - 1))) * error
    return Estimate(
        mean,
        max(least, min(low, mean - reach * error)),
        max(high, mean + reach * error),
        count,
        f"95 %, {count} blocks: wider of {method} and Student t",
        detectable,
    )


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float, str]:
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), "bootstrap (no spread)"
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate BCa warns and gives null: percentile follows
            result = stats.bootstrap(
                (values,),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=method,
                vectorized=True,
                rng=np.random.default_rng(seed),
            )
        interval = result.confidence_interval
        if np.isfinite([interval.low, interval.high]).all():
            return float(interval.low), float(interval.high), f"bootstrap {method}"
    return np.nan, np.nan, "bootstrap"
