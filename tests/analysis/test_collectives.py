"""Two ranks that meet at collectives: planted arrivals are found again, whoever is late, whatever the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.analysis.trace.token_time import (
    CollectivePairs,
    collective_pairs,
    collective_summary,
    paired_calls,
    rank_times,
)
from colo_lib.data.capture import read_exports
from colo_lib.errors import InputError
from tests.exports import Kernel, write

RANK_0, RANK_1 = 501, 502
REDUCE = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, (int)2>"


def two_ranks(arrivals: list[tuple[int, int, int]], second: int = RANK_1) -> list[Kernel]:
    """A collective each: (arrival on rank 0, on rank 1, exchange) in ns; both end together. Products lie between."""
    kernels = []
    for first, other, exchange in arrivals:
        end = max(first, other) + exchange
        kernels += [
            Kernel(RANK_0, first, end, name=REDUCE, device=0),
            Kernel(second, other, end, name=REDUCE, device=1),
        ]
        kernels += [Kernel(RANK_0, end, end + 3_000, name="gemm", device=0),
                    Kernel(second, end, end + 3_000, name="gemm", device=1)]  # fmt: skip
    return kernels


def found(tmp_path: Path, kernels: list[Kernel], window_s: tuple[float, float] | None = None) -> CollectivePairs | None:
    gpus = {"id": [0, 1], "uuid": ["a", "b"]}
    file = write(tmp_path / "trace.sqlite", kernels, tables={"TARGET_INFO_GPU": gpus})
    return collective_pairs(read_exports([file]), [RANK_0, RANK_1], window_s)


def test_who_waits_and_for_how_long_is_what_was_planted(tmp_path: Path) -> None:
    told = found(tmp_path, two_ranks([(10_000, 12_000, 4_000), (40_000, 40_000, 3_000), (90_500, 90_000, 5_000)]))
    assert told is not None
    assert [rank.device for rank in told.ranks] == [0, 1]
    assert told.skew_ns.tolist() == [2_000, 0, -500]
    assert told.exchange_ns.tolist() == [4_000, 3_000, 5_000]
    assert told.unpaired == 0


def test_numbers_are_per_token_by_the_profiled_rate(tmp_path: Path) -> None:
    told = found(tmp_path, two_ranks([(10_000, 12_000, 4_000), (50_000, 51_000, 4_000)]), (0.0, 100e-6))
    assert told is not None
    numbers = collective_summary(told, 10_000.0, 1)  # a token in the window of 100 us
    assert numbers["collectives_per_token"] == pytest.approx(2.0)
    assert numbers["wait_us_per_token"] == pytest.approx(3.0)
    assert numbers["exchange_us_per_token"] == pytest.approx(8.0)
    assert numbers["rank0_waits"] == 1.0
    assert np.isnan(collective_summary(told, None, 1)["wait_us_per_token"])


def test_a_ranks_time_is_shared_out_without_rest(tmp_path: Path) -> None:
    """Two collectives in a window of 100 us and one token: 2 + 1 us of waiting on rank 0, 4 us each of exchange."""
    told = found(tmp_path, two_ranks([(10_000, 12_000, 4_000), (50_000, 51_000, 4_000)]), (0.0, 100e-6))
    assert told is not None
    first, second = rank_times(told, 1.0)
    for rank in (first, second):
        parts = [rank[name] for name in ("own_ms", "waiting_ms", "exchange_ms", "idle_ms")]
        assert sum(parts) == pytest.approx(rank["token_ms"]) == pytest.approx(0.1)
        assert (rank["own_ms"], rank["exchange_ms"]) == (pytest.approx(0.006), pytest.approx(0.008))
    assert (first["waiting_ms"], second["waiting_ms"]) == (pytest.approx(0.003), 0.0)


def test_a_collective_cut_by_the_window_is_counted_and_left_out(tmp_path: Path) -> None:
    told = found(tmp_path, two_ranks([(10_000, 30_000, 4_000), (60_000, 61_000, 4_000)]), (20e-6, 100e-6))
    assert told is not None
    assert (len(told.skew_ns), told.unpaired) == (1, 1)


def test_one_rank_has_nobody_to_meet(tmp_path: Path) -> None:
    assert found(tmp_path, [Kernel(RANK_0, 0, 10, name=REDUCE), Kernel(RANK_0, 20, 30, name=REDUCE)]) is None


def test_ranks_of_two_sessions_are_refused(tmp_path: Path) -> None:
    kernels = two_ranks([(10_000, 12_000, 4_000)])
    files = []
    for place, pid in enumerate((RANK_0, RANK_1)):
        start_utc_ns = 1_795_000_000_000_000_000 + place * 1_000
        gpus = {"TARGET_INFO_GPU": {"id": [0, 1], "uuid": ["a", "b"]}}
        own = [kernel for kernel in kernels if kernel.pid == pid]
        files.append(write(tmp_path / f"{place}.sqlite", own, tables=gpus, session_start_utc_ns=start_utc_ns))
    with pytest.raises(InputError, match="clocks"):
        collective_pairs(read_exports(files), [RANK_0, RANK_1], None)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(1, 5_000)), min_size=1, max_size=30),
    st.integers(0, 40),
)
def test_every_meeting_is_paired_once_and_time_is_conserved(parts: list[tuple[int, int, int]], off_ns: int) -> None:
    """Whatever the order of arrivals, and with the second clock a little off."""
    arrivals = [(20_000 * i + a, 20_000 * i + b, exchange + 50) for i, (a, b, exchange) in enumerate(parts)]
    first = np.array([(a, max(a, b) + x) for a, b, x in arrivals], np.int64).T
    second = np.array([(b, max(a, b) + x) for a, b, x in arrivals], np.int64).T + off_ns
    left, right = paired_calls(*first, *second)
    assert left.tolist() == right.tolist() == list(range(len(parts)))
    skew = second[0][right] - first[0][left]
    assert skew.tolist() == [b - a + off_ns for a, b, _ in arrivals]


@settings(max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=0, max_size=12), st.lists(st.integers(1, 40), min_size=0, max_size=12))
def test_pairs_overlap_and_nobody_is_taken_twice(one: list[int], other: list[int]) -> None:
    def spans(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
        edges = np.cumsum([0, *lengths]).astype(np.int64)
        return edges[:-1][::2], edges[1:][::2]

    a, b = spans(one), spans(other)
    left, right = paired_calls(*a, *b)
    assert len(set(left.tolist())) == len(left) == len(right) == len(set(right.tolist()))
    assert all(max(a[0][i], b[0][j]) < min(a[1][i], b[1][j]) for i, j in zip(left, right, strict=True))
