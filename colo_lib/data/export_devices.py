"""Devices of an export: which GPU a number means, and when which context was resident on it.

GPUs of an export: which physical device a process's device number means.

A process that sees one GPU of several calls it 0: numbers alone would put two GPUs into one.

GPU context switches of an export: when which context became resident, and when it left.

Whose device 0 is which GPU: the launcher's word, where an export has only each process's own numbers.

CUDA numbers the GPUs that a process sees from 0. Exports without TARGET_INFO_CUDA_DEVICE (seen with Nsight Systems
2024.2) keep these numbers: of two processes that see one GPU each, both work on "device 0".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from colo_lib.data import nsys_schema as schema
from colo_lib.errors import InputError
from colo_lib.trace import UNKNOWN, Capture, Device, Ints, Switches

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


def read_devices(connection: sqlite3.Connection, tables: schema.Tables) -> DeviceMap:
    """The GPUs that the export describes; a number that it does not describe becomes a device without a name."""
    table = next((name for name in GPU_TABLES if name in tables), "")
    cuda = schema.rows_of(connection, tables, "TARGET_INFO_CUDA_DEVICE")
    sms = {row.get("gpuId"): row.get("numMultiprocessors") for row in cuda}
    numbers = {}
    for row in cuda:
        pid, number, gpu = row.get("pid") or 0, row.get("cudaId"), row.get("gpuId")
        if isinstance(pid, int) and isinstance(number, int) and isinstance(gpu, int):
            numbers[pid, number] = gpu
    known = {}
    for row in schema.rows_of(connection, tables, table):
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


def on_their_gpus(capture: Capture, visible: Mapping[str, Sequence[str]]) -> Capture:
    """The capture with each process's devices replaced by the GPUs that it sees.

    `visible`: pid -> GPUs in the order in which the process sees them, by index or UUID (capture.json's
    `visible_devices`); a process that it does not name keeps its numbers. An export that tells the GPUs itself is left
    as it is.
    """
    if not visible or any(export.get("devices_told") for export in capture.exports):
        return capture
    devices, known = list(capture.devices), _known(capture)
    table = np.tile(np.arange(len(devices), dtype=np.int16), (max(1, len(capture.processes)), 1))
    for place, process in enumerate(capture.processes):
        names = visible.get(str(process.pid), ())
        for own, device in enumerate(capture.devices):
            if device.number < len(names):
                gpu = known.get(names[device.number].removeprefix("GPU-"), device)
                if gpu not in devices:
                    devices.append(gpu)
                table[place, own] = devices.index(gpu)
    for export in capture.exports:
        export["devices_told"] = True
    kernels = replace(capture.kernels, device=table[capture.kernels.process, capture.kernels.device])
    copies = replace(capture.copies, device=table[capture.copies.process, capture.copies.device])
    return replace(capture, kernels=kernels, copies=copies, devices=devices)


def _known(capture: Capture) -> dict[str, Device]:
    """GPUs by number and by UUID: those that the exports describe, else those that work ran on."""
    described = [Device(**gpu) for export in capture.exports for gpu in export.get("gpus", ())]
    return {name: gpu for gpu in (*described, *capture.devices) for name in (str(gpu.number), gpu.key)}
