"""What a window says: hand-made frames with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.frames import age_spread, token_work, write_frame
from colo_lib.launch.client_cpu import busiest
from colo_lib.launch.gen_load import ClientUse
from colo_lib.launch.specs import specs_of
from colo_lib.launch.trial import Window, measure_window
from colo_lib.launch.vllm_server import ServerCounters
from colo_lib.params import check
from colo_lib.placement import placement_of
from colo_lib.records import WindowFacts

SECOND = 1_000_000_000


def window(**changes: Any) -> Window:
    counters = ServerCounters(t_ns=0.0, tokens=0.0, gap_sum_s=0.0, gap_count=0.0, cached_tokens=0.0)
    after = ServerCounters(t_ns=10.0 * SECOND, tokens=100.0, gap_sum_s=9.9, gap_count=99.0, cached_tokens=0.0)
    plain = {"start_ns": 0, "end_ns": 10 * SECOND, "before": counters, "after": after, "stranger_cores": 0.0}
    return Window(**(plain | changes))


def record(tmp_path: Path, arrivals: Any, win: Window, **params: Any) -> WindowFacts:
    stamps = np.asarray(arrivals, dtype=np.int64)
    zeros = np.zeros(len(stamps), dtype=np.int32)
    write_frame(tmp_path, "gen", {"request_id": zeros, "sequence_number": zeros, "arrival_ns": stamps})
    write_frame(tmp_path, "requests", {})
    checked = check(params, "test")
    return measure_window(specs_of(checked, placement_of("step1", checked)).trial, tmp_path, win)


EVEN = np.arange(-1, 102) * SECOND // 10


def test_an_even_stream_counts(tmp_path: Path) -> None:
    told = record(tmp_path, EVEN, window())
    assert told.status == "done"
    assert told.gen_tokens == 100
    assert told.gen_tokens_per_s == pytest.approx(10.0)
    assert told.gen_server_tokens_per_s == pytest.approx(10.0)
    assert told.gen_server_mean_gap_ms == pytest.approx(100.0)
    assert told.clock_disagreement == 0.0
    assert (told.drift_fraction or {})["gen"] == 0.0


def test_the_windows_end_is_outside(tmp_path: Path) -> None:
    told = record(tmp_path, [*EVEN, 10 * SECOND, -1], window())
    assert told.gen_tokens == 100


def test_tokens_the_server_did_not_make_are_doubted(tmp_path: Path) -> None:
    told = record(tmp_path, np.arange(1000) * SECOND // 100, window())
    assert told.status == "invalid"
    assert "vLLM's own counter" in str(told.reason)


def test_a_rate_that_still_drifts_is_doubted(tmp_path: Path) -> None:
    late = np.concatenate([np.arange(20) * SECOND // 4, 5 * SECOND + np.arange(80) * SECOND // 16])
    told = record(tmp_path, late, window(), max_drift_fraction=0.2)
    assert (told.drift_fraction or {})["gen"] == pytest.approx(3.0, abs=0.3)
    assert told.status == "invalid"
    assert "drifted" in str(told.reason)


def test_a_stranger_on_the_cores_is_told(tmp_path: Path) -> None:
    told = record(tmp_path, EVEN, window(stranger_cores=0.9))
    assert told.status == "invalid"
    assert "other processes used 0.90 cores" in str(told.reason)


def test_cached_prompts_void_a_trial(tmp_path: Path) -> None:
    win = window()
    assert win.after is not None
    told = record(tmp_path, EVEN, window(after=replace(win.after, cached_tokens=64.0)))
    assert told.status == "invalid"
    assert "prefix cache" in str(told.reason)


def after(**changes: Any) -> ServerCounters:
    last = window().after
    assert last is not None
    return replace(last, **changes)


def test_preempted_requests_void_a_trial(tmp_path: Path) -> None:
    told = record(tmp_path, EVEN, window(after=after(preemptions=3.0)))
    assert told.status == "invalid"
    assert "vLLM preempted requests 3 times, its KV cache was full: raise gen_kv_cache_gib" in str(told.reason)
    assert told.gen_load is not None
    assert told.gen_load.preemptions == 3


def test_requests_that_wait_void_a_closed_loop(tmp_path: Path) -> None:
    # 80 s of waiting in 10 s: eight of sixteen requests are in the queue on average.
    shape = {"gen_concurrency": 16, "gen_output_tokens": 200, "gen_max_model_len": 1024, "max_clock_disagreement": 9.0}
    told = record(tmp_path, EVEN, window(after=after(queue_s=80.0)), **shape)
    assert told.status == "invalid"
    assert "8.0 of 16 requests in flight waited in vLLM's queue" in str(told.reason)
    # Few of them ended: what both readings saw waiting, waited.
    before = replace(after(waiting=5.0), t_ns=0.0, tokens=0.0, gap_sum_s=0.0, gap_count=0.0)
    told = record(tmp_path, EVEN, window(before=before, after=after(waiting=7.0)), **shape)
    assert "5.0 of 16" in str(told.reason)
    # Each waits for the engine step under way: that is no queue.
    assert record(tmp_path, EVEN, window(after=after(queue_s=8.0)), **shape).status == "done"


def test_what_is_worth_knowing_is_a_mark_and_no_doubt(tmp_path: Path) -> None:
    small = after(kv_tokens=640.0, kv_block=16.0)
    shape = {"gen_concurrency": 16, "gen_prompt_tokens": 20, "gen_output_tokens": 21, "max_clock_disagreement": 9.0}
    told = record(tmp_path, EVEN, window(after=small, client=ClientUse(2, 0.91, 80.0)), **shape)
    assert told.status == "done"
    busy, late, tight = told.marks or []
    assert "used 0.91 of its core" in busy
    assert "gen_client_processes above 2" in busy
    assert "80 ms after it was due" in late
    assert "holds 640 tokens, 16 whole requests take 768" in tight  # 41 tokens take three blocks of 16
    assert not record(tmp_path, EVEN, window(client=ClientUse(2, 0.79))).marks


def test_the_busiest_process_is_found_within_the_window() -> None:
    second = 1_000_000_000
    # Two processes, asked each half second; the second one is busy from 4 s to 6 s, and before the window wholly.
    times = range(0, 20)
    busy = [second // 2 if at < 2 or 8 <= at < 12 else second // 10 for at in times]
    asked = [[(at * second // 2, at * 10_000_000), (at * second // 2, sum(busy[:at]))] for at in times]
    assert busiest(asked, 2 * second, 9 * second) == pytest.approx(1.0)
    assert busiest(asked, 7 * second, 9 * second) == pytest.approx(0.2)
    assert busiest(asked[:1], 0, second) is None
    assert busiest([], 0, second) is None


def test_halves_may_differ_by_chance_where_requests_are_due_at_random(tmp_path: Path) -> None:
    late = np.concatenate([np.arange(40) * SECOND // 8, 5 * SECOND + np.arange(60) * SECOND // 12])
    rows = {"request_id": range(16), "submitted_ns": [at * SECOND // 2 for at in range(16)]}
    zeros = np.zeros(len(late), dtype=np.int32)
    write_frame(tmp_path, "gen", {"request_id": zeros, "sequence_number": zeros, "arrival_ns": late})
    plain = {"prompt_tokens": [1] * 16, "output_tokens": [1] * 16}
    write_frame(tmp_path, "requests", {name: list(values) for name, values in (rows | plain).items()})
    for arrivals, status in (("constant", "invalid"), ("poisson", "done")):
        given = {"gen_arrivals": arrivals, "gen_rate": 2.0, "max_drift_fraction": 0.2}
        checked = check(given, "test")
        told = measure_window(specs_of(checked, placement_of("step1", checked)).trial, tmp_path, window())
        assert told.status == status, told.reason
        assert told.demand is not None
        assert told.demand["gen"].due == 16


def ages(lengths: list[int], first_ns: list[int], gap_ns: int) -> tuple[pa.Table, pa.Table]:
    """Requests of so many tokens, one each `gap_ns` from its first on."""
    rows = [
        (number, at, first + at * gap_ns)
        for number, (length, first) in enumerate(zip(lengths, first_ns, strict=True))
        for at in range(length)
    ]
    numbers, _, arrivals = (list(column) for column in zip(*rows, strict=True))
    done = [first + (length - 1) * gap_ns for length, first in zip(lengths, first_ns, strict=True)]
    requests = {"request_id": list(range(len(lengths))), "output_tokens": lengths, "done_ns": done}
    return pa.table({"request_id": numbers, "arrival_ns": arrivals}), pa.table(requests)


def test_ages_in_lockstep_and_spread_evenly_are_told_apart() -> None:
    lockstep = ages([100] * 64, [32 * (number // 32) * 100 for number in range(64)], 100)
    assert age_spread(*lockstep, 0, 3_000) == pytest.approx(0.0)
    spread = ages([100] * 64, [100 * 100 * number // 64 for number in range(64)], 100)
    assert age_spread(*spread, 6_400, 10_000) == pytest.approx(1.0, abs=0.35)
    one = ages([100], [0], 100)
    assert age_spread(*one, 0, 3_000) is None


def test_silence_is_no_rate(tmp_path: Path) -> None:
    told = record(tmp_path, [], window(before=None, after=None))
    assert told.status == "invalid"
    assert "only 0 tokens" in str(told.reason)


@given(st.lists(st.integers(-SECOND, 11 * SECOND), max_size=200), st.integers(1, 9))
def test_splitting_a_window_loses_and_doubles_nothing(stamps: list[int], at_s: int) -> None:
    array, zeros = np.array(sorted(stamps), dtype=np.int64), np.zeros(len(stamps), dtype=np.int64)
    work = token_work(pa.table({"request_id": zeros, "arrival_ns": array}))
    whole, first, second = (
        work.inside(start * SECOND, end * SECOND) for start, end in ((0, 10), (0, at_s), (at_s, 10))
    )
    assert whole == pytest.approx(first + second)
