"""Random exports with everything that makes reading one hard, from a seed."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.examples.captures import global_pid, write_export
from tests.exports import EMBED, GEN

GEN_2, OTHER, SERVER = 778, 900, 9_000
NAMES = ("void vllm::moe::topkGating<8>", "nvjet_sm90_tst_64x8", "fused_moe_kernel", "rms_norm_kernel",
         "flash_fwd_splitkv", "ncclDevKernel_AllReduce", "vectorized_elementwise_kernel<GeluFunctor>", "x")  # fmt: skip
SWITCHED = ("none", "own", "own", "server", "all-unknown", "one-unknown", "row-unknown", "stranger-unknown", "no-pids",
            "other-gpu", "no-gpus", "unreadable")  # fmt: skip


@dataclass(frozen=True)
class Twisted:
    """An export, and how it is looked at."""

    file: Path
    members: dict[str, set[int]]
    window: tuple[int, int] | None
    device: int | None
    mechanism: str | None
    switched: str


def twisted(file: Path, seed: int) -> Twisted:
    rng = random.Random(seed)
    gpus = rng.choice((1, 1, 2))
    switched = rng.choice(SWITCHED)
    pids = [GEN, EMBED] + [pid for pid in (GEN_2, OTHER) if rng.random() < 0.4]
    turns = {gpu: _turns(rng, pids) for gpu in range(gpus)}
    kernels, graphs, copies, sets = _work(rng, pids, turns, gpus)
    tables: dict[str, Any] = {"CUPTI_ACTIVITY_KIND_KERNEL": _columns(kernels)}
    for name, rows in (("GRAPH_TRACE", graphs), ("MEMCPY", copies), ("MEMSET", sets)):
        if rows:
            tables[f"CUPTI_ACTIVITY_KIND_{name}"] = _columns(rows)
    if rng.random() < 0.3:
        tables["PROFILER_OVERHEAD"] = {"start": [5, 40, 41], "end": [45, 60, 41]}
    known = {"id": list(range(gpus)), "busLocation": [f"0000:0{gpu}:00.0" for gpu in range(gpus)]}
    known["smCount"] = [rng.choice((132, 132, 7, None)) for _ in range(gpus)]
    if rng.random() < 0.3:
        known["maxShmemPerSm"] = [None] * gpus
    tables["TARGET_INFO_GPU"] = known
    rows = _switches(rng, switched, pids, turns)
    if rows:
        tables["GPU_CONTEXT_SWITCH_EVENTS"] = _columns(rows)
    write_export(file, tables, strings=NAMES, processes=dict.fromkeys(pids, "python3"))
    members = {"gen": {GEN} | ({GEN_2} & set(pids)), "embed": {EMBED}}
    start = rng.randint(1, 500)
    window = rng.choice((None, (start, start + rng.randint(1, 400))))
    device = rng.choice((None, rng.randrange(gpus)))
    return Twisted(file, members, window, device, rng.choice((None, "mps", "time-sliced")), switched)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _turns(rng: random.Random, pids: list[int]) -> list[tuple[int, int, int]]:
    """Start, end and process of each turn, the first turns one of each."""
    found, now = [], rng.randint(0, 20)
    for place in range(rng.randint(6, 30)):
        length = rng.randint(5, 40)
        found.append((now, now + length, pids[place] if place < len(pids) else rng.choice(pids)))
        now += length + rng.choice((0, 0, 3))
    return found


def _work(rng: random.Random, pids: list[int], turns: dict[int, Any], gpus: int) -> tuple[list[dict[str, Any]], ...]:
    kernels, graphs, copies, sets = [], [], [], []
    counters: dict[int, int] = defaultdict(int)
    for place in range(rng.randint(8, 60)):
        pid = pids[place] if place < len(pids) else rng.choice(pids)
        gpu = 0 if place < len(pids) else rng.randrange(gpus)
        own = [turn for turn in turns[gpu] if turn[2] == pid]
        begin, end, _ = rng.choice(own)
        start = rng.randrange(begin, end) if rng.random() < 0.97 else rng.randint(0, 600)
        length = rng.choice((0, 1, rng.randint(1, 12), rng.randint(1, 120)))
        if kernels and rng.random() < 0.3:  # nested in another, or just touching it
            other = rng.choice(kernels)
            start = max(min(other["start"] or 0, end - 1), begin)
        counters[pid] += 1
        row: dict[str, Any] = {"start": start, "end": start + length, "deviceId": gpu, "streamId": rng.randint(7, 10),
                               "correlationId": counters[pid]}  # fmt: skip
        # As in real exports every process counts its correlation ids from 1.
        row["globalPid"] = global_pid(pid) if place < len(pids) or rng.random() < 0.97 else None
        kind = "kernel" if place < len(pids) else rng.choice(("kernel",) * 6 + ("graph", "copy", "set", "bad"))
        if kind == "graph":
            graphs.append(row if rng.random() < 0.9 else row | {"start": 0, "end": 0})
        elif kind == "copy":
            copies.append(row | {"copyKind": rng.choice((1, 2, 8)), "bytes": rng.choice((0, 4096, None))})
        elif kind == "set":
            sets.append(row | {"bytes": rng.choice((0, 512))})
        else:
            kernels.append(row | _shape(rng))
            if kind == "bad":
                kernels[-1] |= rng.choice(({"end": start - 1}, {"start": None}, {"deviceId": None}, {"end": 2**62}))
    return kernels, graphs, copies, sets


def _shape(rng: random.Random) -> dict[str, Any]:
    name = rng.choice((*range(len(NAMES)), 4711))
    return {
        "demangledName": name,
        "shortName": name,
        "gridX": rng.choice((1, 65, 66, 132, 5_000, 5_000, None, 0)),
        "gridY": rng.choice((1, 1, 3)),
        "blockX": rng.choice((32, 128, 1_000)),
        "graphNodeId": rng.choice((None, None, 9)),
        "registersPerThread": rng.choice((0, 32, 255)),
        "dynamicSharedMemory": rng.choice((0, 100_000)),
    }


def _switches(
    rng: random.Random, switched: str, pids: list[int], turns: dict[int, list[tuple[int, int, int]]]
) -> list[dict[str, Any]]:
    if switched == "none":
        return []
    rows: list[dict[str, Any]] = []
    for gpu, own in turns.items():
        if switched == "server":
            own = [(begin, end + 3, SERVER) for begin, end, _ in own]
        if switched == "stranger-unknown":
            own = [*own, (700, 800, OTHER + 1)]
        for begin, end, pid in own:
            for time, tag in ((begin, rng.choice((8, 8, 9))), (end, 7)):
                rows.append({"timestamp": time, "tag": tag, "contextId": pid % 100 + 10 * gpu,
                             "globalPid": global_pid(pid), "gpuId": gpu})  # fmt: skip
    rows.sort(key=lambda row: (row["timestamp"], row["tag"]))
    rows = [row | {"seqNo": place} for place, row in enumerate(rows)]
    one = rng.choice(rows)
    if switched == "all-unknown":
        rows = [row | {"globalPid": rng.choice((None, 0))} for row in rows]
    elif switched in ("one-unknown", "stranger-unknown"):
        lost = OTHER + 1 if switched == "stranger-unknown" else rng.choice(pids)
        rows = [row | {"globalPid": None if row["globalPid"] == global_pid(lost) else row["globalPid"]} for row in rows]
    elif switched == "row-unknown":
        one["globalPid"] = None
        rows[one_of(rows, one)]["globalPid"] = None
    elif switched == "no-pids":
        rows = [
            {name: value for name, value in row.items() if name != "globalPid"} | {"globalPid": None} for row in rows
        ]
    elif switched == "other-gpu":
        rows = [row | {"gpuId": 1 - row["gpuId"]} for row in rows]
    elif switched == "no-gpus":
        rows = [row | {"gpuId": None} for row in rows]
    elif switched == "unreadable":
        rows[one_of(rows, one)] |= rng.choice(({"timestamp": None}, {"tag": None}, {"tag": 99}, {"contextId": None}))
    return rows


def one_of(rows: list[dict[str, Any]], row: dict[str, Any]) -> int:
    return next(place for place, other in enumerate(rows) if other["seqNo"] == row["seqNo"])
