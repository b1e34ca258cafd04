"""How much work was done inside a window: batches and tokens, each counted by the part of its time that lies there."""

from __future__ import annotations

from collections.abc import Mapping

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


def tokens_inside(
    request: NDArray[np.integer],
    arrival_ns: NDArray[np.int64],
    submitted: Mapping[int, int],
    start_ns: int,
    end_ns: int,
) -> float:
    """Tokens done in [start, end), ns: each takes the time since the one before it of its request; arrays (tokens,).

    A request's first token takes the time since `submitted` (request id -> ns); where that is not known it counts
    where it arrived. Counting whole tokens gives the same rate on average, and is off by up to one engine step, all
    requests' tokens at once: equal counts in every trial then look like no noise at all. A token in the making whose
    end is not recorded is not counted: one a request at the most, and none where recording went on past the window.
    """
    order = np.lexsort((arrival_ns, request))
    of, done = np.asarray(request)[order], np.asarray(arrival_ns)[order]
    began = np.concatenate([done[:1], done[:-1]])
    first = np.ones(len(of), dtype=bool)
    first[1:] = of[1:] != of[:-1]
    began[first] = [
        min(submitted.get(int(name), stop), stop) for name, stop in zip(of[first], done[first], strict=True)
    ]
    return done_inside(began, done, np.ones(len(of), dtype=np.int64), start_ns, end_ns)
