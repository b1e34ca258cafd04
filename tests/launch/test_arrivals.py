"""The times at which requests are due: as many as were asked for, as irregular as they should be, the same by seed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.launch.arrivals import due_times

RATES = st.floats(0.01, 1e4)
SEEDS = st.text(max_size=20)


def times(kind: str, rate: float, seed: str, count: int) -> np.ndarray:
    return np.array(list(itertools.islice(due_times(kind, rate, seed), count)))


@settings(max_examples=40, deadline=None)
@given(rate=RATES, seed=SEEDS)
def test_poisson_has_the_mean_and_the_variance_of_its_rate(rate: float, seed: str) -> None:
    count, pauses = 4000, np.diff(times("poisson", rate, seed, 4001)) * rate
    # Exponential pauses: mean 1, standard deviation 1; of 4,000 the mean is off by 0.016 and the variance by 0.045.
    assert pauses.mean() == pytest.approx(1.0, abs=6 / math.sqrt(count))
    assert pauses.var() == pytest.approx(1.0, abs=6 * math.sqrt(8 / count))
    # Counts in equal spans vary as much as they are, which no even stream's do.
    spans = np.bincount((np.cumsum(pauses) // 20).astype(int))[:-1]
    assert spans.mean() == pytest.approx(20, rel=0.15)
    assert spans.var() / spans.mean() == pytest.approx(1.0, abs=6 * math.sqrt(2 / len(spans)))


@given(rate=RATES, seed=SEEDS)
def test_constant_is_even_and_begins_anywhere_in_its_first_pause(rate: float, seed: str) -> None:
    due = times("constant", rate, seed, 200)
    assert np.diff(due) * rate == pytest.approx(1.0)
    assert 0 <= due[0] * rate < 1


@given(kind=st.sampled_from(["poisson", "constant"]), rate=RATES, seed=SEEDS, other=SEEDS)
def test_the_same_seed_gives_the_same_times_and_another_gives_others(
    kind: str, rate: float, seed: str, other: str
) -> None:
    mine = times(kind, rate, seed, 50)
    assert mine.tolist() == times(kind, rate, seed, 50).tolist()
    assert (mine.tolist() == times(kind, rate, other, 50).tolist()) == (seed == other)
    assert (np.diff(mine) >= 0).all()


@pytest.mark.parametrize(("kind", "rate"), [("closed", 1.0), ("poisson", 0.0), ("constant", -1.0)])
def test_without_a_rate_there_are_no_times(kind: str, rate: float) -> None:
    with pytest.raises(ValueError, match="no times"):
        next(due_times(kind, rate, ""))
