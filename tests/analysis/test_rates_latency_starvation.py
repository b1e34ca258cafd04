"""Rates, latencies and stalls: tables of tiny cases, and what must hold for any events."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis import trial_metrics
from colo_lib.frames import Work, done_inside, sequence_work, token_work

MS = 1_000_000
TIMES = st.lists(st.integers(0, 20_000), max_size=60)
WINDOWS = st.tuples(st.integers(0, 15_000), st.integers(1, 10_000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def gen_frame(times_ms: list[float], requests: list[int] | None = None) -> pd.DataFrame:
    ids = requests or [0] * len(times_ms)
    numbers = pd.Series(ids, dtype="int64").groupby(ids).cumcount() if ids else pd.Series(dtype="int64")
    arrival = [int(time * MS) for time in times_ms]
    return pd.DataFrame({"request_id": ids, "sequence_number": numbers, "arrival_ns": arrival}).astype("int64")


def counted(work: Work, start_ns: int, end_ns: int) -> tuple[int, float]:
    return work.ended(start_ns, end_ns), work.rate(start_ns, end_ns)


def token_rate(gen: pd.DataFrame, requests: pd.DataFrame | None, start_ns: int, end_ns: int) -> tuple[int, float]:
    return counted(token_work(gen, requests), start_ns, end_ns)


def test_the_window_is_half_open() -> None:
    assert token_rate(gen_frame([0, 500, 999, 1000]), None, 0, 1000 * MS) == (3, pytest.approx(4.0))
    with pytest.raises(ValueError, match="empty window"):
        token_rate(gen_frame([0]), None, 5, 5)


def test_a_batch_that_the_window_cuts_counts_by_its_part() -> None:
    embed = pd.DataFrame({"started_ns": [0, 900, 1900], "done_ns": [900, 1900, 2500], "sequences": 8, "tokens": 80}) * [
        MS,
        MS,
        1,
        1,
    ]
    # 8 + 8 sequences ended; of the third batch 100 of 600 ms lie inside.
    sequences, rate = counted(sequence_work(embed), 0, 2000 * MS)
    assert (sequences, rate) == (16, pytest.approx((16 + 8 / 6) / 2))
    assert list(trial_metrics.batch_ms(embed, 0, 2000 * MS)) == [900, 1000]


BATCHES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 800), st.integers(1, 64)), min_size=1, max_size=40)


@given(BATCHES, st.lists(st.integers(0, 60_000), max_size=6))
def test_windows_share_batches_out_without_rest(parts: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """Whatever the pauses, lengths and sizes, windows that meet hold every sequence once."""
    pauses, lengths, sizes = (np.array(column, np.int64) for column in zip(*parts, strict=True))
    done = np.cumsum(pauses + lengths)
    edges = [0, *sorted(cuts), max(60_000, int(done[-1])) + 1]
    shares = [done_inside(done - lengths, done, sizes, *edge) for edge in itertools.pairwise(edges)]
    assert sum(shares) == pytest.approx(sizes.sum())
    for (start, end), share in zip(itertools.pairwise(edges), shares, strict=True):
        ended = sizes[(done >= start) & (done < end)].sum()
        assert abs(share - ended) <= sizes.max() + 1e-9, "off by more than the batch that an edge cuts"


def test_a_token_that_the_window_cuts_counts_by_its_part() -> None:
    # Two requests in step, 400 ms a token; submitted at 0, the window begins and ends in the middle of a step.
    gen = gen_frame([400, 400, 800, 800, 1200, 1200, 1600, 1600], [0, 1] * 4)
    requests = pd.DataFrame({"request_id": [0, 1], "submitted_ns": [0, 0]})
    tokens, rate = token_rate(gen, requests, 200 * MS, 1300 * MS)
    assert (tokens, rate) == (6, pytest.approx(2 / 0.4)), "6 whole tokens would be 5.45 a second"


def test_equal_counts_of_tokens_are_not_equal_rates() -> None:
    slow, fast = (gen_frame([100 + step * gap for step in range(12)]) for gap in (98.0, 99.5))
    (first, slow_rate), (second, fast_rate) = (token_rate(one, None, 100 * MS, 1100 * MS) for one in (slow, fast))
    assert first == second == 11
    assert slow_rate / fast_rate == pytest.approx(99.5 / 98.0, rel=0.01)


@given(TIMES.filter(len), st.lists(st.integers(0, 20_000), max_size=6), st.integers(0, 9))
def test_windows_share_tokens_out_without_rest(times: list[int], cuts: list[int], requests: int) -> None:
    ordered = sorted(times)
    gen = gen_frame([float(time) for time in ordered], [place % (requests + 1) for place in range(len(ordered))])
    edges = [0, *sorted(cuts), 30_000]
    shares = [token_rate(gen, None, a * MS, b * MS)[1] * (b - a) / 1000 for a, b in itertools.pairwise(edges) if b > a]
    assert sum(shares) == pytest.approx(len(ordered))


@given(TIMES, WINDOWS, st.integers(0, 10_000))
def test_windows_that_meet_add_up(times: list[int], window: tuple[int, int], more: int) -> None:
    gen, (start, end) = gen_frame([float(time) for time in times]), window
    first = token_rate(gen, None, start * MS, end * MS)[0]
    second = token_rate(gen, None, end * MS, (end + 1 + more) * MS)[0]
    assert first + second == token_rate(gen, None, start * MS, (end + 1 + more) * MS)[0]


@given(TIMES, WINDOWS)
def test_the_longest_silence_is_no_longer_than_the_window_nor_shorter_than_its_even_share(
    times: list[int], window: tuple[int, int]
) -> None:
    start, end = window
    events = pd.Series(times, dtype="int64") * MS
    silence = trial_metrics.longest_silence_ms(events, start * MS, end * MS)
    count = sum(start <= time < end for time in times)
    assert (end - start) / (count + 1) - 1e-9 <= silence <= end - start


@given(TIMES, WINDOWS, st.integers(0, 20_000))
def test_another_event_never_lengthens_a_silence(times: list[int], window: tuple[int, int], extra: int) -> None:
    start, end = (edge * MS for edge in window)
    before = trial_metrics.longest_silence_ms(pd.Series(times, dtype="int64") * MS, start, end)
    after = trial_metrics.longest_silence_ms(pd.Series([*times, extra], dtype="int64") * MS, start, end)
    assert after <= before


@pytest.mark.parametrize(
    ("times", "longest"),
    [([], 1000), ([400], 600), ([600], 600), ([0, 999], 999), ([100, 200, 300], 700), ([-5, 1000, 1500], 1000)],
)
def test_the_edges_of_the_window_count(times: list[int], longest: float) -> None:
    assert trial_metrics.longest_silence_ms(pd.Series(times, dtype="int64") * MS, 0, 1000 * MS) == longest


@given(st.lists(st.integers(0, 500), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_gaps_are_per_request_and_do_not_depend_on_the_order_of_rows(steps: list[int], random: object) -> None:
    times = np.cumsum(steps)
    gen = pd.concat([gen_frame(list(times.astype(float))), gen_frame(list(times + 0.25), [1] * len(times))])
    shuffled = gen.sample(frac=1, random_state=random.randint(0, 2**31))  # type: ignore[attr-defined]
    gaps = trial_metrics.inter_token_gaps_ms(shuffled, 0, 10**6 * MS)
    assert sorted(gaps) == sorted([*np.diff(times), *np.diff(times)])


def test_a_gap_belongs_to_the_window_of_its_later_token() -> None:
    gen = gen_frame([0, 90, 110, 130])
    assert list(trial_metrics.inter_token_gaps_ms(gen, 100 * MS, 120 * MS)) == [20]


def test_time_to_first_token_leaves_failed_requests_out() -> None:
    requests = requests_frame([(0, 50, 200, None), (0, 70, None, "refused"), (0, None, None, None)])
    assert list(trial_metrics.first_token_ms(requests, 0, 100 * MS)) == [50]


def test_a_description_without_events_is_null_and_counts_none() -> None:
    told = trial_metrics.describe_ms(np.array([]))
    assert told["count"] == 0
    assert np.isnan(told["p99_ms"])
    assert trial_metrics.describe_ms(np.arange(101.0)) == {"count": 101, "p50_ms": 50, "p99_ms": 99, "max_ms": 100}


def requests_frame(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    times = [[None if value is None else int(value * MS) for value in row[:3]] for row in rows]
    frame = pd.DataFrame(times, columns=["submitted_ns", "first_token_ns", "done_ns"]).astype("Int64")
    frame["submitted_ns"] = frame["submitted_ns"].astype("int64")
    return frame.assign(request_id=range(len(rows)), error=[row[3] for row in rows])


def test_requests_within_their_bounds() -> None:
    requests = requests_frame(
        [
            (0, 10, 40, None),  # good
            (0, 300, 320, None),  # first token too late
            (0, 10, 600, None),  # stalled between two tokens
            (500, None, None, None),  # waits for its first token since 500
            (0, 10, 40, "connection lost"),  # failed
            (0, 10, None, None),  # stalled since 20, still going
            (2000, 2010, 2020, None),  # after the window
        ]
    )
    tokens = [(10, 0), (40, 0), (300, 1), (320, 1), (10, 2), (20, 2), (600, 2), (10, 4), (40, 4), (10, 5), (20, 5)]
    gen = gen_frame([time for time, _ in tokens], [request for _, request in tokens])
    within, alive = trial_metrics.requests_within(requests, gen, 0, 1000 * MS, ttft_ms=200, stall_ms=400)
    assert (within, alive) == (1, 6)


def test_waits_of_the_warm_up_are_not_the_windows() -> None:
    requests = requests_frame([(0, 900, 1500, None)])  # first token late, then a stall, both before the window
    gen = gen_frame([900, 1400, 1500], [0, 0, 0])
    within = trial_metrics.requests_within(requests, gen, 1450 * MS, 2000 * MS, ttft_ms=200, stall_ms=400)
    assert within == (1, 1)


def test_the_share_within_a_bound() -> None:
    assert trial_metrics.share_within(np.array([1.0, 2.0, 3.0, 4.0]), 3.0) == 0.75
    assert np.isnan(trial_metrics.share_within(np.array([]), 1.0))
