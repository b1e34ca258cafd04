"""The one place that knows the tables and columns of Nsight Systems' SQLite exports, of 2022 to 2025.

Tables are written only where there is something to write, and columns come and go: everything is probed. A column
that a file lacks is read as the constant given here; a table that it lacks is an empty frame and a stated omission.

Which GPU a number means is known here too, and when which context was resident on it. A process that sees one GPU of
several calls it 0: numbers alone would put two GPUs into one.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colo_lib.errors import InputError
from colo_lib.trace import UNKNOWN, Device, Ints, Switches

Tables = Mapping[str, tuple[str, ...]]
Columns = dict[str, Any]  # our column -> its array, of the type that frames have it in
ACTIVITY = ("KERNEL", "GRAPH_TRACE", "MEMCPY", "MEMSET")
NAME_COLUMNS = ("demangledName", "shortName", "mangledName")
# Making a Python integer of every value is what reading costs, so small values share one: a row's process and device
# (a serialised pid has 24 low bits to spare), its correlation id and stream, its block's threads, registers, shared
# bytes and whether it is a graph's node. `unpacked`, below, takes them apart. Times, names and grids, on which every
# number rests, stand alone, so that what is no integer is seen.
OWNER = "(coalesce(globalPid, 0) & -16777216) | deviceId;0"
LINK = "(correlationId & 4294967295) | (streamId << 32);0"
SHAPE = (
    "((blockX * blockY * blockZ) & 65535) | ((registersPerThread & 4095) << 16)"
    " | ((staticSharedMemory + dynamicSharedMemory) << 32);0"
)
RANGES = {
    "deviceId": 16_777_215,
    "blockX * blockY * blockZ": 65_535,
    "registersPerThread": 4_095,
    "(staticSharedMemory + dynamicSharedMemory)": 2**31 - 1,
}
NODE = "(graphNodeId IS NOT NULL AND graphNodeId <> 0) << 31"
BASE = {"start_ns": '"start"', "end_ns": '"end"', "owner": OWNER, "link": LINK}
# our column -> SQL over the table's columns, and after ";" what stands in where one of them is absent
COLUMNS = {
    "KERNEL": BASE | {"name": "", "blocks": "gridX * gridY * gridZ;0", "shape": ""},
    "GRAPH_TRACE": BASE,
    "MEMCPY": BASE | {"kind": "copyKind;0", "size_bytes": "bytes;0"},
    "MEMSET": BASE | {"size_bytes": "bytes;0"},
    "RUNTIME": {
        "start_ns": '"start"',
        "end_ns": '"end"',
        "owner": "coalesce(globalTid, 0) & -16777216;0",
        "link": "correlationId & 4294967295;0",
    },
}
SWITCH_COLUMNS = {
    "t_ns": "timestamp;NULL",
    "tag": "tag;NULL",
    "global_pid": "globalPid;NULL",
    "context": "contextId;NULL",
    "device": "gpuId;NULL",
    "sequence": "seqNo;0",
}
OVERHEAD_COLUMNS = {
    "start_ns": '"start"',
    "end_ns": '"end"',
    "owner": "coalesce(globalTid, 0) & -16777216;0",
    "name": "nameId;NULL",
}
WORDS = re.compile(r'"?([A-Za-z_]\w*)"?')
SQL_WORDS = {"IS", "NOT", "NULL", "AND", "coalesce"}


def unpacked(columns: Mapping[str, Ints]) -> Columns:
    """Columns as they were read, with the packed ones taken apart, for whoever makes frames of them.

    `OWNER` gives pid and device; `LINK` correlation and stream; `SHAPE` threads, registers, shared_bytes and node.
    """
    apart: Columns = {name: column for name, column in columns.items() if name not in ("owner", "link", "shape")}
    if "owner" in columns:
        apart |= {"pid": (columns["owner"] >> 24) & 0xFFFFFF, "device": columns["owner"] & 0xFFFFFF}
    if "link" in columns:
        link = columns["link"]
        apart |= {"correlation": link.astype(np.uint32), "stream": (link >> 32).astype(np.int32)}
    if "shape" in columns:
        block_shape = columns["shape"]
        apart |= {
            "threads": (block_shape & 0xFFFF).astype(np.int32),
            "registers": ((block_shape >> 16) & 0xFFF).astype(np.int16),
            "shared_bytes": np.clip(block_shape >> 32, *_limits(np.int32)).astype(np.int32),
            "node": ((block_shape >> 31) & 1).astype(np.bool_),
        }
    return apart


def _limits(kind: Any) -> tuple[int, int]:
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


@dataclass(frozen=True)
class Source:
    """A table of one file and the SQL expressions that give our columns from it."""

    table: str
    columns: Mapping[str, str]


def number_columns(tables: Tables, table: str) -> list[str]:
    """Columns of an activity table that expressions compute with, where what is no number would pass for one."""
    expressions = " ".join(item for kind in ACTIVITY for item in (*COLUMNS[kind].values(), SHAPE) if ";" in item)
    used = {word.lower() for word in WORDS.findall(expressions)} - {"correlationid", "streamid"}  # ids, not summed
    return [f'"{column}"' for column in tables[table] if column.lower() in used and '"' not in column]


def out_of_range(tables: Tables, table: str) -> list[str]:
    """Conditions for rows with a number that does not fit its place in `OWNER` or `SHAPE`."""
    have = {column.lower() for column in tables[table]}
    return [
        f"{sql} NOT BETWEEN 0 AND {most}"
        for sql, most in RANGES.items()
        if {word.lower() for word in WORDS.findall(sql)} <= have
    ]


def find_table(tables: Tables, base: str) -> str | None:
    """The table of that name, or its newest version: some exports have `_V2` and `_V3` beside or instead."""
    versions = {
        int(version[1] or 1): name for name in tables if (version := re.fullmatch(rf"{base}(?:_V(\d+))?", name))
    }
    return versions[max(versions)] if versions else None


def activity_source(tables: Tables, kind: str) -> Source | None:
    """Where the rows of `kind` (a key of `COLUMNS`) are, or None. Raises InputError for one without times."""
    table = find_table(tables, f"CUPTI_ACTIVITY_KIND_{kind}")
    return None if table is None else source(tables, table, COLUMNS[kind])


def source(tables: Tables, table: str, wanted: Mapping[str, str]) -> Source:
    """`wanted` as this table can give it; raises InputError where a column without a stand-in is missing."""
    have = {column.lower() for column in tables[table]}
    columns = {ours: _expression(ours, expression, have, table) for ours, expression in wanted.items()}
    return Source(table, columns)


def _expression(ours: str, expression: str, have: set[str], table: str) -> str:
    if ours == "name" and not expression:
        return next((name for name in NAME_COLUMNS if name.lower() in have), "NULL")
    if ours == "owner" and expression == OWNER and not {"globalpid", "deviceid"} <= have:
        # A file without one of the two still tells the other.
        pid = "coalesce(globalPid, 0) & -16777216" if "globalpid" in have else "0"
        return f"({pid}) | {'deviceId' if 'deviceid' in have else '0'}"
    if ours == "shape":
        # A shape of which a part is NULL is 0, no threads: not known. It must not take the node along.
        block_shape = f"coalesce({_stand_in(SHAPE, have, table)}, 0)"
        return f"({block_shape}) | ({NODE})" if "graphnodeid" in have else block_shape
    return _stand_in(expression, have, table)


def _stand_in(expression: str, have: set[str], table: str) -> str:
    head, bar, stand_in = expression.rpartition(";")
    sql = head if bar else expression
    missing = {word for word in WORDS.findall(sql) if word not in SQL_WORDS and word.lower() not in have}
    if missing and not bar:
        raise InputError(f"table {table} has no column {sorted(missing)[0]!r}, so its rows have no place in time")
    return stand_in if missing else sql


def first_row(connection: sqlite3.Connection, tables: Tables, table: str) -> dict[str, object]:
    """The first row of a small table by column name; empty where there is none."""
    if not tables.get(table):
        return {}
    row = connection.execute(f'SELECT * FROM "{table}" LIMIT 1').fetchone()
    return dict(zip(tables[table], row, strict=True)) if row else {}


def rows_of(connection: sqlite3.Connection, tables: Tables, table: str, most: int = 100_000) -> list[dict[str, object]]:
    """Rows of a small table by column name, `most` at the most; empty where the table is absent."""
    if not tables.get(table):
        return []
    rows = connection.execute(f'SELECT * FROM "{table}" LIMIT {most}').fetchall()
    return [dict(zip(tables[table], row, strict=True)) for row in rows]


def export_facts(connection: sqlite3.Connection, tables: Tables) -> dict[str, str]:
    """META_DATA_EXPORT: product, versions and parameters of the export; empty in files that have none."""
    return {str(row.get("name")): str(row.get("value")) for row in rows_of(connection, tables, "META_DATA_EXPORT")}


MOST_DEVICES = 4096
GPU_TABLES = ("TARGET_INFO_GPU", "TARGET_INFO_CUDA_GPU")
LIMITS = {
    "blocks": "maxBlocksPerSm",
    "warps": "maxWarpsPerSm",
    "registers": "maxRegistersPerSm",
    "shared_bytes": "maxShmemPerSm",
}


@dataclass
class DeviceMap:
    """`devices`: the GPUs that work ran on, in the order met; `numbers`: (pid, CUDA device) -> GPU number."""

    devices: list[Device]
    numbers: Mapping[tuple[int, int], int]
    known: Mapping[int, Device] | None = None

    def places(self, device: Ints, process: NDArray[np.int16], pids: Mapping[int, int]) -> NDArray[np.int16]:
        """Places in `devices` of a block's device numbers, `process` being places in `pids`."""
        order, most = list(pids), int(device.max(initial=0)) + 1
        if not 0 <= int(device.min(initial=0)) <= most <= MOST_DEVICES:
            raise InputError(f"device numbers up to {most - 1}: this is no export of Nsight Systems")
        inverse = process.astype(np.int64) * most + device
        distinct = np.flatnonzero(np.bincount(inverse))
        places = []
        for value in distinct.tolist():
            pid, cuda = order[value // most], value % most
            places.append(self._place(self.numbers.get((pid, cuda), self.numbers.get((0, cuda), cuda))))
        table = np.zeros(len(order) * most, np.int16)
        table[distinct] = places
        return table[inverse]

    def place_of_number(self, number: int) -> int:
        """Place of a GPU by its own number, as context switches name it."""
        return self._place(number)

    def _place(self, number: int) -> int:
        device = (self.known or {}).get(number) or Device(f"gpu {number}", number, f"GPU {number}", None)
        if device not in self.devices:
            self.devices.append(device)
        return self.devices.index(device)


def read_devices(connection: sqlite3.Connection, tables: Tables) -> DeviceMap:
    """The GPUs that the export describes; a number that it does not describe becomes a device without a name."""
    table = next((name for name in GPU_TABLES if name in tables), "")
    cuda = rows_of(connection, tables, "TARGET_INFO_CUDA_DEVICE")
    sms = {row.get("gpuId"): row.get("numMultiprocessors") for row in cuda}
    numbers = {}
    for row in cuda:
        pid, number, gpu = row.get("pid") or 0, row.get("cudaId"), row.get("gpuId")
        if isinstance(pid, int) and isinstance(number, int) and isinstance(gpu, int):
            numbers[pid, number] = gpu
    known = {}
    for row in rows_of(connection, tables, table):
        number = row.get("id", row.get("gpuId"))
        if isinstance(number, int):
            known[number] = _device(row, number, row.get("smCount") or sms.get(number))
    return DeviceMap([], numbers, known)


def _device(row: Mapping[str, object], number: int, sm_count: object) -> Device:
    key = next((str(row[name]) for name in ("uuid", "busLocation") if row.get(name)), f"gpu {number}")
    limits = {ours: value for ours, theirs in LIMITS.items() if isinstance(value := row.get(theirs), int) and value > 0}
    count = sm_count if isinstance(sm_count, int) and sm_count > 0 else None
    return Device(key, number, str(row.get("name") or f"GPU {number}"), count, limits)


TABLE = "GPU_CONTEXT_SWITCH_EVENTS"
# tag -> name, as ENUM_GPU_CTX_SWITCH of 2024.2 has it; where the file's own table names a tag otherwise, that holds
TAGS = {
    -1: "UnknownGpuCtxswTag", 0: "SOF", 1: "REQ_BY_HOST", 2: "FE_ACK", 3: "FE_ACK_WFI", 4: "FE_ACK_GFXP",
    5: "FE_ACK_CTAP", 6: "FE_ACK_CILP", 7: "SAVE_END", 8: "RESTORE_START", 9: "CONTEXT_START",
    10: "INVALID_TIMESTAMP", 11: "ENGINE_RESET",
}  # fmt: skip
OPENS, CLOSES = {"RESTORE_START", "CONTEXT_START"}, {"SAVE_END", "ENGINE_RESET"}
FAR_NS = 2**62


def read_switches(connection: sqlite3.Connection, tables: Tables, devices: DeviceMap) -> Switches:
    """Switches in and out, sorted by device and time; none where the export has no such rows.

    A row that names no process (NULL, or 0) or no GPU is one of an UNKNOWN one. Where the export knows one GPU only, a
    row that names none is of that.
    """
    if not tables.get(TABLE):
        return Switches.empty()
    switched = source(tables, TABLE, SWITCH_COLUMNS)
    named = {row.get("id"): row.get("name") for row in rows_of(connection, tables, "ENUM_GPU_CTX_SWITCH")}
    known = set(TAGS.values())
    meaning = TAGS | {tag: name for tag, name in named.items() if isinstance(tag, int) and name in known}
    only = _only_gpu(devices)
    contexts_told = switched.columns["context"] != "NULL"
    rows = []
    for t_ns, tag, serial, context, gpu, sequence in connection.execute(
        f'SELECT {", ".join(switched.columns.values())} FROM "{TABLE}"'
    ):
        word = meaning.get(tag, "") if isinstance(tag, int) else ""
        timed = isinstance(t_ns, int) and abs(t_ns) < FAR_NS
        if word not in OPENS | CLOSES and word:
            continue
        pid = (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else 0
        number = gpu if isinstance(gpu, int) and 0 <= gpu < MOST_DEVICES else only
        order = sequence if isinstance(sequence, int) else 0
        readable = bool(word) and timed and (isinstance(context, int) or not contexts_told)
        rows.append((number, t_ns if timed else 0, order, word in OPENS,
                     context if isinstance(context, int) else UNKNOWN, pid or UNKNOWN, readable))  # fmt: skip
    rows.sort()
    places = {number: UNKNOWN if number == UNKNOWN else devices.place_of_number(number) for number, *_ in rows}
    return Switches(
        t_ns=np.array([row[1] for row in rows], np.int64),
        opens=np.array([row[3] for row in rows], np.bool_),
        device=np.array([places[row[0]] for row in rows], np.int16),
        context=np.array([row[4] for row in rows], np.int64),
        host_pid=np.array([row[5] for row in rows], np.int32),
        session=np.zeros(len(rows), np.int16),
        readable=np.array([row[6] for row in rows], np.bool_),
    )


def _only_gpu(devices: DeviceMap) -> int:
    """The number of the one GPU that the export describes or that work ran on; UNKNOWN where there are several."""
    numbers = {device.number for device in devices.devices} | set(devices.known or {})
    return numbers.pop() if len(numbers) == 1 else UNKNOWN
