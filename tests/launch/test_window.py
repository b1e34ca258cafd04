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

from colo_lib.frames import token_work, write_frame
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
