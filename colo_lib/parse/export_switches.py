"""GPU context switches of an export: when which context became resident, and when it left."""

from __future__ import annotations

import sqlite3

import numpy as np

from colo_lib.parse import export_tables as schema
from colo_lib.parse.export_devices import MOST_DEVICES, DeviceMap
from colo_lib.traces import UNKNOWN, Switches

TABLE = "GPU_CONTEXT_SWITCH_EVENTS"
# tag -> name, as ENUM_GPU_CTX_SWITCH of 2024.2 has it; where the file's own table names a tag otherwise, that holds
TAGS = {
    -1: "UnknownGpuCtxswTag", 0: "SOF", 1: "REQ_BY_HOST", 2: "FE_ACK", 3: "FE_ACK_WFI", 4: "FE_ACK_GFXP",
    5: "FE_ACK_CTAP", 6: "FE_ACK_CILP", 7: "SAVE_END", 8: "RESTORE_START", 9: "CONTEXT_START",
    10: "INVALID_TIMESTAMP", 11: "ENGINE_RESET",
}  # fmt: skip
OPENS, CLOSES = {"RESTORE_START", "CONTEXT_START"}, {"SAVE_END", "ENGINE_RESET"}
FAR_NS = 2**62


def read_switches(connection: sqlite3.Connection, tables: schema.Tables, devices: DeviceMap) -> Switches:
    """Switches in and out, sorted by device and time; none where the export has no such rows.

    A row that names no process (NULL, or 0) or no GPU is one of an UNKNOWN one. Where the export knows one GPU only, a
    row that names none is of that.
    """
    if not tables.get(TABLE):
        return Switches.empty()
    source = schema.source(tables, TABLE, schema.SWITCH_COLUMNS)
    named = {row.get("id"): row.get("name") for row in schema.rows_of(connection, tables, "ENUM_GPU_CTX_SWITCH")}
    known = set(TAGS.values())
    meaning = TAGS | {tag: name for tag, name in named.items() if isinstance(tag, int) and name in known}
    only = _only_gpu(devices)
    contexts_told = source.columns["context"] != "NULL"
    rows = []
    for t_ns, tag, serial, context, gpu, sequence in connection.execute(
        f'SELECT {", ".join(source.columns.values())} FROM "{TABLE}"'
    ):
        word = meaning.get(tag, "") if isinstance(tag, int) else ""
        timed = isinstance(t_ns, int) and abs(t_ns) < FAR_NS
        if word not in OPENS | CLOSES and word:
            continue
        pid = (serial >> 24) & 0xFFFFFF if isinstance(serial, int) else 0
        number = gpu if isinstance(gpu, int) and 0 <= gpu < MOST_DEVICES else only
        order = sequence if isinstance(sequence, int) else 0
        told = bool(word) and timed and (isinstance(context, int) or not contexts_told)
        rows.append((number, t_ns if timed else 0, order, word in OPENS,
                     context if isinstance(context, int) else UNKNOWN, pid or UNKNOWN, told))  # fmt: skip
    rows.sort()
    places = {number: UNKNOWN if number == UNKNOWN else devices.place_of_number(number) for number, *_ in rows}
    return Switches(
        t_ns=np.array([row[1] for row in rows], np.int64),
        opens=np.array([row[3] for row in rows], np.bool_),
        device=np.array([places[row[0]] for row in rows], np.int16),
        context=np.array([row[4] for row in rows], np.int64),
        host_pid=np.array([row[5] for row in rows], np.int32),
        session=np.zeros(len(rows), np.int16),
        told=np.array([row[6] for row in rows], np.bool_),
    )


def _only_gpu(devices: DeviceMap) -> int:
    """The number of the one GPU that the export describes or that work ran on; UNKNOWN where there are several."""
    numbers = {device.number for device in devices.devices} | set(devices.known or {})
    return numbers.pop() if len(numbers) == 1 else UNKNOWN
