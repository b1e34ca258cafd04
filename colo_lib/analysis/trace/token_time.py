"""Where the time of a decode token went, in a window of a capture: on one device, and on two ranks of a sharded gen.

How many tokens there were is counted from the CUDA graphs that gen replayed. A decode step of vLLM with full graphs
replays one graph, and all of a replay's kernels carry its correlation id. So the replays in a window are its steps, and
a step gives a token to each request in flight. The rate while profiling, over a longer window than a capture that was
cut to be shared, is what is left where replays cannot be told.

On one device the window is split without rest: the workload's own busy time (union, in residence), by category;
`switched_out`, when its kernels had started but its context was not on the device; and the gaps between its kernels. A
gap ends with a kernel; from that kernel's launch on (the API call joined on process and correlation id) the gap is
`waiting` for the device, before it the `host` had not asked yet. Gaps whose kernel has no recorded launch are
`unattributed`.

Two ranks meet in collectives: how long each waits for the other, and how long the exchange itself takes. A collective
ends on no rank before the last one has arrived, so its kernels of the two ranks overlap in time. From the pair's
intervals: skew = difference of the starts, which the earlier rank spends waiting; exchange = the time in which both are
there, |[start_0, end_0) ∩ [start_1, end_1)|. Both GPUs' times must be of one Nsight Systems session: across sessions
the clocks' uncertainty exceeds the skew. A rank's window is its own kernels (those that are no collective, united), its
collectives beyond that, and the rest, in which nothing of gen runs on its GPU; the three add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.kernels import OTHER, PATTERNS, Patterns, categorise
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.errors import InputError
from colo_lib.records import CaptureFacts
from colo_lib.trace import Capture, Ints, Kernels, Launches

ALIKE = 0.98  # of the largest replay's kernels; a profiler loses a few
WORST_RATIO = 2.0  # between counted and expected: more is another kind of replay


def replays(kernels: Kernels, rows: Ints) -> float | None:
    """Graph replays among `rows`, which are one process's kernels on one device in order of their start.

    The first and the last are counted by the part of their kernels that is there. None where fewer than three are seen
    (no whole one is certain), or where they differ, as graphs of single layers or of several batch sizes do.
    """
    correlation = kernels.correlation[rows[kernels.node[rows]]]
    _, first, counts = np.unique(correlation, return_index=True, return_counts=True)
    counts = counts[np.argsort(first)]
    whole = counts[1:-1].max(initial=0)
    if not whole or (counts[1:-1] < ALIKE * whole).any():
        return None
    return len(counts) - 2 + float(np.minimum(counts[[0, -1]] / whole, 1.0).sum())


def tokens_of(steps: float | None, expected: float, concurrency: int) -> float:
    """Tokens of `steps` replays with `concurrency` requests in flight, else `expected`, which is rate x window."""
    if steps is None:
        return expected
    counted = steps * concurrency
    return counted if 1 / WORST_RATIO <= counted / expected <= WORST_RATIO else expected


GRAPH = "graph launches"
NO_LAUNCH = intervals.EVER


@dataclass(frozen=True)
class TokenTime:
    """Where a workload's time went, ns per piece of its work (a decoded token, an embedded sequence).

    busy_ns, switched_out_ns, waiting_ns, host_ns and unattributed_ns add up to window_ns, `busy_by_category_ns` to
    busy_ns (kernels that ran beside each other share their time). `pieces`: how many there were in the window.
    `clipped`: no interval holds time in which the workload's context was switched out.
    """

    window_ns: float
    busy_ns: float
    switched_out_ns: float
    waiting_ns: float
    host_ns: float
    unattributed_ns: float
    busy_by_category_ns: Mapping[str, float]
    pieces: float
    clipped: bool


def decompose_token_time(
    view: TraceWindow, workload: str, launches: Launches, pieces: float, patterns: Patterns = PATTERNS
) -> TokenTime:
    """The time of a workload by piece of its work, of which there were `pieces` in the window.

    Raises KeyError where the workload has no work in the view; ValueError unless pieces > 0.
    """
    if not pieces > 0:
        raise ValueError(f"pieces of work must be more than 0, not {pieces}")
    active = view.workloads[workload]
    busy_ns = intervals.length(active.busy)
    gaps = intervals.gaps(active.span, view.window)
    waiting, unknown = _waiting(active, gaps, launches)
    length = gaps[1] - gaps[0]
    waiting_ns, unattributed_ns = int(waiting.sum()), int(length[unknown].sum())
    shares = _category_shares(active, view.capture.names, patterns)
    return TokenTime(
        window_ns=view.window_ns / pieces,
        busy_ns=busy_ns / pieces,
        switched_out_ns=(intervals.length(active.span) - busy_ns) / pieces,
        waiting_ns=waiting_ns / pieces,
        host_ns=(int(length.sum()) - waiting_ns - unattributed_ns) / pieces,
        unattributed_ns=unattributed_ns / pieces,
        busy_by_category_ns={name: share * busy_ns / pieces for name, share in shares.items()},
        pieces=pieces,
        clipped=len(view.workloads) == 1 or not view.upper_bound,
    )


def gen_times(view: TraceWindow, facts: CaptureFacts, launches: Launches, concurrency: int) -> TokenTime | None:
    """`decompose_token_time` of gen per decoded token in a window of a capture, whose capture.json says `facts`.

    `concurrency`: the run's requests in flight. None for a window without gen, or where no rate of gen was recorded.
    """
    rate = facts.profiled and facts.profiled.gen_tokens_per_s
    if not rate or "gen" not in view.workloads:
        return None
    tokens = tokens_of(_replays(view), rate * view.window_ns / 1e9, concurrency)
    return decompose_token_time(view, "gen", launches, tokens)


def _replays(view: TraceWindow) -> float | None:
    rows = view.workloads["gen"].rows
    process = view.capture.kernels.process[rows]
    return replays(view.capture.kernels, rows[process == np.bincount(process).argmax()])


def _waiting(active: Active, gaps: intervals.Union, launches: Launches) -> tuple[Ints, np.ndarray]:
    """Of each gap the ns after its kernel's launch, and whether no launch is known. A gap at the end has no kernel:
    nothing was asked for that started, so all of it is the host's."""
    start = active.get("start_ns")
    order = np.argsort(start, kind="stable")
    place = np.searchsorted(start[order], gaps[1])
    ends_in_kernel = place < len(order)
    rows = order[np.minimum(place, len(order) - 1)]
    launched = launch_times(active, rows, launches)
    known = launched < NO_LAUNCH
    waiting = np.where(ends_in_kernel & known, gaps[1] - np.clip(launched, gaps[0], gaps[1]), 0)
    return waiting, ends_in_kernel & ~known


def launch_times(active: Active, rows: Ints, launches: Launches) -> Ints:
    """When the API call that launched each row of `active` began, ns; `NO_LAUNCH` where none is recorded.

    Of several calls with one correlation id (a runtime call and the driver call below it) the first counts.
    """
    asked = _keys(active.get("process")[rows], active.get("correlation")[rows])
    if not len(launches):
        return np.full(len(asked), NO_LAUNCH)
    keys = _keys(launches.process, launches.correlation)
    order = np.lexsort((launches.start_ns, keys))
    place = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    same = keys[order][place] == asked
    return np.where(same, launches.start_ns[order][place], NO_LAUNCH)


def _keys(process: np.ndarray, correlation: np.ndarray) -> Ints:
    # Correlation ids repeat across processes.
    return process.astype(np.int64) << 32 | correlation.astype(np.int64)


def _category_shares(active: Active, names: list[str], patterns: Patterns) -> dict[str, float]:
    kinds = [*categorise(names, patterns), OTHER, GRAPH]  # UNKNOWN, -1, is moved to the place before the last
    place = np.where(active.get("graph"), len(kinds) - 1, active.get("name"))
    place = np.where(place < 0, len(kinds) - 2, place)
    time_ns = np.bincount(place, active.active_ns, minlength=len(kinds))
    total = float(time_ns.sum())
    by_kind: dict[str, float] = {}
    for kind, value in zip(kinds, time_ns.tolist(), strict=True):
        if value:
            by_kind[kind] = by_kind.get(kind, 0.0) + value / total
    return by_kind


COMMUNICATION = "communication"

# Parts of a token's time on a rank, in words; they add up to it.
TOKEN_PARTS = {
    "own_ms": "own kernels", "idle_ms": "nothing of the LLM running", "waiting_ms": "waiting for the other rank",
    "exchange_ms": "rest of the collectives",
}  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One rank's window, ns: its own kernels, its collectives beside none of them, the rest; add up to the window.

    `replays`: CUDA graphs replayed (`replays`), None where they cannot be told.
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
    kept = np.sort(order[keep])
    return left[kept], right[kept]


def _shared(start_a: Ints, end_a: Ints, start_b: Ints, end_b: Ints, partner: Ints) -> Ints:
    return np.minimum(end_a, end_b[partner]) - np.maximum(start_a, start_b[partner])


def _first(kernels: Kernels) -> int:
    return int(kernels.start_ns.min(initial=0))


def _last(kernels: Kernels) -> int:
    return int(kernels.end_ns.max(initial=0))


def collective_summary(pairs: CollectivePairs, tokens_per_s: float | None, concurrency: int) -> Mapping[str, float]:
    """Numbers of a capture's pairs; per token (`CollectivePairs.tokens`), null without a rate while profiling.

    tokens, collectives, skew_p50_us, skew_p99_us (absolute), exchange_p50_us, rank0_waits (fraction of the pairs),
    wait_us_per_token (of the rank that waits), exchange_us_per_token, collectives_per_token, unpaired.
    """
    size, count = np.abs(pairs.skew_ns) / 1e3, len(pairs.skew_ns)
    tokens = pairs.tokens(tokens_per_s * pairs.window_ns / 1e9, concurrency) if tokens_per_s else np.nan
    exchange = pairs.exchange_ns / 1e3
    none = np.nan
    return {
        "tokens": tokens,
        "collectives": count,
        "skew_p50_us": float(np.percentile(size, 50)) if count else none,
        "skew_p99_us": float(np.percentile(size, 99)) if count else none,
        "exchange_p50_us": float(np.percentile(exchange, 50)) if count else none,
        "rank0_waits": float((pairs.skew_ns > 0).mean()) if count else none,
        "wait_us_per_token": float(size.sum()) / tokens,
        "exchange_us_per_token": float(exchange.sum()) / tokens,
        "collectives_per_token": count / tokens,
        "unpaired": pairs.unpaired,
    }


def rank_times(pairs: CollectivePairs, tokens: float) -> list[dict[str, float]]:
    """A rank each, ms per token: token_ms = own_ms + waiting_ms + exchange_ms + idle_ms, and device, the GPU's number.

    waiting: in a collective before the other rank; exchange: the rest of the collectives beside no kernel of its own.
    """
    return [
        {
            "device": rank.device,
            "token_ms": pairs.window_ns / tokens / 1e6,
            "own_ms": rank.own_ns / tokens / 1e6,
            "waiting_ms": pairs.waiting_ns(place) / tokens / 1e6,
            "exchange_ms": (rank.collectives_ns - pairs.waiting_ns(place)) / tokens / 1e6,
            "idle_ms": rank.idle_ns / tokens / 1e6,
        }
        for place, rank in enumerate(pairs.ranks)
    ]


@dataclass(frozen=True)
class StepCollectives:
    """A step's collectives and their numbers (`collective_summary`), with the means over the ranks where known.

    `ranks`: where a token's time went on each (`rank_times`); empty without a rate while profiling.
    """

    pairs: CollectivePairs
    summary: Mapping[str, float]
    ranks: list[dict[str, float]]
    concurrency: int

    @property
    def apart_us(self) -> np.ndarray:
        """|difference of the ranks' arrivals| of each collective, us."""
        return np.abs(self.pairs.skew_ns) / 1e3


def step_collectives(
    capture: Capture,
    pids: Sequence[int],
    window_s: tuple[float, float] | None,
    tokens_per_s: float | None,
    concurrency: int,
) -> StepCollectives | None:
    """How gen's two ranks met, in all and per token; `tokens_per_s`: gen's rate while profiled. None for one rank."""
    pairs = collective_pairs(capture, pids, window_s)
    if pairs is None:
        return None
    numbers = collective_summary(pairs, tokens_per_s, concurrency)
    ranks = rank_times(pairs, numbers["tokens"]) if tokens_per_s else []
    means = {name: float(np.mean([rank[name] for rank in ranks])) for name in TOKEN_PARTS if ranks}
    return StepCollectives(pairs, {**numbers, **means}, ranks, concurrency)
