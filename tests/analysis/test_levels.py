"""A capture at every zoom: whatever is drawn, the bins add up to what is measured, and no kernel is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo_lib.analysis.trace import downsample, intervals, overlap
from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.window import TraceWindow, look
from colo_lib.data.capture import read_exports
from tests.exports import EMBED, GEN, Kernel, Planted, write

WINDOW = (100, 1_100)
spans = st.lists(st.tuples(st.integers(0, 1_300), st.integers(0, 400)), max_size=40)


def work_of(made: list[tuple[int, int]]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    start = np.array(sorted(start for start, _ in made), np.int64)
    end = start + np.array([length for _, length in made], np.int64)
    inside = (start < WINDOW[1]) & (end > WINDOW[0])
    return start[inside], intervals.union(*intervals.within(start[inside], end[inside], WINDOW))


def moments(union: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Every ns of the window, True where the union is: the naive implementation."""
    busy = np.zeros(WINDOW[1], np.bool_)
    for start, end in zip(*union, strict=True):
        busy[start:end] = True
    return busy[WINDOW[0] :]


@given(spans, spans, st.integers(1, 1_500))
def test_every_level_adds_up_to_the_union_the_overlap_and_the_kernels(
    gen: list[tuple[int, int]], embed: list[tuple[int, int]], bin_ns: int
) -> None:
    work = {"gen": work_of(gen), "embed": work_of(embed)}
    both = moments(work["gen"][1]) & moments(work["embed"][1])
    found = downsample.levels(work, WINDOW, bin_ns)
    assert len(found[-1]) == 1
    for level in found:
        edges = range(0, WINDOW[1] - WINDOW[0], level.bin_ns)
        for name, (starts, union) in work.items():
            assert int(level.busy_ns[name].sum()) == intervals.length(union)
            assert int(level.starts[name].sum()) == len(starts)
            naive = [int(moments(union)[edge : edge + level.bin_ns].sum()) for edge in edges]
            assert level.busy_ns[name].tolist() == naive
        assert level.overlap_ns.tolist() == [int(both[edge : edge + level.bin_ns].sum()) for edge in edges]
        assert level.width_ns(WINDOW[1] - WINDOW[0]).sum() == WINDOW[1] - WINDOW[0]
        assert (level.overlap_ns <= np.minimum(level.busy_ns["gen"], level.busy_ns["embed"])).all()


def test_a_kernel_counts_where_it_starts_and_is_busy_where_it_runs() -> None:
    running = (np.array([50, 300]), intervals.union(np.array([100, 300]), np.array([140, 520])))
    level = downsample.levels({"gen": running}, WINDOW, 100)[0]
    assert level.starts["gen"].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0], "what ran before is in the first bin"
    assert level.busy_ns["gen"].tolist() == [40, 0, 100, 100, 20, 0, 0, 0, 0, 0]
    assert not level.overlap_ns.any(), "one workload overlaps with nothing"


@given(st.integers(1, 10**13), st.integers(1, 10**6))
def test_bins_are_round_and_as_fine_as_allowed(window_ns: int, most: int) -> None:
    bin_ns = downsample.finest_bin_ns(window_ns, most)
    assert str(bin_ns).rstrip("0") in {"1", "2", "5"}
    assert -(-window_ns // bin_ns) <= most
    finer = bin_ns * 2 // 5 if str(bin_ns)[0] == "5" else bin_ns // 2
    assert finer == 0 or -(-window_ns // finer) > most


@pytest.mark.parametrize(("window", "bin_ns"), [((5, 5), 1), ((0, 9), 0)])
def test_nothing_to_divide_is_refused(window: tuple[int, int], bin_ns: int) -> None:
    with pytest.raises(ValueError, match="no length"):
        downsample.levels({}, window, bin_ns)


def view_of(file: Path, planted: Planted | list[Kernel]) -> TraceWindow:
    capture = read_exports([write(file, planted)])
    return look(capture, assign(capture, {"gen": str(GEN), "embed": str(EMBED)})[0])


kernels_of = st.lists(
    st.builds(
        lambda pid, start, length, blocks, stream: Kernel(pid, start, start + length, blocks, "x", 0, stream),
        st.sampled_from([GEN, EMBED]), st.integers(1, 900), st.integers(0, 60), st.sampled_from([0, 1, 132]),
        st.integers(7, 9),
    ),
    max_size=40,
).map(lambda made: [*made, Kernel(GEN, 100, 120, name="x"), Kernel(EMBED, 110, 160, name="x")])  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kernels_of, st.integers(0, 1_000), st.integers(0, 50))
def test_a_stretch_holds_every_kernel_that_touches_it_and_no_more_than_asked(
    tmp_path: Path, made: list[Kernel], centre_ns: int, most: int
) -> None:
    view = view_of(tmp_path / "e.sqlite", made)
    centre = view.window[0] + centre_ns % view.window_ns
    stretch = downsample.stretch_of(view, centre, most)
    if stretch is None:
        shortest = max(centre - 1, view.window[0]), min(centre + 1, view.window[1])
        assert sum(map(len, downsample.rows_of(view, shortest).values())) > most
        return
    rows = downsample.rows_of(view, stretch)
    assert sum(map(len, rows.values())) <= most
    if most >= sum(len(active.rows) for active in view.workloads.values()):
        assert stretch == view.window
    for name, own in rows.items():
        active, zero = view.workloads[name], view.window[0]
        pairs = zip(active.get("start_ns").tolist(), active.get("end_ns").tolist(), strict=True)
        there = [
            (start - zero, end - start)
            for start, end in pairs
            if start < stretch[1] and max(end, start + 1) > stretch[0]
        ]
        assert sorted(zip(own.start_ns.tolist(), own.duration_ns.tolist(), strict=True)) == sorted(there)


def test_time_switched_out_is_not_busy_and_is_told(tmp_path: Path) -> None:
    turns = {(GEN, 1): [(0, 100), (200, 300)], (EMBED, 2): [(100, 200)]}
    view = view_of(tmp_path / "e.sqlite", Planted([Kernel(GEN, 50, 250), Kernel(EMBED, 100, 180)], turns))
    assert view.basis == "residency"
    level = downsample.every_level(view, 50)[0]
    assert level.busy_ns["gen"].tolist() == [50, 0, 0, 50]
    assert level.overlap_ns.sum() == overlap.overlap_summary(view)["overlap_ns"] == 0
    rows = downsample.rows_of(view, view.window)["gen"]
    assert (rows.start_ns.tolist(), rows.duration_ns.tolist()) == ([0], [200]), "as recorded, since the window's start"
    assert [edges.tolist() for edges in rows.out_ns] == [[50], [150]]
