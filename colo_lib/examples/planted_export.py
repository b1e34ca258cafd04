"""Write SQLite files shaped like Nsight Systems exports, from chosen rows: planted truth for tests, examples, speed.

No profiler ran: `META_DATA_EXPORT` of such a file says SIMULATED, and every page that reads one says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

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
