"""Known answers: planted exports, read back as a user's would be, against a second and naive implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.summary import summary_of
from colo_lib.analysis.trace.window import look
from colo_lib.data.capture import read_exports
from colo_lib.errors import InputError
from tests.exports import EMBED, GEN, SMS, Kernel, Planted, naive, write

ASKED = {"gen": str(GEN), "embed": str(EMBED)}


def answers(*files: Path, **options: Any) -> dict[str, Any]:
    capture = read_exports(list(files))
    return summary_of(look(capture, assign(capture, ASKED)[0], **options))


def check(found: dict[str, Any], truth: Any) -> None:
    assert found["window_ns"] == truth.window_ns
    assert found["busy_ns"] == truth.busy_ns
    assert found["overlap_ns"] == truth.overlap_ns
    assert found["workloads"]["gen"]["busy_ns"] == truth.gen_ns
    assert found["workloads"]["embed"]["busy_ns"] == truth.embed_ns
    assert (
        found["workloads"]["gen"]["kernel_time_ns"] + found["workloads"]["gen"]["graph_time_ns"]
        == (truth.kernel_time_ns[GEN])
    )
    assert found["gaps"]["count"] == len(truth.gaps_ns)
    assert found["gaps"]["total_ns"] == sum(truth.gaps_ns) == truth.window_ns - truth.busy_ns
    if truth.gaps_ns:
        assert found["gaps"]["mean_us"] == pytest.approx(np.mean(truth.gaps_ns) / 1e3)
        assert found["gaps"]["p99_us"] == pytest.approx(np.percentile(truth.gaps_ns, 99) / 1e3)


def test_a_capture_worked_out_by_hand(tmp_path: Path) -> None:
    kernels = [
        Kernel(GEN, 0, 10_000, 66, "attn"), Kernel(GEN, 30_000, 40_000, 132, "gemm"),
        Kernel(GEN, 35_000, 45_000, 1, "gemm", stream=8), Kernel(EMBED, 5_000, 20_000, 1320, "gemm"),
        Kernel(EMBED, 32_000, 60_000, 1320, "gemm"),
    ]  # fmt: skip
    found = answers(write(tmp_path / "e.sqlite", kernels))
    gen = found["workloads"]["gen"]
    assert found["window_ns"] == 60_000
    assert found["busy_ns"] == 50_000, "0-20 and 30-60 us"
    assert found["idle_fraction"] == pytest.approx(1 / 6)
    assert found["gaps"]["over_10us_count"] == 0, "the one gap is just 10 us"
    assert found["overlap_ns"] == 5_000 + 13_000
    assert gen["busy_ns"] == 25_000
    assert gen["kernel_time_ns"] == 30_000, "two streams at once: the sum is more than the union"
    assert found["overlap_of_gen"] == pytest.approx(18 / 25)
    assert found["overlap_of_embed"] == pytest.approx(18 / 43)
    assert gen["sm_occupancy_by_count"] == pytest.approx((0.5 + 1 + 1 / SMS) / 3)
    assert gen["sm_occupancy_by_time"] == gen["sm_occupancy_by_count"], "all three take 10 us"
    assert gen["under_half_device"] == {"by_count": pytest.approx(1 / 3), "by_time": pytest.approx(1 / 3)}
    assert gen["one_block_fraction"] == gen["full_device_fraction"] == pytest.approx(1 / 3)
    assert gen["mean_blocks_per_kernel"] == pytest.approx(199 / 3)
    assert [(row["category"], row["kernel_count"]) for row in gen["categories"]] == [("GEMM", 2), ("attention", 1)]
    assert gen["top_kernels"][0] == {
        "name": "gemm", "kernel_count": 2, "kernel_time_ns": 20_000, "fraction": pytest.approx(2 / 3), "mean_us": 10.0,
        "mean_blocks": 66.5,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


times = st.integers(1, 400)  # a graph launch at 0 with no length is one without a time
kernels_of = st.lists(
    st.builds(
        lambda pid, start, length, blocks, name, stream: Kernel(pid, start, start + length, blocks, name, 0, stream),
        st.sampled_from([GEN, EMBED]), times, st.integers(0, 60), st.sampled_from([0, 1, 65, 66, 132, 5000]),
        st.sampled_from(["gemm", "attn", "x"]), st.integers(7, 9),
    ),
    min_size=1, max_size=25,
).map(lambda made: [*made, Kernel(GEN, 100, 120), Kernel(EMBED, 110, 160)])  # fmt: skip
spans = st.lists(st.tuples(times, st.integers(1, 80)), max_size=8)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(kernels_of, st.one_of(st.none(), st.tuples(st.integers(0, 300), st.integers(60, 300))))
def test_any_capture_agrees_with_the_naive_implementation(tmp_path: Path, made: list[Kernel], asked: Any) -> None:
    window = None if asked is None else (min(asked[0], 119), max(asked[0], 119) + asked[1])
    seconds = None if window is None else (window[0] / 1e9, window[1] / 1e9)
    found = answers(write(tmp_path / "e.sqlite", made), window_s=seconds)
    check_present(found, naive(made, window))


def check_present(found: dict[str, Any], truth: Any) -> None:
    if len(found["workloads"]) == 2:
        check(found, truth)
    for workload in found["workloads"].values():
        assert workload["busy_ns"] <= workload["kernel_time_ns"] + workload["graph_time_ns"], "union <= sum"
        assert workload["busy_ns"] <= found["busy_ns"] <= found["window_ns"]
    assert found["busy_ns"] + found["gaps"]["total_ns"] == found["window_ns"]
    assert 0 <= found["idle_fraction"] <= 1


@quick
@given(kernels_of, st.integers(1, 10**12), st.integers(0, 2))
def test_shifting_or_splitting_an_export_changes_nothing(
    tmp_path: Path, made: list[Kernel], shift: int, parts: int
) -> None:
    whole = answers(write(tmp_path / "whole.sqlite", made))
    moved = [Kernel(k.pid, k.start + shift, k.end + shift, k.blocks, k.name, k.device, k.stream) for k in made]
    assert _same(answers(write(tmp_path / "moved.sqlite", moved))) == _same(whole)
    if parts == 0:  # one file a process
        split = [[kernel for kernel in made if kernel.pid == pid] for pid in (GEN, EMBED)]
        files = [write(tmp_path / f"part-{place}.sqlite", part) for place, part in enumerate(split)]
    else:  # one session cut in two
        files = [write(tmp_path / f"part-{place}.sqlite", made[place::2]) for place in (0, 1)]
    assert _same(answers(*files)) == _same(whole)


def _same(found: dict[str, Any]) -> dict[str, Any]:
    return _rounded({key: value for key, value in found.items() if key not in ("window_s", "alignment", "processes")})


def _rounded(value: Any) -> Any:
    """Means of the same numbers in another order differ in their last digit."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


@quick
@given(kernels_of, st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30))
def test_time_slices_clip_to_residency(tmp_path: Path, made: list[Kernel], turns: list[tuple[int, bool]]) -> None:
    """Turns never overlap, and work starts only in its own turn: then no two kernels ran at once."""
    residency: dict[tuple[int, int], list[tuple[int, int]]] = {(GEN, 1): [(0, 10)], (EMBED, 2): [(10, 20)]}
    now = 20
    for length, of_gen in turns:
        residency[(GEN, 1) if of_gen else (EMBED, 2)].append((now, now + length))
        now += length
    kept = []
    for kernel in made:
        own = residency[(kernel.pid, 1 if kernel.pid == GEN else 2)]
        start = own[kernel.start % len(own)][0]
        kept.append(Kernel(kernel.pid, start, start + kernel.end - kernel.start + 1, kernel.blocks, kernel.name))
    planted = Planted(kept, residency)
    found = answers(write(tmp_path / "e.sqlite", planted))
    assert found["basis"] == "residency"
    assert not found["overlap_is_upper_bound"]
    assert found["overlap_ns"] == 0
    assert found["workloads"]["gen"]["busy_ns"] <= found["workloads"]["gen"]["busy_ns_by_kernel_intervals"]
    check(found, naive(planted))


def test_without_switches_time_slices_are_called_an_upper_bound(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100), Kernel(EMBED, 50, 150)]
    file = write(tmp_path / "e.sqlite", kernels)
    assert answers(file)["overlap_is_upper_bound"]
    assert any("upper bound" in note for note in answers(file)["notes"])
    assert not answers(file, mechanism="mps")["overlap_is_upper_bound"]
    assert answers(file, mechanism="time-sliced")["overlap_is_upper_bound"]
    switched = Planted(kernels, {(GEN, 1): [(0, 50)], (EMBED, 2): [(50, 150)]})
    found = answers(write(tmp_path / "switched.sqlite", switched))
    assert (found["overlap_ns"], found["busy_ns"]) == (0, 150)


def test_contexts_are_recognised_where_the_driver_sees_other_pids(tmp_path: Path) -> None:
    """In a container kernels carry the container's pids and switches the host's; the kernels' starts tell."""
    kernels = [Kernel(GEN, 10 * k, 10 * k + 15) for k in range(0, 20, 2)]
    kernels += [Kernel(EMBED, 10 * k, 10 * k + 15) for k in range(1, 20, 2)]
    turns = {(40_001, 3): [(10 * k, 10 * k + 10) for k in range(0, 20, 2)],
             (40_002, 4): [(10 * k, 10 * k + 10) for k in range(1, 20, 2)]}  # fmt: skip
    found = answers(write(tmp_path / "e.sqlite", Planted(kernels, turns)))
    assert found["basis"] == "residency"
    assert found["overlap_ns"] == 0
    assert found["workloads"]["gen"]["busy_ns"] == 100


def test_under_mps_both_are_resident_in_the_servers_context(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100), Kernel(EMBED, 50, 150)]
    found = answers(write(tmp_path / "e.sqlite", Planted(kernels, {(9_000, 1): [(0, 120), (130, 200)]})))
    assert found["basis"] == "residency"
    assert found["overlap_ns"] == 50
    assert found["busy_ns"] == 140


def test_switches_that_hold_neither_workload_are_not_used(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100), Kernel(EMBED, 50, 150)]
    found = answers(write(tmp_path / "e.sqlite", Planted(kernels, {(9_000, 1): [(500, 600)]})))
    assert found["basis"] == "kernel intervals"
    assert found["overlap_ns"] == 50
    assert any("not used" in note for note in found["notes"])


def test_graph_launches_are_busy_and_overlap_and_have_no_shape(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100, 0), Kernel(GEN, 120, 130, 66, "gemm"), Kernel(EMBED, 50, 150)]
    found = answers(write(tmp_path / "e.sqlite", kernels))
    gen = found["workloads"]["gen"]
    assert found["granularity"] == "graph"
    assert (gen["kernel_count"], gen["graph_launch_count"]) == (1, 1)
    assert (gen["kernel_time_ns"], gen["graph_time_ns"], gen["busy_ns"]) == (10, 100, 110)
    assert found["overlap_ns"] == 60
    assert gen["sm_occupancy_by_count"] == 0.5
    assert [row["kernel_count"] for row in gen["categories"]] == [1]
    node = [Kernel(GEN, 0, 100, 66, node=True), Kernel(EMBED, 50, 150)]
    assert answers(write(tmp_path / "node.sqlite", node))["granularity"] == "node"


def test_devices_do_not_mix(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 100, device=0), Kernel(GEN, 0, 50, device=1), Kernel(EMBED, 0, 100, device=1)]
    gpus = {"id": [0, 1], "busLocation": ["0000:01:00.0", "0000:02:00.0"]}
    file = write(tmp_path / "e.sqlite", kernels, tables={"TARGET_INFO_GPU": gpus})
    first, second = answers(file, device=0), answers(file, device=1)
    assert (first["overlap_ns"], first["busy_ns"]) == (None, 100), "embed never ran on device 0"
    assert (second["overlap_ns"], second["busy_ns"]) == (50, 100)
    with pytest.raises(InputError, match="no work on device 7; there is some on: 0, 1"):
        answers(file, device=7)


def test_two_processes_that_both_call_their_gpu_zero_are_on_two_gpus(tmp_path: Path) -> None:
    gpus = {"id": [0, 1], "busLocation": ["0000:01:00.0", "0000:02:00.0"]}
    cuda = {"gpuId": [0, 1], "cudaId": [0, 0], "pid": [GEN, EMBED]}
    kernels = [Kernel(GEN, 0, 100), Kernel(EMBED, 0, 100)]
    tables = {"TARGET_INFO_GPU": gpus, "TARGET_INFO_CUDA_DEVICE": cuda}
    found = answers(write(tmp_path / "e.sqlite", kernels, tables=tables))
    assert found["overlap_ns"] is None
    assert found["devices"] == [0, 1]


def test_sessions_are_aligned_on_their_recorded_starts(tmp_path: Path) -> None:
    start = 1_795_435_813_000_000_000
    gen = write(tmp_path / "gen.sqlite", [Kernel(GEN, 1_000_000, 2_000_000)], session_start_utc_ns=start + 500_000)
    embed = write(tmp_path / "embed.sqlite", [Kernel(EMBED, 1_000_000, 2_000_000)], session_start_utc_ns=start)
    found = answers(gen, embed)
    assert found["overlap_ns"] == 500_000
    assert found["alignment"]["offsets_ms"] == [0.5, 0.0]
    assert found["alignment"]["uncertainty_us"] == 100
    assert found["alignment"]["overlap_of_gen_range"] == pytest.approx([0.4, 0.6])
    with pytest.raises(InputError, match="does not record when its session started"):
        answers(gen, write(tmp_path / "none.sqlite", [Kernel(EMBED, 0, 9)], session_start_utc_ns=None))


def test_the_same_export_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "e.sqlite", [Kernel(GEN, 0, 1000), Kernel(EMBED, 0, 9)])
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(file.read_bytes())
    for other in (file, copy):
        with pytest.raises(InputError, match="hold the same kernels"):
            read_exports([file, other])


def test_the_same_pid_in_two_sessions_is_two_processes(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{place}.sqlite", [Kernel(GEN, 0, 1000)], session_start_utc_ns=10**18 + place)
        for place in (0, 1)
    ]
    capture = read_exports(files)
    assert [process.label for process in capture.processes] == ["777", "777@2"]
    assert assign(capture, {"gen": "777", "embed": "777@2"})[0] == {"gen": [0], "embed": [1]}


def test_the_order_of_arguments_changes_no_label_and_no_number(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 1_000, name="b"), Kernel(GEN, 2_000, 3_000, 1, name="a", device=1)]
    files = [
        write(tmp_path / f"{place}.sqlite", [*kernels, Kernel(EMBED + place, 0, 500 + place)],
              session_start_utc_ns=10**18 + 100 * place)
        for place in (0, 1, 2)
    ]  # fmt: skip
    seen = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        capture = read_exports([files[place] for place in order])
        assert capture.alignment.offsets_ns == tuple(100 * place for place in order), "in the order of arguments"
        labels = {(process.session, process.pid): process.label for process in capture.processes}
        assert [labels[session, GEN] for session in (0, 1, 2)] == ["777", "777@2", "777@3"]
        found = summary_of(look(capture, assign(capture, {"gen": "777@2", "embed": "775"})[0]))
        seen.append({key: value for key, value in found.items() if key != "alignment"})
    assert seen[0] == seen[1] == seen[2]


@given(
    st.lists(st.tuples(times, st.integers(0, 60)), max_size=20),
    st.lists(st.tuples(times, st.integers(0, 60)), max_size=20),
)
def test_interval_identities(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = (_union(side) for side in (left, right))
    for spans, given_spans in ((a, left), (b, right)):
        marked = {moment for start, length in given_spans for moment in range(start, start + length)}
        assert {m for start, end in zip(*spans, strict=True) for m in range(start, end)} == marked
        assert intervals.length(spans) == len(marked) <= sum(length for _, length in given_spans)
        assert np.all(spans[0][1:] > spans[1][:-1]), "disjoint, sorted, not touching"
    both = intervals.intersect(a, b)
    assert intervals.length(both) == intervals.overlap(a, b) == intervals.overlap(b, a)
    assert intervals.length(both) <= min(intervals.length(a), intervals.length(b)), "clipping never grows"
    window = (100, 300)
    inside = intervals.overlap(a, (np.array([100]), np.array([300])))
    assert intervals.length(intervals.gaps(a, window)) + inside == 200
    edges = np.array([0, 7, 100, 101, 500])
    bins = intervals.weight_by_bin(*a, np.ones(len(a[0])), edges)
    assert bins == pytest.approx([intervals.overlap(a, (edges[i : i + 1], edges[i + 1 : i + 2])) for i in range(4)])


def _union(spans: list[tuple[int, int]]) -> Any:
    start, length = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    return intervals.union(start, start + length)
