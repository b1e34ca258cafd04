"""Tokens in a window, counted from graph replays: cut replays by their part, and nothing where they cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis.trace.token_time import replays, tokens_of
from colo_lib.trace import Kernels


def kernels(replayed: list[int], between: int = 2) -> Kernels:
    """Replays of so many nodes each, `between` kernels of no graph after each; correlation ids of neither repeat."""
    node, correlation = [], []
    for number, nodes in enumerate(replayed):
        node += [True] * nodes + [False] * between
        correlation += [1000 - number] * nodes + [2000 + number * between + k for k in range(between)]
    count = len(node)
    columns = {name: np.zeros(count, kind) for name, kind in Kernels.dtypes().items()}
    columns |= {"start_ns": np.arange(count) * 10, "end_ns": np.arange(count) * 10 + 5}
    columns |= {"node": np.array(node, np.bool_), "correlation": np.array(correlation, np.uint32)}
    return Kernels(**columns)


def counted(replayed: list[int]) -> float | None:
    found = kernels(replayed)
    return replays(found, np.arange(len(found)))


@given(st.integers(50, 500), st.integers(1, 20), st.floats(0.02, 1), st.floats(0.02, 1))
def test_whole_replays_count_one_and_cut_ones_their_part(nodes: int, whole: int, first: float, last: float) -> None:
    cut = [max(1, round(nodes * part)) for part in (first, last)]
    found = counted([cut[0], *[nodes] * whole, cut[1]])
    assert found == pytest.approx(whole + sum(cut) / nodes)


def test_a_lost_kernel_is_no_other_graph() -> None:
    assert counted([40, 483, 482, 483, 100]) == pytest.approx(3 + 140 / 483)


@pytest.mark.parametrize(
    ("replayed", "why"),
    [
        ([], "eager: no graph at all"),
        ([417, 417], "neither is surely whole"),
        ([9, 9, 3, 9, 9], "graphs of single layers"),
        ([417, 417, 300, 417], "graphs of several batch sizes"),
    ],
)
def test_what_cannot_be_told_is_not(replayed: list[int], why: str) -> None:
    assert counted(replayed) is None, why


def test_each_request_in_flight_gets_a_token_a_step_and_the_rate_is_the_check() -> None:
    assert tokens_of(5.0, 41.0, 8) == 40.0
    assert tokens_of(None, 41.0, 8) == 41.0
    assert tokens_of(65 * 5.0, 5.1, 1) == 5.1, "65 graphs a step are not 65 steps"
