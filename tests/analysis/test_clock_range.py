"""The overlap of two sessions over all that their clocks leave open, against going through every shift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace import intervals, overlap, summary
from colo_lib.analysis.trace.overlap import overlap_range, verdict_overlap
from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.window import look
from colo_lib.analysis.verdict import judge
from colo_lib.data.capture import read_exports
from colo_lib.params import Params
from colo_lib.report import trace_tables, trace_text
from tests.exports import EMBED, GEN, Kernel, write
from tests.run_folders import Plan, planted_measures

START = 1_795_435_813_000_000_123
spans = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=12)


def union(given_spans: list[tuple[int, int]]) -> Any:
    start, length = (np.array([span[side] for span in given_spans], np.int64) for side in (0, 1))
    return intervals.union(start, start + length)


@given(spans, spans, st.integers(1, 120), st.booleans(), st.sampled_from([1, 7, 10**6]))
def test_the_range_is_that_of_every_shift(left: Any, right: Any, error_ns: int, listed: bool, chunk: int) -> None:
    gen, embed = union(left), union(right)
    every = [intervals.overlap((gen[0] + s, gen[1] + s), embed) for s in range(-error_ns, error_ns + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "CHUNK_PAIRS", chunk)
        if listed:
            patch.setattr(overlap, "MOST_PLACES", 0)
        found = overlap_range(gen, embed, error_ns)
    assert found == overlap.Range(min(every), max(every))


@given(spans, spans, st.integers(1, 120))
def test_too_much_to_go_through_is_told_and_nothing_lies_outside(left: Any, right: Any, error_ns: int) -> None:
    gen, embed = union(left), union(right)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "MOST_PAIRS", -1)
        found = overlap_range(gen, embed, error_ns)
    every = [intervals.overlap((gen[0] + s, gen[1] + s), embed) for s in range(-error_ns, error_ns + 1)]
    assert found.low_ns <= min(every)
    assert max(every) <= found.high_ns
    assert not found.exact or not (len(gen[0]) and len(embed[0]))


def comb(pid: int, count: int = 2_000) -> list[Kernel]:
    return [Kernel(pid, 50_000 * k, 50_000 * k + 25_000) for k in range(count)]


def sessions(tmp_path: Path, gen: list[Kernel], embed: list[Kernel]) -> list[Path]:
    return [
        write(tmp_path / "gen.sqlite", gen, session_start_utc_ns=START),
        write(tmp_path / "embed.sqlite", embed, session_start_utc_ns=START + 1),
    ]


def seen(files: list[Path], window_s: Any = None) -> Any:
    capture = read_exports(files)
    return look(capture, assign(capture, {"gen": str(GEN), "embed": str(EMBED)})[0], window_s, mechanism="mps")


def test_a_comb_of_kernels_may_overlap_wholly_or_not_at_all(tmp_path: Path) -> None:
    """25 us every 50 us: shifts by 50 and 100 us change nothing, one by 25 us everything."""
    view = seen(sessions(tmp_path, comb(GEN), comb(EMBED)))
    found = summary.summary_of(view)
    alignment = found["alignment"]
    assert found["overlap_of_gen"] > 0.99
    assert alignment["overlap_ns_range"] == [0, 2_000 * 25_000]
    assert alignment["overlap_of_gen_range"] == alignment["overlap_of_embed_range"] == [0.0, 1.0]
    assert alignment["range_is_exact"]
    text = trace_text.text(found | {"workloads_guessed": False})
    assert "0.00 ms to 50.00 ms, 0.0% to 100.0% of the LLM's, 0.0% to 100.0% of the embedder's" in text
    assert trace_tables.overlap(found)["Value"].tolist()[3:] == [
        "0.00 ms to 50.00 ms", "0.0% to 100.0% of the LLM's", "0.0% to 100.0% of the embedder's",
    ]  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_a_verdict_is_not_settled_by_an_overlap_that_the_clocks_leave_open(tmp_path: Path) -> None:
    told = verdict_overlap(seen(sessions(tmp_path, comb(GEN), comb(EMBED))))
    assert told is not None
    clause = judge(planted_measures(Plan()), Thresholds.of(Params()), stand_in=False, overlap=told).clauses.iloc[-1]
    assert clause["status"] == "inconclusive"
    assert "clocks" in clause["missing"]


def test_a_window_counts_what_moves_in_over_its_edge(tmp_path: Path) -> None:
    """gen fills the window; embed is idle in it and busy just before it: a clock 100 us off would tell otherwise."""
    files = sessions(tmp_path, [Kernel(GEN, 0, 3_000_000)], [Kernel(EMBED, 500_000, 1_000_000 - 1), *comb(EMBED, 0),
                                                             Kernel(EMBED, 1_900_000 - 1, 1_900_010)])  # fmt: skip
    found = summary.summary_of(seen(files, (0.001, 0.002)))
    assert found["alignment"]["overlap_ns_range"] == [11, 100_000]
    assert found["alignment"]["overlap_of_gen_range"] == [11 / 1e6, 0.1]
    assert found["alignment"]["overlap_of_embed_range"] == [1.0, 1.0], "what embed did in the window meets gen anyway"


def test_no_clock_lies_between_two_processes_of_one_session(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "both.sqlite", [*comb(GEN, 9), *comb(EMBED, 9)], session_start_utc_ns=START),
        write(tmp_path / "other.sqlite", [Kernel(9_000, 5, 10)], session_start_utc_ns=START + 1),
    ]
    assert summary.summary_of(seen(files))["alignment"]["overlap_ns_range"] is None


def test_a_workload_of_both_sessions_has_the_widest_range(tmp_path: Path) -> None:
    files = sessions(tmp_path, [*comb(GEN, 9), *comb(EMBED, 9)], comb(EMBED, 3))
    capture = read_exports(files)
    places = {process.label: place for place, process in enumerate(capture.processes)}
    view = look(capture, {"gen": [places[str(GEN)]], "embed": [places[str(EMBED)], places[f"{EMBED}@2"]]})
    alignment = summary.summary_of(view)["alignment"]
    assert (alignment["overlap_of_gen_range"], alignment["range_is_exact"]) == ([0.0, 1.0], False)


def test_millions_of_kernels_are_gone_through(tmp_path: Path) -> None:
    count = 1_000_000
    start = np.arange(count, dtype=np.int64) * 10_000
    gen, embed = (start, start + 5_000), (start + 2_000, start + 7_000)
    found = overlap_range(gen, embed, 100_000)
    assert found.exact
    assert found.low_ns <= 2 * 100_000
    assert found.high_ns >= count * 5_000 - 10**6
