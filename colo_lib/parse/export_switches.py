"""GPU context switches of an export: when which context became resident, and when it left."""

from __future__ import annotations

import sqlite3

import numpy as np

from colo_lib.parse import export_tables as schema
from colo_lib.parse.export_devices import DeviceMap
from colo_lib.traces import UNKNOWN, Switches

TABLE = "GPU_CONTEXT_SWITCH_EVENTS"
# tag -> name, as ENUM_GPU_CTX_SWITCH has it; the file's own table holds if it has one
TAGS = {7: "SAVE_END", 8: "RESTORE_START", 9: "CONTEXT_START", 11: "ENGINE_RESET"}
OPENS, CLOSES = {"RESTORE_START", "CONTEXT_START"}, {"SAVE_END", "ENGINE_RESET"}


def read_switches(connection: sqlite3.Connection, tables: schema.Tables, devices: DeviceMap) -> Switches:
    """Switches in and out, sorted by device and time; none where the export has no such rows."""
    if not tables.get(TABLE):
        return Switches.empty()
    source = schema.source(tables, TABLE, schema.SWITCH_COLUMNS)
    named = {row.get("id"): str(row.get("name")) for row in schema.rows_of(connection, tables, "ENUM_GPU_CTX_SWITCH")}
    meaning = {**TAGS, **{tag: name for tag, name in named.items() if isinstance(tag, int)}}
    rows = []
    for t_ns, tag, serial, context, gpu, sequence in connection.execute(
        f'SELECT {", ".join(source.columns.values())} FROM "{TABLE}"'
    ):
        word = meaning.get(tag, "")
        if word in OPENS | CLOSES and isinstance(t_ns, int) and abs(t_ns) < 2**62:
            pid = (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else UNKNOWN
            number = gpu if isinstance(gpu, int) else 0
            order = sequence if isinstance(sequence, int) else 0
            rows.append((number, t_ns, order, word in OPENS, context if isinstance(context, int) else 0, pid))
    rows.sort()
    return Switches(
        t_ns=np.array([row[1] for row in rows], np.int64),
        opens=np.array([row[3] for row in rows], np.bool_),
        device=np.array([devices.place_of_number(row[0]) for row in rows], np.int16),
        context=np.array([row[4] for row in rows], np.int64),
        host_pid=np.array([row[5] for row in rows], np.int32),
        session=np.zeros(len(rows), np.int16),
    )
