"""Captures that were planted: SQLite files shaped like exports of Nsight Systems, from chosen rows.

For tests and measurements of speed, rows that somebody chose (`write_export`). To look at where none was recorded, a
simulated capture of every step (gen decodes with small kernels and gaps, embed runs large products), and beside them a
small real one of an H100 (`H100_PAIR`). No profiler ran for a planted one: its `META_DATA_EXPORT` says SIMULATED, and
every page that reads one says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib.steps import MECHANISMS, STEP_IDS, STEPS

# table -> column -> value where none is given; the order and names are those of schema 3.11 (Nsight Systems 2024.2)
TABLES: dict[str, dict[str, Any]] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": {
        "start": 0, "end": 0, "deviceId": 0, "contextId": 1, "greenContextId": None, "streamId": 7,
        "correlationId": 0, "globalPid": 0, "demangledName": 0, "shortName": 0, "mangledName": None,
        "launchType": 1, "cacheConfig": 1, "registersPerThread": 32, "gridX": 1, "gridY": 1, "gridZ": 1,
        "blockX": 128, "blockY": 1, "blockZ": 1, "staticSharedMemory": 0, "dynamicSharedMemory": 0,
        "localMemoryPerThread": 0, "localMemoryTotal": 155713536, "gridId": 0, "sharedMemoryExecuted": 32768,
        "graphNodeId": None, "sharedMemoryLimitConfig": 0,
    },
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": {
        "start": 0, "end": 0, "deviceId": 0, "contextId": 1, "greenContextId": None, "streamId": 7,
        "correlationId": 0, "globalPid": 0, "graphId": 1, "graphExecId": 2,
    },
    "CUPTI_ACTIVITY_KIND_MEMCPY": {
        "start": 0, "end": 0, "deviceId": 0, "contextId": 1, "greenContextId": None, "streamId": 7,
        "correlationId": 0, "globalPid": 0, "bytes": 0, "copyKind": 1, "deprecatedSrcId": None, "srcKind": 1,
        "dstKind": 2, "graphNodeId": None,
    },
    "CUPTI_ACTIVITY_KIND_MEMSET": {
        "start": 0, "end": 0, "deviceId": 0, "contextId": 1, "greenContextId": None, "streamId": 7,
        "correlationId": 0, "globalPid": 0, "value": 0, "bytes": 0, "graphNodeId": None, "memKind": 2,
    },
    "CUPTI_ACTIVITY_KIND_RUNTIME": {
        "start": 0, "end": 0, "eventClass": 0, "globalTid": 0, "correlationId": 0, "nameId": 0, "returnValue": 0,
        "callchainId": None,
    },
    "GPU_CONTEXT_SWITCH_EVENTS": {
        "tag": 8, "vmId": 1, "seqNo": 0, "contextId": 1, "timestamp": 0, "globalPid": 0, "gpuId": 0,
    },
    "PROFILER_OVERHEAD": {"start": 0, "end": 0, "globalTid": 0, "nameId": 0, "returnValue": 0},
    "PROCESSES": {"globalPid": 0, "pid": 0, "name": ""},
    "TARGET_INFO_GPU": {
        "vmId": 281474976710656, "id": 0, "name": "SIMULATED GPU", "busLocation": "0000:00:06.0", "smCount": 132,
        "uuid": "", "cuDevice": 0, "maxWarpsPerSm": 64, "maxBlocksPerSm": 32, "maxRegistersPerSm": 65536,
        "maxShmemPerSm": 233472, "threadsPerWarp": 32,
    },
    "TARGET_INFO_CUDA_DEVICE": {"gpuId": 0, "cudaId": 0, "pid": 0, "uuid": "", "numMultiprocessors": 132},
    "TARGET_INFO_SESSION_START_TIME": {"utcEpochNs": 0, "utcTime": "", "localTime": ""},
    "ANALYSIS_DETAILS": {"globalVid": 281474976710656, "duration": 0, "startTime": 0, "stopTime": 0},
    "META_DATA_EXPORT": {"name": "", "value": ""},
    "ENUM_GPU_CTX_SWITCH": {"id": 0, "name": "", "label": ""},
    "StringIds": {"id": 0, "value": ""},
}  # fmt: skip
SWITCH_TAGS = {7: "SAVE_END", 8: "RESTORE_START", 9: "CONTEXT_START", 10: "INVALID_TIMESTAMP"}
CHUNK = 200_000
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Schema:
    """How this file's schema differs from 2024.2's: what other versions drop, rename or never write."""

    version: str = "3.11.1"
    product: str = "2024.2.3.38"
    without: frozenset[str] = frozenset()  # tables, or table.column
    renamed: Mapping[str, str] = field(default_factory=dict)  # table -> its name here
    string_ids: bool = True


def global_pid(pid: int) -> int:
    """The serialised id that exports carry for a process: hardware and VM in the high bits, then the pid."""
    return (1 << 48) | (pid << 24)


def write_export(
    file: Path,
    tables: Mapping[str, Columns],
    strings: Sequence[str] = (),
    processes: Mapping[int, str] | None = None,
    session_start_utc_ns: int | None = 1_795_435_813_758_566_457,
    schema: Schema | None = None,
) -> Path:
    """Write `tables` (name -> column -> values; columns left out get `TABLES`' value) as an export; gives `file`.

    `strings`: names, whose id is their place. `processes`: pid -> name. Raises sqlite3.Error where it cannot write.
    """
    schema = schema or Schema()
    file.unlink(missing_ok=True)
    given: dict[str, Columns] = dict(tables)
    given.setdefault("TARGET_INFO_GPU", {"id": [0]})
    given["StringIds"] = {"id": range(len(strings)), "value": strings}
    meta = {"EXPORT_PRODUCT_NAME": "SIMULATED", "EXPORT_PRODUCT_VERSION": schema.product}
    meta["EXPORT_SCHEMA_VERSION"] = schema.version
    given.setdefault("META_DATA_EXPORT", {"name": list(meta), "value": list(meta.values())})
    if session_start_utc_ns is not None:
        given["TARGET_INFO_SESSION_START_TIME"] = {"utcEpochNs": [session_start_utc_ns]}
    if processes is not None:
        pids = list(processes)
        ids = [global_pid(pid) for pid in pids]
        given["PROCESSES"] = {"globalPid": ids, "pid": pids, "name": list(processes.values())}
    if "GPU_CONTEXT_SWITCH_EVENTS" in given:
        given["ENUM_GPU_CTX_SWITCH"] = {"id": list(SWITCH_TAGS), "name": list(SWITCH_TAGS.values())}
    connection = sqlite3.connect(file)
    try:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        for name, columns in given.items():
            if name not in schema.without:
                _write_table(connection, name, columns, schema)
        connection.commit()
    finally:
        connection.close()
    return file


def _write_table(connection: sqlite3.Connection, name: str, columns: Columns, schema: Schema) -> None:
    known = TABLES[name]
    kept = [column for column in known if f"{name}.{column}" not in schema.without]
    shown = schema.renamed.get(name, name)
    declared = ", ".join(f'"{c}" {"TEXT" if isinstance(known[c], str) else "INTEGER"}' for c in kept)
    connection.execute(f'CREATE TABLE "{shown}" ({declared})')
    rows = max((len(values) for values in columns.values()), default=0)
    places = ",".join("?" * len(kept))
    for start in range(0, rows, CHUNK):
        stop = min(start + CHUNK, rows)
        parts = [_plain(columns[c][start:stop]) if c in columns else [known[c]] * (stop - start) for c in kept]
        connection.executemany(f'INSERT INTO "{shown}" VALUES ({places})', zip(*parts, strict=True))


def _plain(values: Any) -> Sequence[Any]:
    """Numpy's values as Python's, which is what sqlite3 stores as integers."""
    return values.tolist() if hasattr(values, "tolist") else values


def switches(residency: Mapping[tuple[int, int], Iterable[tuple[int, int]]], gpu_id: int = 0) -> Columns:
    """Columns of GPU_CONTEXT_SWITCH_EVENTS: (pid, context) -> [start, end) spans in which that context is resident."""
    events = [
        (time, tag, context, global_pid(pid))
        for (pid, context), spans in residency.items()
        for time, tag in chain.from_iterable(((start, 8), (end, 7)) for start, end in spans)
    ]
    events.sort()
    return {
        "timestamp": [event[0] for event in events],
        "tag": [event[1] for event in events],
        "contextId": [event[2] for event in events],
        "globalPid": [event[3] for event in events],
        "seqNo": list(range(len(events))),
        "gpuId": [gpu_id] * len(events),
    }


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
            residency[pid, place + 1] = [(start, start + SLICE_NS) for start in edges if start // SLICE_NS % 2 == place]
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
            now = _in_turn(now + int(gap_us * 1e3 * rng.lognormal(0, 0.25)), place, turns)
            length = int(length_us * 1e3 * slower * rng.lognormal(0, 0.08))
            end = now + length
            if turns and end > (now // SLICE_NS + 1) * SLICE_NS:
                end += SLICE_NS  # switched out for the other's turn
            rows.append((pid, now, end, name, blocks, len(rows) + 1))
            now = end
    return rows


def _in_turn(now: int, place: int, turns: bool) -> int:
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
