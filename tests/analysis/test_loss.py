"""Where gen's loss went: the parts sum to the loss exactly, and nothing is told that the data do not tell."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis.loss import (
    CAUSES,
    PerToken,
    by_category,
    captures_sentence,
    category_rows,
    decompose_loss,
    loss_sentence,
    pairs,
    waterfall,
    with_captures,
)
from colo_lib.analysis.published import explanations, losses
from colo_lib.analysis.trace.token_time import TokenTime
from colo_lib.data.published import read_published

times = st.floats(0, 1e9, allow_nan=False)
clocks = st.one_of(st.none(), st.floats(200, 3000))


@st.composite
def sides(draw: st.DrawFn, clipped: bool = True) -> PerToken:
    busy, waiting, host = draw(times), draw(times), draw(times)
    total = (busy + waiting + host) * (1 + 1e-12)
    keep = draw(st.tuples(st.booleans(), st.booleans()))
    return PerToken(total, busy if keep[0] else None, waiting if keep[1] else None, draw(clocks), clipped)


@given(sides(), st.booleans().flatmap(sides))
def test_the_parts_sum_to_the_loss_exactly_and_name_every_cause_once(alone: PerToken, shared: PerToken) -> None:
    loss = decompose_loss(alone, shared)
    assert sum(loss.parts.values()) == loss.total_ns == Fraction(shared.total_ns) - Fraction(alone.total_ns)
    assert sorted(cause for causes in loss.parts for cause in causes) == sorted(CAUSES)
    frame = waterfall(loss)
    assert frame["start_us"].iloc[0] == pytest.approx(alone.total_ns / 1e3)
    assert frame["end_us"].iloc[-1] == pytest.approx(shared.total_ns / 1e3)


def test_a_planted_split_comes_out() -> None:
    # 100 us busy at 2000 MHz; shared at 1600 MHz the clocks add 25, contention 15, waiting 7, the host 3.
    alone = PerToken(130e3, 100e3, 10e3, 2000.0)
    shared = PerToken(180e3, 140e3, 17e3, 1600.0)
    parts = {causes[0]: float(value) / 1e3 for causes, value in decompose_loss(alone, shared).parts.items()}
    assert parts == pytest.approx({"clock": 25, "contention": 15, "waiting": 7, "host": 3})


def known(**changes: object) -> list[tuple[str, ...]]:
    alone = {"total_ns": 130e3, "busy_ns": 100e3, "waiting_ns": 10e3, "clock_mhz": 2000.0}
    shared = {"total_ns": 180e3, "busy_ns": 140e3, "waiting_ns": 17e3, "clock_mhz": 1600.0}
    clipped = bool(changes.pop("clipped", True))
    gone = {name: None for name in changes}
    return list(decompose_loss(PerToken(**(alone | gone)), PerToken(**(shared | gone), clipped=clipped)).parts)  # type: ignore[arg-type]


def test_what_cannot_be_told_apart_is_one_part() -> None:
    assert known() == [("clock",), ("contention",), ("waiting",), ("host",)]
    assert known(clock_mhz=None) == [("clock", "contention"), ("waiting",), ("host",)]
    assert known(waiting_ns=None) == [("clock",), ("contention",), ("waiting", "host")]
    assert known(busy_ns=None) == [("clock", "contention", "host"), ("waiting",)]
    assert known(busy_ns=None, waiting_ns=None, clock_mhz=None) == [CAUSES]
    assert known(clipped=False) == [("clock",), ("contention", "waiting"), ("host",)], "switched-out time is in both"
    assert known(clipped=False, waiting_ns=None) == [("clock",), ("contention", "waiting", "host")]


def test_equal_clocks_explain_nothing_even_where_busy_time_is_unknown() -> None:
    loss = decompose_loss(PerToken(5123e3, clock_mhz=1980.0), PerToken(6978e3, clock_mhz=1980.0))
    assert loss.parts[("clock",)] == 0
    assert set(loss.parts) == {("clock",), ("contention", "waiting", "host")}


def test_clocks_that_fell_explain_no_more_than_their_share_of_all_the_time() -> None:
    loss = decompose_loss(PerToken(100e3, clock_mhz=2000.0), PerToken(250e3, clock_mhz=1600.0))
    assert loss.clock_at_most_ns == pytest.approx(25e3)
    assert "at most 25 us of it (17%)" in loss_sentence(loss, "step2")


def test_no_loss_is_said_to_be_none() -> None:
    assert "lost nothing" in loss_sentence(decompose_loss(PerToken(10.0), PerToken(9.0)), "step2")


@pytest.mark.parametrize("wrong", [{"total_ns": -1.0}, {"total_ns": 10.0, "busy_ns": 11.0}, {"total_ns": float("nan")}])
def test_times_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ns"):
        PerToken(**wrong)


@given(
    st.dictionaries(st.sampled_from("abcd"), times, min_size=1),
    st.dictionaries(st.sampled_from("abcd"), times, min_size=1),
    times, times, st.one_of(st.none(), st.tuples(st.floats(200, 3000), st.floats(200, 3000))),
)  # fmt: skip
def test_categories_sum_to_the_change_of_the_union(alone: dict, shared: dict, before: float, after: float, mhz) -> None:
    frame = by_category(alone, shared, (before, after), mhz)
    columns = ["clock_us", "contention_us"] if mhz else ["contention_us"]
    assert frame[columns].sum().sum() == pytest.approx((after - before) / 1e3, rel=1e-6, abs=1e-3)
    assert frame["alone_us"].sum() == pytest.approx(before / 1e3, rel=1e-6, abs=1e-3)


def test_the_published_runs_explain_less_than_they_say() -> None:
    figures = read_published().figures
    found = losses(figures)
    assert all(sum(loss.parts.values()) == loss.total_ns for loss in found.values())
    run2 = found["run2", "step2"]
    assert float(run2.total_ns) / 1e6 == pytest.approx(24.2, abs=0.01)
    assert float(run2.parts[("waiting", "host")] / run2.total_ns) == pytest.approx(0.944, abs=0.001)
    assert float(run2.parts[("clock",)] / run2.total_ns) == pytest.approx(0.069, abs=0.001)
    assert found["run2", "step3"].merged == [("contention", "waiting", "host")]
    assert found["run3", "step2"].parts[("clock",)] == 0
    told = explanations(figures).set_index(["run", "where"])["figures_say"]
    assert "94%" in told["run2", "finding 4"]
    assert "1.83 times" in told["run3", "finding 2"]
    assert "explain none of it" in told["run3", "conclusion"]


def captured(window_ns: float, **changes: Any) -> TokenTime:
    categories = {"GEMM": 40e3, "MoE": 20e3}
    return replace(TokenTime(window_ns, 60e3, 0.0, 10e3, 30e3, 0.0, categories, pieces=1.0, clipped=True), **changes)


def test_a_capture_of_another_load_is_not_used_and_told() -> None:
    found = {"step1": PerToken(100e3), "step2": PerToken(130e3)}
    times = {"step1": captured(105e3), "step2": captured(260e3)}
    told = with_captures(found, times, 0.8)
    assert told["step1"].busy_ns == 60e3
    assert told["step2"].busy_ns is None, "gen ran at half its rate while it was captured"
    assert with_captures(found, {"step2": captured(60e3)}, 0.8)["step2"].busy_ns is None, "or at twice its rate"
    words = captures_sentence(found, times, 0.8)
    assert "LLM alone (0.95)" in words
    assert "both under MPS (0.50)" in words.split("Not used")[1]
    assert "one part" in captures_sentence(found, {}, 0.8)


def test_gaps_that_the_profiler_lengthened_are_not_split() -> None:
    told = with_captures({"step1": PerToken(65e3)}, {"step1": captured(75e3)}, 0.8)["step1"]
    assert (told.busy_ns, told.waiting_ns) == (60e3, None), "60 busy and 10 waiting do not fit into 65"


def test_categories_need_both_captures() -> None:
    found = {"step1": PerToken(100e3), "step2": PerToken(130e3)}
    times = {"step1": captured(100e3), "step2": captured(130e3, busy_ns=90e3, busy_by_category_ns={"GEMM": 90e3})}
    rows = category_rows(pairs(with_captures(found, times, 0.8)), times).set_index("category")
    assert rows.loc["GEMM", "contention_us"] == pytest.approx(50)
    assert rows.loc["MoE", "contention_us"] == pytest.approx(-20)
    assert rows["contention_us"].sum() == pytest.approx(30)
    assert category_rows(pairs(with_captures(found, {"step1": times["step1"]}, 0.8)), times | {"step2": None}).empty
