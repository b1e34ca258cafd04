"""Captures to look at where none was recorded: a small real one of an H100, and a simulated one of every step.

The simulated one is planted: gen decodes with small kernels and gaps, embed runs large products. Its files say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from colo_lib.examples.planted_export import global_pid, switches, write_export
from colo_lib.steps import MECHANISMS, STEP_IDS, STEPS

H100_PAIR = tuple(Path(__file__).parent / "captures" / f"h100-mps-{name}.sqlite" for name in ("gen", "embed"))
GEN_PID, EMBED_PID, SERVER_PID = 777, 774, 770
SLICE_NS = 2_000_000
MS = 1_000_000
# name, microseconds, blocks, gap before it in microseconds: one layer of a decode step
LAYER = (
    ("void vllm::rms_norm_kernel<c10::BFloat16>(c10::BFloat16 *)", 2.1, 1, 9.0),
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", 9.5, 64, 1.6),
    ("void vllm::rotary_embedding_kernel<c10::BFloat16, true>(const long *)", 2.4, 8, 1.4),
    ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>(const __nv_bfloat16 *)", 2.2, 8, 1.2),
    ("void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>(Flash_fwd_params)", 8.0, 132, 1.5),
    ("void vllm::moe::topkGating<8, 128, 4, 16, 32>(const float *)", 3.0, 2, 6.0),
    ("fused_moe_kernel", 24.0, 472, 1.5),
    ("void vllm::act_and_mul_kernel<c10::BFloat16, silu_kernel>(c10::BFloat16 *)", 2.6, 24, 1.4),
    ("void vllm::dynamic_per_token_scaled_fp8_quant_kernel<c10::BFloat16>(float *)", 2.0, 1, 1.4),
)
SAMPLE = ("void at::native::reduce_kernel<512, 1, ArgMaxOps<float>>(ArgMaxOps<float>)", 12.0, 4, 60.0)
BATCH = (
    ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", 180.0, 1056, 1.0),
    ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<CollectiveMainloop>>(Params)", 95.0, 2048, 1.0),
    ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>(int)", 14.0, 4096, 1.0),
    ("void at::native::vectorized_elementwise_kernel<4, GeluFunctor>(int)", 22.0, 8192, 1.0),
)

# How much longer gen's and embed's kernels take beside each other than alone: at once, and in turns.
AT_ONCE, IN_TURNS = (1.35, 1.12), (1.02, 1.02)


def simulated_capture(file: Path, step: str, length_ms: float = 60.0, seed: int = 1) -> Path:
    """Write the simulated export of `step` to `file`; gives it."""
    row = STEPS[step]
    gen, embed = row.runs_gen, row.runs_embed
    turns = row.runs_both and not MECHANISMS[row.mechanism].concurrent
    gen_slower, embed_slower = (1.0, 1.0) if not row.runs_both else IN_TURNS if turns else AT_ONCE
    rng = np.random.default_rng([seed, STEP_IDS.index(step) + 1])
    rows: list[tuple[Any, ...]] = []
    residency: dict[tuple[int, int], list[tuple[int, int]]] = {}
    end_ns = int(length_ms * MS)
    if gen:
        token = [*LAYER * 4, SAMPLE]
        rows += _stream(GEN_PID, token, gen_slower, end_ns, rng, (0, turns))
    if embed:
        rows += _stream(EMBED_PID, list(BATCH), embed_slower, end_ns, rng, (1, turns))
    if turns:
        edges = range(0, end_ns, SLICE_NS)
        for place, pid in enumerate((GEN_PID, EMBED_PID)):
            own = [(start, start + SLICE_NS) for start in edges if start // SLICE_NS % 2 == place]
            residency[pid, place + 1] = own
    elif gen and embed:
        residency[SERVER_PID, 1] = [(0, end_ns + 10 * MS)]
    return _write(file, rows, residency)


def _stream(
    pid: int, kernels: list[tuple[str, float, int, float]], slower: float, end_ns: int, rng: Any, turn: tuple[int, bool]
) -> list[tuple[Any, ...]]:
    """Kernels one after another until `end_ns`; in turns, a kernel whose turn ends goes on in the next one."""
    rows: list[tuple[Any, ...]] = []
    now = int(rng.integers(0, 200_000))
    place, turns = turn
    while now < end_ns:
        for name, length_us, blocks, gap_us in kernels:
            now = _own_turn(now + int(gap_us * 1e3 * rng.lognormal(0, 0.25)), place, turns)
            length = int(length_us * 1e3 * slower * rng.lognormal(0, 0.08))
            end = now + length
            if turns and end > (now // SLICE_NS + 1) * SLICE_NS:
                end += SLICE_NS  # switched out for the other's turn
            rows.append((pid, now, end, name, blocks, len(rows) + 1))
            now = end
    return rows


def _own_turn(now: int, place: int, turns: bool) -> int:
    if turns and now // SLICE_NS % 2 != place:
        return (now // SLICE_NS + 1) * SLICE_NS
    return now


def _write(file: Path, rows: list[tuple[Any, ...]], residency: dict[tuple[int, int], list[tuple[int, int]]]) -> Path:
    rows.sort(key=lambda row: row[1])
    names = sorted({row[3] for row in rows})
    pids = sorted({row[0] for row in rows})
    serial = [global_pid(row[0]) for row in rows]
    large = [row[4] > 500 for row in rows]
    kernels = {
        "start": [row[1] for row in rows],
        "end": [row[2] for row in rows],
        "globalPid": serial,
        "correlationId": [row[5] for row in rows],
        "demangledName": [names.index(row[3]) for row in rows],
        "shortName": [names.index(row[3]) for row in rows],
        "gridX": [row[4] for row in rows],
        "blockX": [384 if wide else 128 for wide in large],
        "registersPerThread": [168 if wide else 40 for wide in large],
        "dynamicSharedMemory": [200_000 if wide else 0 for wide in large],
        "graphNodeId": [row[5] % 1000 + 1 if row[0] == GEN_PID else None for row in rows],
    }
    launches = {
        "start": [row[1] - 8_000 for row in rows],
        "end": [row[1] - 3_000 for row in rows],
        "globalTid": [serial_id + 1 for serial_id in serial],
        "correlationId": [row[5] for row in rows],
    }
    tables: dict[str, Any] = {"CUPTI_ACTIVITY_KIND_KERNEL": kernels, "CUPTI_ACTIVITY_KIND_RUNTIME": launches}
    if residency:
        tables["GPU_CONTEXT_SWITCH_EVENTS"] = switches(residency)
    tables["TARGET_INFO_GPU"] = {"id": [0], "name": ["simulated GPU of 132 SMs"]}
    known = {GEN_PID: "VLLM::EngineCore", EMBED_PID: "embed_worker"}
    return write_export(file, tables, names, {pid: known[pid] for pid in pids})
