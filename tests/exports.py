"""Planted exports for tests, and a second, naive implementation of everything that is counted in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from colo_lib.examples.captures import Schema, global_pid, switches, write_export

GEN, EMBED = 777, 774
SMS = 132


@dataclass(frozen=True)
class Kernel:
    """One planted kernel; a graph launch has 0 blocks."""

    pid: int
    start: int
    end: int
    blocks: int = 132
    name: str = "kernel"
    device: int = 0
    stream: int = 7
    node: bool = False


@dataclass(frozen=True)
class Planted:
    kernels: Sequence[Kernel]
    residency: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)


def write(file: Path, planted: Planted | Sequence[Kernel], schema: Schema | None = None, **more: Any) -> Path:
    """Write the planted kernels as an export."""
    planted = planted if isinstance(planted, Planted) else Planted(planted)
    names = sorted({kernel.name for kernel in planted.kernels})
    tables: dict[str, Any] = {"CUPTI_ACTIVITY_KIND_KERNEL": columns(planted.kernels, names)}
    graphs = [kernel for kernel in planted.kernels if not kernel.blocks]
    if graphs:
        kept = columns(graphs, names, graph=True)
        tables["CUPTI_ACTIVITY_KIND_GRAPH_TRACE"] = kept
    if planted.residency:
        tables["GPU_CONTEXT_SWITCH_EVENTS"] = switches(planted.residency)
    tables |= more.pop("tables", {})
    pids = sorted({kernel.pid for kernel in planted.kernels})
    options = {"strings": names, "processes": {pid: "python3" for pid in pids}} | more
    return write_export(file, tables, schema=schema, **options)


def columns(kernels: Iterable[Kernel], names: list[str], graph: bool = False) -> dict[str, list[Any]]:
    """Columns of the kernel table, or of the graph table."""
    rows = [kernel for kernel in kernels if bool(kernel.blocks) != graph]
    found: dict[str, list[Any]] = {
        "start": [row.start for row in rows],
        "end": [row.end for row in rows],
        "globalPid": [global_pid(row.pid) for row in rows],
        "deviceId": [row.device for row in rows],
        "streamId": [row.stream for row in rows],
        "correlationId": list(range(1, len(rows) + 1)),  # as in real exports, every process counts from 1
    }
    if not graph:
        found["demangledName"] = found["shortName"] = [names.index(row.name) for row in rows]
        found["gridX"] = [row.blocks for row in rows]
        found["graphNodeId"] = [5 if row.node else None for row in rows]
    return found


# --- the naive implementation: every elementary stretch of time is looked at by itself -------------------------------


@dataclass(frozen=True)
class Naive:
    busy_ns: int
    window_ns: int
    gaps_ns: list[int]
    gen_ns: int
    embed_ns: int
    overlap_ns: int
    kernel_time_ns: dict[int, int]


def naive(planted: Planted | Sequence[Kernel], window: tuple[int, int] | None = None, device: int = 0) -> Naive:
    """Everything by going through all stretches between two neighbouring moments; quadratic, and obvious."""
    planted = planted if isinstance(planted, Planted) else Planted(planted)
    kernels = [kernel for kernel in planted.kernels if kernel.device == device and kernel.pid in (GEN, EMBED)]
    if window is None:
        window = (min(kernel.start for kernel in kernels), max(kernel.end for kernel in kernels))
    spans = [span for stretch in planted.residency.values() for span in stretch]
    moments = {moment for kernel in kernels for moment in (kernel.start, kernel.end)}
    moments |= {moment for span in spans for moment in span} | set(window)
    ordered = sorted(moment for moment in moments if window[0] <= moment <= window[1])
    totals = {GEN: 0, EMBED: 0, "both": 0, "any": 0}
    time = {GEN: 0, EMBED: 0}
    gaps, idle = [], 0
    for left, right in pairwise(ordered):
        running = [
            kernel.pid
            for kernel in kernels
            if kernel.start <= left and right <= kernel.end and _resident(planted, kernel.pid, left)
        ]
        length = right - left
        for pid in (GEN, EMBED):
            totals[pid] += length if pid in running else 0
            time[pid] += length * running.count(pid)
        totals["both"] += length if {GEN, EMBED} <= set(running) else 0
        totals["any"] += length if running else 0
        if running and idle:
            gaps.append(idle)
        idle = 0 if running else idle + length
    gaps += [idle] if idle else []
    return Naive(totals["any"], window[1] - window[0], sorted(gaps), totals[GEN], totals[EMBED], totals["both"], time)


def _resident(planted: Planted, pid: int, moment: int) -> bool:
    if not planted.residency:
        return True
    own = [span for (owner, _), spans in planted.residency.items() if owner == pid for span in spans]
    return any(start <= moment < end for start, end in own)
