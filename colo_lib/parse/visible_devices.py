"""Whose device 0 is which GPU: the launcher's word, where an export has only each process's own numbers.

CUDA numbers the GPUs that a process sees from 0. Exports without TARGET_INFO_CUDA_DEVICE (seen with Nsight Systems
2024.2) keep these numbers: of two processes that see one GPU each, both work on "device 0".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from colo_lib.traces import Capture, Device


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
