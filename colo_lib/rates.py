"""How much work was done inside a window, and at which rate: tokens and sequences, each by the part of its time inside.

The one place that counts work. The record of a trial is made from it, and every number that is read from its frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NS_PER_S = 1_000_000_000


class Table(Protocol):
    """A table whose columns give arrays by `to_numpy()`: a pyarrow table, or a frame of pandas."""

    def __getitem__(self, column: str, /) -> Any:
        """A column."""


@dataclass(frozen=True)
class Work:
    """Pieces of work, arrays (pieces,): when each began and was done, CLOCK_MONOTONIC ns, and how much it was."""

    began_ns: Ints
    done_ns: Ints
    weights: NDArray[np.integer]

    def ended(self, start_ns: int, end_ns: int) -> int:
        """The work of the pieces that were done in [start, end), whenever they began."""
        return int(self.weights[(self.done_ns >= start_ns) & (self.done_ns < end_ns)].sum())

    def inside(self, start_ns: int, end_ns: int) -> float:
        """The work done in [start, end): `done_inside`."""
        return done_inside(self.began_ns, self.done_ns, self.weights, start_ns, end_ns)

    def rate(self, start_ns: int, end_ns: int) -> float:
        """Work per second in [start, end). Raises ValueError for an empty window."""
        if end_ns <= start_ns:
            raise ValueError(f"an empty window: [{start_ns}, {end_ns})")
        return self.inside(start_ns, end_ns) / ((end_ns - start_ns) / NS_PER_S)

    def drift(self, start_ns: int, end_ns: int) -> float | None:
        """|second half of the window / first half - 1|; None when the first half is empty."""
        middle = (start_ns + end_ns) // 2
        first, second = self.inside(start_ns, middle), self.inside(middle, end_ns)
        return abs(second / first - 1) if first else None


def tokens(gen: Table, requests: Table | None = None) -> Work:
    """Each token of `frames.GEN` as work from the token before it of its request on.

    A request's first token takes the time since it was submitted (`frames.REQUESTS`); where that is not known it
    counts where it arrived. Counting whole tokens gives the same rate on average, and is off by up to one engine step,
    all requests' tokens at once: equal counts in every trial then look like no noise at all. A token in the making
    whose end is not recorded is not counted: one a request at the most, and none where recording went on past the
    window.
    """
    request, arrival = (np.asarray(gen[name].to_numpy()) for name in ("request_id", "arrival_ns"))
    order = np.lexsort((arrival, request))
    of, done = request[order], arrival[order]
    began = np.concatenate([done[:1], done[:-1]])
    first = np.ones(len(of), dtype=bool)
    first[1:] = of[1:] != of[:-1]
    submitted = {} if requests is None else _submitted(requests)
    pairs = zip(of[first].tolist(), done[first].tolist(), strict=True)
    began[first] = [min(submitted.get(name, stop), stop) for name, stop in pairs]
    return Work(began, done, np.ones(len(of), dtype=np.int64))


def _submitted(requests: Table) -> dict[int, int]:
    ids, times_ns = (requests[name].to_numpy().tolist() for name in ("request_id", "submitted_ns"))
    return dict(zip(map(int, ids), map(int, times_ns), strict=True))


def sequences(embed: Table) -> Work:
    """Each batch of `frames.EMBED` as work of so many sequences."""
    return Work(*(np.asarray(embed[name].to_numpy()) for name in ("started_ns", "done_ns", "sequences")))


def done_inside(began_ns: Ints, done_ns: Ints, weights: NDArray[np.integer], start_ns: int, end_ns: int) -> float:
    """Sum of the weights x the fraction of [began, done) in [start, end), ns; all arrays (pieces,).

    Counting whole batches that ended in the window gives the same rate on average, and is off by up to a batch: 8 % at
    twelve batches a window, the same in every trial if their times are. A batch that took no time counts where it
    ended.
    """
    took = done_ns - began_ns
    inside = np.clip(np.minimum(done_ns, end_ns) - np.maximum(began_ns, start_ns), 0, None)
    ended = (done_ns >= start_ns) & (done_ns < end_ns)
    share = np.where(took > 0, inside / np.maximum(took, 1), ended)
    return float((share * weights).sum())
