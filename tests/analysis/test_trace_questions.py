"""Categories, durations alone against shared, where time went, timelines: known answers on planted captures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo_lib.analysis.trace import downsample, intervals, occupancy, token_time
from colo_lib.analysis.trace import kernels as trace_kernels
from colo_lib.analysis.trace.processes import assign, launchers, likely
from colo_lib.analysis.trace.window import TraceWindow, look
from colo_lib.data.capture import read_exports, read_step_launches
from colo_lib.examples.captures import global_pid
from tests.exports import EMBED, GEN, SMS, Kernel, Planted, write

ASKED = {"gen": str(GEN), "embed": str(EMBED)}


def view_of(file: Path, **options: Any) -> TraceWindow:
    capture = read_exports([file])
    asked = {name: pid for name, pid in ASKED.items() if int(pid) in {process.pid for process in capture.processes}}
    return look(capture, {name: assign(capture, {name: pid})[0][name] for name, pid in asked.items()}, **options)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("fused_moe_kernel", "MoE"),
        ("void vllm::moe::topkGatingSoftmax<8, 128, 4, 16>(float const*)", "MoE"),
        ("void marlin_moe_wna16::Marlin<half>(int4 const*)", "MoE"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<Mainloop>>(Params)", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, __nv_bfloat16, 0>", "attention"),
        ("BatchPrefillWithPagedKVCacheKernel", "attention"),
        ("void vllm::rotary_embedding_kernel<c10::BFloat16, true>", "attention"),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_NNT", "GEMM"),
        ("void cutlass::device_kernel<cutlass_scaled_mm_fp8<float_e4m3_t>>(Params)", "GEMM"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", "GEMM"),
        ("void vllm::dynamic_per_token_scaled_fp8_quant_kernel<c10::BFloat16>", "quantisation"),
        ("void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>", "norm"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "norm"),
        ("triton_red_fused__to_copy_abs_clamp_cutlass_scaled_mm_div_fused_add_rms_norm_max_mul_reciprocal", "norm"),
        ("triton_poi_fused_cutlass_scaled_mm_mul_silu_slice_unified_attention_1", "activation"),
        ("void vllm::act_and_mul_kernel<c10::BFloat16, &silu_kernel>", "activation"),
        ("void at::native::<unnamed>::distribution_elementwise_grid_stride_kernel<normal_and_transform>", "sampling"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<ArgMaxOps<float>>>", "sampling"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgs)", "communication"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>", "communication"),
        ("void at::native::vectorized_elementwise_kernel<4, FillFunctor<int>>", "memory"),
        ("void at::native::index_elementwise_kernel<128, 4>", "memory"),
        ("void at::native::elementwise_kernel<128, 2, add>", "other"),
        ("", "other"),
    ],
)
def test_names_fall_into_the_category_a_reader_expects(name: str, category: str) -> None:
    assert trace_kernels.categorise([name]) == [category]


def test_the_table_has_the_designs_order_and_is_extended_in_front() -> None:
    order = ["MoE", "attention", "GEMM", "quantisation", "norm", "activation", "sampling", "communication", "memory"]
    assert [name for name, _ in trace_kernels.PATTERNS] == order
    assert trace_kernels.categorise(["fused_moe_kernel"], [("mine", "fused"), *trace_kernels.PATTERNS]) == ["mine"]


def test_kernels_shift_by_name_weighted_by_the_time_alone(tmp_path: Path) -> None:
    alone = [Kernel(GEN, 0, 100, name="a"), Kernel(GEN, 200, 500, name="b"), Kernel(GEN, 600, 700, name="solo")]
    shared = [Kernel(GEN, 0, 150, name="a"), Kernel(GEN, 200, 530, name="b"), Kernel(GEN, 600, 640, name="new"),
              Kernel(EMBED, 0, 900, name="e")]  # fmt: skip
    before, after = (view_of(write(tmp_path / f"{name}.sqlite", rows)) for name, rows in (("a", alone), ("s", shared)))
    found = trace_kernels.duration_shifts(before, after, "gen")
    assert [(row.name, row.shift) for row in found.kernels] == [
        ("b", pytest.approx(0.1)), ("a", pytest.approx(0.5))
    ]  # fmt: skip
    assert found.total_shift == pytest.approx((300 * 0.1 + 100 * 0.5) / 400)
    assert found.covered == pytest.approx(400 / 500)
    assert [row.name for row in found.only_alone] == ["solo"]
    assert [row.name for row in found.only_shared] == ["new"]
    none = trace_kernels.duration_shifts(before, after, "embed")
    assert none.total_shift is None
    cut = look(after.capture, after.assignment, (0, 3e-7))
    assert [row.name for row in trace_kernels.duration_shifts(before, cut, "gen").kernels] == ["a"], (
        "b is cut by the window"
    )


def test_a_gap_is_the_devices_from_the_launch_on_and_the_hosts_before(tmp_path: Path) -> None:
    """Gaps of 100 and 300 ns: the first was launched before it began, the second 40 ns before it ended."""
    kernels = [Kernel(GEN, 0, 100), Kernel(GEN, 200, 300, name="gemm"), Kernel(GEN, 600, 700), Kernel(EMBED, 0, 700)]
    # Embed's calls carry the same correlation ids, as they do in real exports.
    calls = {"start": [0, 50, 560, 1, 590], "end": [5, 60, 565, 2, 595], "correlationId": [1, 2, 3, 4, 3],
             "globalTid": [global_pid(GEN) + 9] * 4 + [global_pid(EMBED) + 9]}  # fmt: skip
    file = write(tmp_path / "e.sqlite", kernels, tables={"CUPTI_ACTIVITY_KIND_RUNTIME": calls})
    view = view_of(file)
    launches = read_step_launches((file,), view.capture)
    found = token_time.decompose_token_time(view, "gen", launches, pieces=2)
    assert found.window_ns == 350
    assert found.busy_ns == 150
    assert found.waiting_ns == (100 + 40) / 2
    assert found.host_ns == 260 / 2
    assert found.switched_out_ns == found.unattributed_ns == 0
    assert found.busy_by_category_ns == {"GEMM": 50, "other": 100}
    none = token_time.decompose_token_time(view, "gen", launches.take(slice(0, 0)), pieces=2)
    assert (none.unattributed_ns, none.waiting_ns, none.host_ns) == (200, 0, 0)
    with pytest.raises(ValueError, match="more than 0"):
        token_time.decompose_token_time(view, "gen", launches, pieces=0)


spans = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 80), st.integers(0, 200)), min_size=1, max_size=20)


@given(spans, st.lists(st.tuples(st.integers(0, 900), st.integers(1, 200)), max_size=6))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_time_splits_without_rest(tmp_path: Path, rows: Any, turns: Any) -> None:
    kernels = [Kernel(GEN, start, start + length, 66) for start, length, _ in rows]
    residency = {(GEN, 1): [*((start, start + length) for start, length in turns), (0, 1), *(
        (kernel.start, kernel.start + 1) for kernel in kernels)]}  # fmt: skip
    calls = {"start": [start - before for start, _, before in rows], "end": [start for start, _, _ in rows],
             "correlationId": list(range(1, len(rows) + 1)), "globalTid": [global_pid(GEN)] * len(rows)}  # fmt: skip
    merged = intervals.union(*(np.array(side) for side in zip(*residency[(GEN, 1)], strict=True)))
    planted = Planted(kernels, {(GEN, 1): list(zip(merged[0].tolist(), merged[1].tolist(), strict=True))})
    file = write(tmp_path / "e.sqlite", planted, tables={"CUPTI_ACTIVITY_KIND_RUNTIME": calls})
    view = view_of(file)
    found = token_time.decompose_token_time(view, "gen", read_step_launches((file,), view.capture), pieces=1)
    parts = [found.busy_ns, found.switched_out_ns, found.waiting_ns, found.host_ns, found.unattributed_ns]
    assert min(parts) >= 0
    assert sum(parts) == found.window_ns == view.window_ns
    assert found.unattributed_ns == 0


def test_resident_occupancy_is_cudas_arithmetic(tmp_path: Path) -> None:
    """256 threads of 128 registers: two blocks' registers fill an SM's 65536, so 16 of 64 warps."""
    table = {"start": [0], "end": [100], "globalPid": [global_pid(GEN)], "gridX": [10 * SMS], "blockX": [256],
             "registersPerThread": [128], "dynamicSharedMemory": [0]}  # fmt: skip
    from colo_lib.examples.captures import write_export

    file = write_export(tmp_path / "e.sqlite", {"CUPTI_ACTIVITY_KIND_KERNEL": table}, ["k"], {GEN: "x"})
    view = view_of(file)
    assert occupancy.resident_by_time(view.workloads["gen"], view.device) == pytest.approx(2 * 8 / 64)
    shared = table | {"dynamicSharedMemory": [100_000], "registersPerThread": [16]}
    view = view_of(write_export(file, {"CUPTI_ACTIVITY_KIND_KERNEL": shared}, ["k"], {GEN: "x"}))
    assert occupancy.resident_by_time(view.workloads["gen"], view.device) == pytest.approx(2 * 8 / 64)
    one = table | {"gridX": [1]}
    view = view_of(write_export(file, {"CUPTI_ACTIVITY_KIND_KERNEL": one}, ["k"], {GEN: "x"}))
    assert occupancy.resident_by_time(view.workloads["gen"], view.device) == pytest.approx(8 / 64 / SMS)


def test_what_is_drawn_over_time_adds_up_to_what_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    starts = np.cumsum(rng.integers(50, 400, 3000))
    kernels = [Kernel(GEN if k % 2 else EMBED, int(s), int(s) + int(rng.integers(1, 500)), int(rng.integers(1, 300)))
               for k, s in enumerate(starts)]  # fmt: skip
    view = view_of(write(tmp_path / "e.sqlite", kernels))
    over = occupancy.occupancy_over_time(view, 50)
    width = np.diff(over.edges_s) * 1e9
    for name, active in view.workloads.items():
        assert (over.busy[name] * width).sum() == pytest.approx(intervals.length(active.busy))
        shares = occupancy.distribution(active, view.device)
        assert shares is not None
        assert shares.by_count.sum() == pytest.approx(1)
        assert shares.by_time.sum() == pytest.approx(1)
    holes = occupancy.find_gaps(view)
    classes = occupancy.by_class(holes, view.window_ns)
    assert sum(row.count for row in classes) == len(holes[0])
    drawn = sum((share * width).sum() for share in occupancy.idle_over_time(holes, view.window, 50).classes.values())
    assert drawn == pytest.approx(view.window_ns - intervals.length(view.busy))


def test_a_timeline_shows_a_typical_stretch_and_no_more_than_it_can_hold(tmp_path: Path) -> None:
    lone = [Kernel(GEN, 10 * k, 10 * k + 5) for k in range(1000)]
    both = [Kernel(GEN, 10 * k, 10 * k + 5) for k in range(1000, 6000)]
    both += [Kernel(EMBED, 10_000, 60_000)]
    view = view_of(write(tmp_path / "e.sqlite", lone + both))
    stretch = downsample.typical_stretch(view, 1000)
    assert stretch[0] >= 10_000
    assert stretch[1] - stretch[0] == 1000
    drawn = downsample.rectangles(view, stretch)
    assert len(drawn.rows["gen"][0]) == 100
    assert intervals.length(drawn.both) == 500
    coarse = downsample.rectangles(view, view.window, most=100)
    assert coarse.merged
    assert len(coarse.rows["gen"][0]) <= 100


def test_the_likely_workloads(tmp_path: Path) -> None:
    """Names first, then graphs, then who launches the shorter work; workers of one engine go together."""
    short, long = Kernel(1, 0, 10), Kernel(2, 0, 1000)
    for names, expected in (
        ({1: "python3", 2: "python3"}, {"gen": [1], "embed": [2]}),
        ({1: "embed_worker", 2: "VLLM::EngineCore"}, {"gen": [2], "embed": [1]}),
        ({1: "python3", 2: "vllm"}, {"gen": [2], "embed": [1]}),
    ):
        capture = read_exports([write(tmp_path / "e.sqlite", [short, long], processes=names)])
        found = likely(launchers(capture))
        assert {name: [capture.processes[p].pid for p in places] for name, places in found.items()} == expected
    workers = [Kernel(1, 0, 10, device=0), Kernel(3, 0, 10, device=1), long]
    gpus = {"id": [0, 1], "busLocation": ["0000:01:00.0", "0000:02:00.0"]}
    names = {1: "VLLM::Worker_TP0", 3: "VLLM::Worker_TP1", 2: "embed_worker"}
    file = write(tmp_path / "e.sqlite", workers, processes=names, tables={"TARGET_INFO_GPU": gpus})
    capture = read_exports([file])
    found = assign(capture, {"gen": "vllm"})[0]
    assert sorted(capture.processes[place].pid for place in found["gen"]) == [1, 3]
    assert [capture.processes[place].pid for place in found["embed"]] == [2]
