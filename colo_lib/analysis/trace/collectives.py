"""Where two ranks of gen meet: how long each waits for the other, and how long the exchange itself takes.

A collective ends on no rank before the last one has arrived, so its kernels of the two ranks overlap in time. From the
pair's intervals: skew = difference of the starts, which the earlier rank spends waiting; exchange = the time in which
both are there, |[start_0, end_0) ∩ [start_1, end_1)|. Both GPUs' times must be of one Nsight Systems session: across
sessions the clocks' uncertainty exceeds the skew.

A rank's window is its own kernels (those that are no collective, united), its collectives beyond that, and the rest, in
which nothing of gen runs on its GPU; the three add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.kernels import PATTERNS, Patterns, categorise
from colo_lib.analysis.trace.token_time import replays, tokens_of
from colo_lib.errors import InputError
from colo_lib.trace import Capture, Ints

COMMUNICATION = "communication"

# Parts of a token's time on a rank, in words; they add up to it.
TOKEN_PARTS = {
    "own_ms": "own kernels", "idle_ms": "nothing of gen running", "waiting_ms": "waiting for the other rank",
    "exchange_ms": "rest of the collectives",
}  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One rank's window, ns: its own kernels, its collectives beside none of them, the rest; add up to the window.

    `replays`: CUDA graphs replayed (`decode_steps.replays`), None where they cannot be told.
    """

    device: int
    own_ns: int
    collectives_ns: int
    idle_ns: int
    replays: float | None


@dataclass(frozen=True)
class CollectivePairs:
    """Collectives of two ranks that were paired, in order of time; ns. `ranks`: by the GPUs' numbers, rank 0 first.

    skew_ns (n,): start on rank 1 - start on rank 0; positive where rank 0 waits. exchange_ns (n,). `unpaired`: kernels
    of either rank without a partner, as at the window's ends. `window_ns`: length of what was looked at.
    """

    ranks: tuple[Rank, Rank]
    skew_ns: Ints
    exchange_ns: Ints
    unpaired: int
    window_ns: int

    def waiting_ns(self, place: int) -> int:
        """Time that the rank at `place`, 0 or 1, was there before the other."""
        return int(np.clip(self.skew_ns if place == 0 else -self.skew_ns, 0, None).sum())

    def tokens(self, expected: float, concurrency: int) -> float:
        """Tokens decoded in the window: by rank 0's replays, else `expected`, rate x window."""
        return tokens_of(self.ranks[0].replays, expected, concurrency)


def collective_pairs(
    capture: Capture, pids: Sequence[int], window_s: tuple[float, float] | None, patterns: Patterns = PATTERNS
) -> CollectivePairs | None:
    """The collectives of gen's two ranks in a window, seconds on the capture's clock; None where gen has one rank.

    `pids`: processes of gen. Raises InputError for ranks of different sessions.
    """
    kernels = capture.kernels
    category = np.array([*categorise(capture.names, patterns), ""]) == COMMUNICATION
    places = [place for place, process in enumerate(capture.processes) if process.pid in set(pids)]
    mine = np.isin(kernels.process, places)
    start, end = (round(second * 1e9) for second in window_s) if window_s else (_first(kernels), _last(kernels))
    mine &= (kernels.start_ns >= start) & (kernels.end_ns <= end)
    devices = sorted(np.unique(kernels.device[mine]), key=lambda place: capture.devices[place].number)
    if len(devices) != 2:
        return None
    if len({capture.processes[place].session for place in np.unique(kernels.process[mine])}) > 1:
        raise InputError("the ranks are in different sessions: their clocks are not exact enough to tell who waits")
    ranks = [np.flatnonzero(mine & (kernels.device == device)) for device in devices]
    both = [rows[category[kernels.name[rows]]] for rows in ranks]
    first, second = ((kernels.start_ns[rows], kernels.end_ns[rows]) for rows in both)
    left, right = paired_calls(*first, *second)
    return CollectivePairs(
        ranks=(_rank(capture, ranks[0], category, (start, end)), _rank(capture, ranks[1], category, (start, end))),
        skew_ns=second[0][right] - first[0][left],
        exchange_ns=np.minimum(first[1][left], second[1][right]) - np.maximum(first[0][left], second[0][right]),
        unpaired=len(both[0]) + len(both[1]) - 2 * len(left),
        window_ns=end - start,
    )


def _rank(capture: Capture, rows: Ints, category: np.ndarray, window: tuple[int, int]) -> Rank:
    kernels = capture.kernels
    start, end, meets = kernels.start_ns[rows], kernels.end_ns[rows], category[kernels.name[rows]]
    own_ns = intervals.length(intervals.union(start[~meets], end[~meets]))
    busy_ns = intervals.length(intervals.union(start, end))
    device = capture.devices[int(kernels.device[rows[0]])].number
    return Rank(device, own_ns, busy_ns - own_ns, window[1] - window[0] - busy_ns, replays(kernels, rows))


def paired_calls(start_a: Ints, end_a: Ints, start_b: Ints, end_b: Ints) -> tuple[Ints, Ints]:
    """Places in a and b of the intervals that meet; a pair overlaps by more than any other of either.

    Each list is sorted by start and disjoint in itself. An interval that overlaps two of the other side, as where a
    clock is a little off, goes with the one that it shares more time with.
    """
    if not len(start_a) or not len(start_b):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    last = np.clip(np.searchsorted(start_b, end_a, side="left") - 1, 0, None)
    before = np.clip(last - 1, 0, None)
    shared_last, shared_before = (_shared(start_a, end_a, start_b, end_b, partner) for partner in (last, before))
    best, shared = np.where(shared_before > shared_last, before, last), np.maximum(shared_before, shared_last)
    left = np.flatnonzero(shared > 0)
    right = best[left]
    # Of two that claim the same partner the one that shares more keeps it.
    order = np.lexsort((-shared[left], right))
    keep = np.ones(len(order), np.bool_)
    keep[1:] = right[order][1:] != right[order][:-1]
    chosen = np.sort(order[keep])
    return left[chosen], right[chosen]


def _shared(start_a: Ints, end_a: Ints, start_b: Ints, end_b: Ints, partner: Ints) -> Ints:
    return np.minimum(end_a, end_b[partner]) - np.maximum(start_a, start_b[partner])


def _first(kernels: Any) -> int:
    return int(kernels.start_ns.min(initial=0))


def _last(kernels: Any) -> int:
    return int(kernels.end_ns.max(initial=0))


def collective_summary(found: CollectivePairs, tokens_per_s: float | None, concurrency: int) -> Mapping[str, float]:
    """Numbers of a capture's meetings; per token (`Meetings.tokens`), null without a rate while profiling.

    tokens, collectives, skew_p50_us, skew_p99_us (absolute), exchange_p50_us, rank0_waits (fraction of the meetings),
    wait_us_per_token (of the rank that waits), exchange_us_per_token, collectives_per_token, unpaired.
    """
    size, count = np.abs(found.skew_ns) / 1e3, len(found.skew_ns)
    tokens = found.tokens(tokens_per_s * found.window_ns / 1e9, concurrency) if tokens_per_s else np.nan
    exchange = found.exchange_ns / 1e3
    none = np.nan
    return {
        "tokens": tokens,
        "collectives": count,
        "skew_p50_us": float(np.percentile(size, 50)) if count else none,
        "skew_p99_us": float(np.percentile(size, 99)) if count else none,
        "exchange_p50_us": float(np.percentile(exchange, 50)) if count else none,
        "rank0_waits": float((found.skew_ns > 0).mean()) if count else none,
        "wait_us_per_token": float(size.sum()) / tokens,
        "exchange_us_per_token": float(exchange.sum()) / tokens,
        "collectives_per_token": count / tokens,
        "unpaired": found.unpaired,
    }


def rank_times(found: CollectivePairs, tokens: float) -> list[dict[str, float]]:
    """A rank each, ms per token: token_ms = own_ms + waiting_ms + exchange_ms + idle_ms, and device, the GPU's number.

    waiting: in a collective before the other rank; exchange: the rest of the collectives beside no kernel of its own.
    """
    return [
        {
            "device": rank.device,
            "token_ms": found.window_ns / tokens / 1e6,
            "own_ms": rank.own_ns / tokens / 1e6,
            "waiting_ms": found.waiting_ns(place) / tokens / 1e6,
            "exchange_ms": (rank.collectives_ns - found.waiting_ns(place)) / tokens / 1e6,
            "idle_ms": rank.idle_ns / tokens / 1e6,
        }
        for place, rank in enumerate(found.ranks)
    ]


@dataclass(frozen=True)
class StepCollectives:
    """A step's collectives and their numbers (`collective_summary`), with the means over the ranks where known.

    `ranks`: where a token's time went on each (`rank_times`); empty without a rate while profiling.
    """

    found: CollectivePairs
    summary: Mapping[str, float]
    ranks: list[dict[str, float]]
    concurrency: int

    @property
    def apart_us(self) -> np.ndarray:
        """|difference of the ranks' arrivals| of each collective, us."""
        return np.abs(self.found.skew_ns) / 1e3


def step_collectives(
    capture: Capture,
    pids: Sequence[int],
    window_s: tuple[float, float] | None,
    tokens_per_s: float | None,
    concurrency: int,
) -> StepCollectives | None:
    """How gen's two ranks met, in all and per token; `tokens_per_s`: gen's rate while profiled. None for one rank."""
    found = collective_pairs(capture, pids, window_s)
    if found is None:
        return None
    numbers = collective_summary(found, tokens_per_s, concurrency)
    ranks = rank_times(found, numbers["tokens"]) if tokens_per_s else []
    means = {name: float(np.mean([rank[name] for rank in ranks])) for name in TOKEN_PARTS if ranks}
    return StepCollectives(found, {**numbers, **means}, ranks, concurrency)
