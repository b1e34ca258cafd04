"""A second implementation of what `colo trace` tells: pure Python, slow, and straight from the definitions.

It shares with colo_lib nothing but the table of categories and how a name is shown. It reads an export by plain
SELECTs, row by row, keeps intervals as pairs of whole numbers, and takes every length from a sweep over the moments at
which something changes.
"""

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from colo_lib.analysis.trace.kernels import categorise

Span = tuple[int, int]
FAR = 2**62
LONGEST_NS = 2**50
OPENS, LEAVES, OTHER_TAGS = {8, 9}, {7, 11}, {-1, 0, 1, 2, 3, 4, 5, 6, 10}


class Refused(Exception):
    """There is nothing to tell of this file."""


# --- intervals -------------------------------------------------------------------------------------------------------


def together(*sides: Iterable[Span]) -> list[tuple[Span, tuple[int, ...]]]:
    """The stretches between neighbouring moments, and how many intervals of each side cover them."""
    changes: dict[int, list[int]] = defaultdict(lambda: [0] * len(sides))
    for side, spans in enumerate(sides):
        for start, end in spans:
            if end > start:
                changes[start][side] += 1
                changes[end][side] -= 1
    running, found = [0] * len(sides), []
    moments = sorted(changes)
    for moment, later in pairwise(moments):
        running = [count + change for count, change in zip(running, changes[moment], strict=True)]
        found.append(((moment, later), tuple(running)))
    return found


def united(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for (start, end), (count,) in together(spans):
        if count:
            if merged and merged[-1][1] == start:
                merged[-1] = merged[-1][0], end
            else:
                merged.append((start, end))
    return merged


def length(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in united(spans))


def both(left: Iterable[Span], right: Iterable[Span]) -> list[Span]:
    return [span for span, (a, b) in together(left, right) if a and b]


def cut(span: Span, window: Span) -> Span:
    start, end = (min(max(moment, window[0]), window[1]) for moment in span)
    return start, end


def inside(moment: int, spans: list[Span]) -> bool:
    """Whether one of these disjoint, sorted spans holds the moment."""
    place = bisect_right(spans, (moment, FAR * 4)) - 1
    return place >= 0 and spans[place][0] <= moment < spans[place][1]


def in_window(row: dict[str, Any], window: Span) -> bool:
    if row["start"] == row["end"]:
        return bool(window[0] <= row["start"] < window[1])
    return bool(row["start"] < window[1] and row["end"] > window[0])


def percentile(values: list[int], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# --- the file --------------------------------------------------------------------------------------------------------


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def pid_of(serial: Any) -> int:
    return (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else 0


class Export:
    """The rows of one export; `lost` counts those that have no place in time or on a device."""

    def __init__(self, file: Path) -> None:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        connection.row_factory = sqlite3.Row
        self.tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self.connection, self.lost = connection, 0
        texts = self.rows("StringIds")
        self.names = {row.get("id"): row["value"] for row in texts if isinstance(row.get("value"), str)}
        table = next((name for name in ("TARGET_INFO_GPU", "TARGET_INFO_CUDA_GPU") if name in self.tables), "")
        numbered = [(row.get("id", row.get("gpuId")), row) for row in self.rows(table)]
        self.gpus = {number: row for number, row in numbered if isinstance(number, int)}
        self.numbers = {
            (row.get("pid") or 0, row.get("cudaId")): row.get("gpuId") for row in self.rows("TARGET_INFO_CUDA_DEVICE")
        }
        kernels, graphs = self.activity("KERNEL"), self.activity("GRAPH_TRACE")
        self.kernels = [row | {"graph": False} for row in kernels] + [row | {"graph": True} for row in graphs]
        self.copies = self.activity("MEMCPY") + [row | {"copyKind": "set"} for row in self.activity("MEMSET")]
        self.overhead = [
            (row["start"], row["end"])
            for row in self.rows("PROFILER_OVERHEAD")
            if whole(row["start"]) is not None and whole(row["end"]) is not None and row["end"] >= row["start"]
        ]
        self.switches = self.rows("GPU_CONTEXT_SWITCH_EVENTS")
        connection.close()

    def rows(self, table: str) -> list[dict[str, Any]]:
        if table not in self.tables:
            return []
        return [dict(row) for row in self.connection.execute(f'SELECT * FROM "{table}"')]

    def activity(self, kind: str) -> list[dict[str, Any]]:
        pattern = re.compile(rf"CUPTI_ACTIVITY_KIND_{kind}(?:_V(\d+))?")
        versions = {int(match[1] or 1): name for name in self.tables if (match := pattern.fullmatch(name))}
        found = []
        for row in self.rows(versions[max(versions)]) if versions else []:
            start, end, device = whole(row["start"]), whole(row["end"]), row.get("deviceId", 0)
            good = (
                start is not None and end is not None and max(abs(start), abs(end)) < FAR and whole(device) is not None
            )
            good = good and 0 <= end - start <= LONGEST_NS and not (kind == "GRAPH_TRACE" and start == end == 0)
            if not good:
                self.lost += 1
                continue
            pid = pid_of(row.get("globalPid"))
            device &= 0xFFFFFF
            gpu = self.numbers.get((pid, device), self.numbers.get((0, device), device))
            found.append(row | {"pid": pid, "gpu": gpu})
        return found

    def name(self, row: dict[str, Any]) -> str:
        key = next((column for column in ("demangledName", "shortName", "mangledName") if column in row), None)
        number = whole(row[key]) if key else None
        return "(unnamed)" if number is None else self.names.get(number) or f"(name {number})"

    # --- residency ---------------------------------------------------------------------------------------------------

    def contexts(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether every row says its GPU, and each context: gpu, pids, spans, whether every row of it is whole."""
        one_gpu = set(self.gpus) | {row["gpu"] for row in (*self.kernels, *self.copies)}
        only = next(iter(one_gpu)) if len(one_gpu) == 1 else None
        grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in self.switches:
            if row.get("tag") in OTHER_TAGS:
                continue
            gpu = whole(row.get("gpuId"))
            grouped[only if gpu is None else gpu, row.get("contextId")].append(row)
        found = []
        for (gpu, number), rows in grouped.items():
            readable = [
                row
                for row in rows
                if whole(row.get("tag")) in OPENS | LEAVES
                and whole(row.get("timestamp")) is not None
                and abs(row["timestamp"]) < FAR
                and ("contextId" not in row or number is not None)
            ]
            pids = {pid_of(row.get("globalPid")) for row in rows}
            good = len(readable) == len(rows)
            by_pid = {}
            for pid in pids:
                own = [row for row in readable if pid_of(row.get("globalPid")) == pid]
                by_pid[pid] = walked(own)
            found.append({"gpu": gpu, "pids": pids - {0}, "spans": by_pid, "whole": good and 0 not in pids})
        return all(gpu is not None for gpu, _ in grouped), found

    def residency(self, pid: int, gpu: int) -> tuple[list[Span] | None, int]:
        """The spans in which the process's own context was on the GPU, and under which pid the driver knows it; None
        where that cannot be told."""
        placed, contexts = self.contexts()
        starts = [row["start"] for row in self.kernels if (row["pid"], row["gpu"]) == (pid, gpu)]
        starts = starts or [row["start"] for row in self.copies if (row["pid"], row["gpu"]) == (pid, gpu)]
        if not placed:
            return None, 0
        own = any(pid in context["pids"] for context in contexts)
        spans: dict[int, list[Span]] = defaultdict(list)
        broken: dict[int, bool] = defaultdict(bool)
        for context in contexts:
            for holder in context["pids"] if context["gpu"] == gpu else ():
                if holder == pid or not own:
                    spans[holder] += context["spans"][holder]
                    broken[holder] |= not context["whole"]
        held = {holder: united(those) for holder, those in spans.items()}
        share = {holder: mean(inside(start, those) for start in starts) for holder, those in held.items()}
        best = max(sorted(share), key=lambda holder: share[holder], default=None)
        if best is None or broken[best] or (starts and share[best] < 0.9):
            return None, 0
        if not starts and not own:
            return None, 0
        nobodys = united(
            span
            for context in contexts
            if context["gpu"] == gpu and not context["pids"]
            for span in (context["spans"].get(0, []) if len(context["spans"]) else [(-FAR, FAR)])
        )
        astray = mean(not inside(start, held[best]) and inside(start, nobodys) for start in starts)
        return (None, 0) if astray > 0.01 else (held[best], best)


def mean(values: Iterable[Any]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def walked(rows: list[dict[str, Any]]) -> list[Span]:
    """A context's rows in order of time: on the GPU from an opening to the next leaving."""
    spans, since = [], None
    for place, row in enumerate(sorted(rows, key=lambda row: (row["timestamp"], row.get("seqNo") or 0))):
        if row["tag"] in OPENS:
            since = row["timestamp"] if since is None else since
        else:
            if since is not None:
                spans.append((since, row["timestamp"]))
            elif place == 0:
                spans.append((-FAR, row["timestamp"]))
            since = None
    return [*spans, (since, FAR)] if since is not None else spans


# --- the answers -----------------------------------------------------------------------------------------------------


def answers(
    file: Path,
    members: dict[str, set[int]],
    window: Span | None = None,
    device: int | None = None,
    mechanism: str | None = None,
) -> dict[str, Any]:
    """What `colo trace --json` has to say of one export; `members`: workload -> pids. Raises Refused."""
    export = Export(file)
    ran = [row for row in export.kernels if any(row["pid"] in pids for pids in members.values())]
    gpu = chosen_device(ran, members) if device is None else device
    here = [row for row in export.kernels if row["gpu"] == gpu]
    ours = [row for row in here if any(row["pid"] in pids for pids in members.values())]
    if not ours:
        raise Refused("no work on this device")
    first, last = min(row["start"] for row in ours), max(row["end"] for row in ours)
    if first == last and window is None:
        raise Refused("no window")
    window = window or (first, last)
    rows = {
        name: [row for row in here if row["pid"] in pids and in_window(row, window)] for name, pids in members.items()
    }
    rows = {name: own for name, own in rows.items() if own}
    told = {pid: export.residency(pid, gpu) for own in rows.values() for pid in {row["pid"] for row in own}}
    known = bool(export.switches) and all(spans is not None for spans, _ in told.values()) and bool(rows)
    if known and mechanism == "time-sliced" and len(rows) > 1:
        holders = [{told[row["pid"]][1] for row in own} for own in rows.values()]
        known = not holders[0] & holders[1]  # taking turns, two processes are not in one context
    resident = {pid: spans for pid, (spans, _) in told.items()}

    def parts(row: dict[str, Any]) -> list[Span]:
        span = cut((row["start"], row["end"]), window)
        if not known:
            return [span]
        if row["pid"] not in resident:
            resident[row["pid"]] = export.residency(row["pid"], gpu)[0]
        spans = resident[row["pid"]]
        return [span] if spans is None else clipped(span, spans)

    busy = {name: [part for row in own for part in parts(row)] for name, own in rows.items()}
    every = united(part for own in busy.values() for part in own)
    others = [part for row in here if row not in ours and in_window(row, window) for part in parts(row)]
    moved = {
        name: [row for row in export.copies if row["gpu"] == gpu and row["pid"] in pids and in_window(row, window)]
        for name, pids in members.items()
    }
    copied = {name: [(row, parts(row)) for row in own] for name, own in moved.items()}
    window_ns = window[1] - window[0]
    gaps = holes(every, window)
    overlap = length(both(busy["gen"], busy["embed"])) if len(busy) == 2 else None
    sms = sm_count(export, gpu)
    with_copies = length([*every, *(part for own in copied.values() for _, spans in own for part in spans)])
    overhead = [cut(span, window) for span in export.overhead if max(map(abs, span)) < FAR]
    return {
        "window_ns": window_ns,
        "device.id": gpu,
        "device.sm_count": sms,
        "basis": "residency" if known else "kernel intervals",
        "overlap_is_upper_bound": not known and len(rows) > 1 and mechanism not in ("mps", "mig", "sm-partition"),
        "granularity": granularity([row for own in rows.values() for row in own]),
        "busy_ns": length(every),
        "idle_fraction": 1 - length(every) / window_ns,
        "idle_fraction_with_copies": 1 - with_copies / window_ns,
        "gaps.count": len(gaps),
        "gaps.total_ns": sum(gaps),
        "gaps.mean_us": sum(gaps) / len(gaps) / 1e3 if gaps else None,
        "gaps.p50_us": percentile(gaps, 0.5) / 1e3 if gaps else None,
        "gaps.p99_us": percentile(gaps, 0.99) / 1e3 if gaps else None,
        "gaps.max_us": max(gaps) / 1e3 if gaps else None,
        "gaps.over_10us_count": sum(gap > 10_000 for gap in gaps),
        "overlap_ns": overlap,
        "overlap_of_gen": share(overlap, busy, "gen"),
        "overlap_of_embed": share(overlap, busy, "embed"),
        "other_processes.busy_ns": length(others),
        "profiler_overhead.count": sum(end > start for start, end in overhead),
        "profiler_overhead.busy_ns": length(overhead),
        "absent": sorted(set(members) - set(rows)),
        "lost": export.lost,
        "outside": window[1] <= first or window[0] >= last,
        "workloads": {
            name: workload(export, rows[name], parts, busy[name], copied[name], window, sms, export.gpus.get(gpu, {}))
            for name in rows
        },
    }


def clipped(span: Span, spans: list[Span]) -> list[Span]:
    """The parts of an interval in disjoint, sorted spans."""
    place = max(bisect_right(spans, (span[0], FAR * 4)) - 1, 0)
    found = []
    while place < len(spans) and spans[place][0] < span[1]:
        found.append((max(span[0], spans[place][0]), max(min(span[1], spans[place][1]), span[0])))
        place += 1
    return found


def chosen_device(ran: list[dict[str, Any]], members: dict[str, set[int]]) -> int:
    """Of the GPUs on which every workload that ran did, the one with most of gen's time; else of all; of equals the
    lowest number."""
    work = []
    for pids in members.values():
        time: dict[int, int] = defaultdict(int)
        for row in ran:
            if row["pid"] in pids:
                time[row["gpu"]] += row["end"] - row["start"] + 1
        work += [time] if time else []
    if not work:
        raise Refused("no work")
    shared = [gpu for gpu in work[0] if all(gpu in time for time in work)]
    return max(shared or list(work[0]), key=lambda gpu: (work[0][gpu], -gpu))


def holes(busy: list[Span], window: Span) -> list[int]:
    edges = [window[0], *(moment for span in busy for moment in span), window[1]]
    return [end - start for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]


def share(part: int | None, busy: dict[str, list[Span]], name: str) -> float | None:
    return part / length(busy[name]) if part is not None and length(busy[name]) else None


def granularity(rows: list[dict[str, Any]]) -> str:
    if any(row["graph"] for row in rows):
        return "graph"
    return "node" if any(row.get("graphNodeId") for row in rows) else "kernel"


def sm_count(export: Export, gpu: int) -> int | None:
    count = export.gpus.get(gpu, {}).get("smCount")
    return count if isinstance(count, int) and count > 0 else None


def grid(row: dict[str, Any]) -> int | None:
    sizes = [whole(row.get(f"grid{axis}")) for axis in "XYZ"]
    if row["graph"] or any(size is None for size in sizes):
        return None
    product = sizes[0] * sizes[1] * sizes[2]  # type: ignore[operator]
    return product if product > 0 else None


def workload(
    export: Export, rows: list[dict[str, Any]], parts: Any, busy: list[Span], copied: Any, window: Span,
    sms: int | None, limits: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    def time_of(row: dict[str, Any]) -> int:
        return sum(end - start for start, end in parts(row))

    kernels = [row for row in rows if not row["graph"]]
    shaped = [(blocks, time_of(row)) for row in kernels if (blocks := grid(row)) is not None]
    kernel_time = sum(time_of(row) for row in kernels)
    names: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in kernels:
        names[export.name(row)][0] += 1
        names[export.name(row)][1] += time_of(row)
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, (count, time) in names.items():
        kind = categorise([name])[0]
        kinds[kind][0] += count
        kinds[kind][1] += time
    copy_kinds: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row, spans in copied:
        entry = copy_kinds[row.get("copyKind") or 0]
        entry[0] += 1
        entry[1] += sum(end - start for start, end in spans)
        entry[2] += max(whole(row.get("bytes")) or 0, 0)
    found: dict[str, Any] = {
        "pids": sorted({row["pid"] for row in rows}),
        "kernel_count": len(kernels),
        "graph_launch_count": len(rows) - len(kernels),
        "kernel_time_ns": kernel_time,
        "graph_time_ns": sum(time_of(row) for row in rows if row["graph"]),
        "busy_ns": length(busy),
        "busy_ns_by_kernel_intervals": length(cut((row["start"], row["end"]), window) for row in rows),
        "mean_kernel_us": kernel_time / len(kernels) / 1e3 if kernels else None,
        "unknown_shape_count": len(kernels) - len(shaped),
        "mean_blocks_per_kernel": mean(blocks for blocks, _ in shaped) if shaped else None,
        "one_block_fraction": mean(blocks == 1 for blocks, _ in shaped) if shaped else None,
        "names": {name: tuple(told) for name, told in names.items()},
        "categories": {name: tuple(told) for name, told in kinds.items()},
        "copies": sorted(tuple(entry) for entry in copy_kinds.values()),
        "copies_busy_ns": length(part for _, spans in copied for part in spans),
    }
    if shaped and sms:
        fill = [(min(blocks / sms, 1.0), time) for blocks, time in shaped]
        half = [(float(blocks < sms / 2), time) for blocks, time in shaped]
        found |= {
            "sm_occupancy_by_count": mean(value for value, _ in fill),
            "sm_occupancy_by_time": by_time(fill),
            "under_half_device.by_count": mean(value for value, _ in half),
            "under_half_device.by_time": by_time(half),
            "full_device_fraction": mean(blocks >= sms for blocks, _ in shaped),
            "resident_occupancy_by_time": by_time(resident_fills(kernels, time_of, sms, limits)),
        }
    return found


def by_time(values: list[tuple[float, int]]) -> float | None:
    total = sum(time for _, time in values)
    return sum(value * time for value, time in values) / total if total else None


def resident_fills(kernels: Any, time_of: Any, sms: int, limits: dict[str, Any]) -> list[tuple[float, int]]:
    """CUDA's occupancy arithmetic: the warps that are on the device at once over the most that it holds."""
    most = [limits.get(name) for name in ("maxBlocksPerSm", "maxWarpsPerSm", "maxRegistersPerSm", "maxShmemPerSm")]
    if not all(isinstance(limit, int) and limit > 0 for limit in most):
        return []
    most_blocks, most_warps, most_registers, most_shared = most
    found = []
    for row in kernels:
        names = ("blockX", "blockY", "blockZ", "registersPerThread", "staticSharedMemory", "dynamicSharedMemory")
        sizes = [whole(row.get(name)) for name in names]
        blocks = grid(row)
        if blocks is None or any(size is None for size in sizes) or not sizes[0] * sizes[1] * sizes[2]:  # type: ignore[operator]
            continue
        x, y, z, registers, fixed, dynamic = sizes
        warps = ceil(x * y * z / 32)  # type: ignore[operator]
        shared = ceil((fixed + dynamic + 1024) / 128) * 128  # type: ignore[operator]
        fits = min(most_blocks, most_warps // warps)
        fits = min(fits, most_registers // 256 // (ceil(max(registers, 1) * 32 / 256) * warps))  # type: ignore[type-var]
        fits = max(min(fits, most_shared // shared), 1)
        found.append((min(min(blocks, fits * sms) * warps / (sms * most_warps), 1.0), time_of(row)))
    return found
