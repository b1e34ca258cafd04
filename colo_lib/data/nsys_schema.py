"""The one place that knows the tables and columns of Nsight Systems' SQLite exports, of 2022 to 2025.

Tables are written only where there is something to write, and columns come and go: everything is probed. A column
that a file lacks is read as the constant given here; a table that it lacks is an empty frame and a stated omission.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.errors import InputError
from colo_lib.trace import Ints

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
    told: Columns = {name: column for name, column in columns.items() if name not in ("owner", "link", "shape")}
    if "owner" in columns:
        told |= {"pid": (columns["owner"] >> 24) & 0xFFFFFF, "device": columns["owner"] & 0xFFFFFF}
    if "link" in columns:
        link = columns["link"]
        told |= {"correlation": link.astype(np.uint32), "stream": (link >> 32).astype(np.int32)}
    if "shape" in columns:
        shape = columns["shape"]
        told |= {
            "threads": (shape & 0xFFFF).astype(np.int32),
            "registers": ((shape >> 16) & 0xFFF).astype(np.int16),
            "shared_bytes": np.clip(shape >> 32, *_limits(np.int32)).astype(np.int32),
            "node": ((shape >> 31) & 1).astype(np.bool_),
        }
    return told


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
    versions = {int(found[1] or 1): name for name in tables if (found := re.fullmatch(rf"{base}(?:_V(\d+))?", name))}
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
        shape = f"coalesce({_stand_in(SHAPE, have, table)}, 0)"
        return f"({shape}) | ({NODE})" if "graphnodeid" in have else shape
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
