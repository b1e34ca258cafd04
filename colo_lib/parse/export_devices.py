"""GPUs of an export: which physical device a process's device number means.

A process that sees one GPU of several calls it 0: numbers alone would put two GPUs into one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colo_lib.errors import InputError
from colo_lib.parse import export_tables as schema
from colo_lib.traces import Device, Ints

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
