"""How much of a workload's batches was done inside a window, each counted by the part of its time that lies there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def done_inside(
    started_ns: NDArray[np.int64], done_ns: NDArray[np.int64], weights: NDArray[np.integer], start_ns: int, end_ns: int
) -> float:
    """Sum of the weights x the fraction of [started, done) in [start, end), ns; all arrays (batches,).

    Counting whole batches that ended in the window gives the same rate on average, and is off by up to a batch: 8 % at
    twelve batches a window, the same in every trial if their times are. A batch that took no time counts where it
    ended.
    """
    took = done_ns - started_ns
    inside = np.clip(np.minimum(done_ns, end_ns) - np.maximum(started_ns, start_ns), 0, None)
    ended = (done_ns >= start_ns) & (done_ns < end_ns)
    share = np.where(took > 0, inside / np.maximum(took, 1), ended)
    return float((share * weights).sum())
