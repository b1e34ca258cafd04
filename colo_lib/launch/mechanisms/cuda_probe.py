"""A client as small as can be: makes a CUDA context on every GPU it sees and says in one JSON line what it got.

Standard library only, run as a file by any Python under the exact environment of an engine:

    python cuda_probe.py

`{"gpus": [{"name": …, "sms": …}]}`, or `{"error": CODE, "name": …, "at": …}` and exit code 1. Under MPS `sms` is what
the active-thread percentage, or the partition, leaves of the GPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


class CudaError(Exception):
    """A driver call that did not succeed: (code, name, call)."""


def driver_call(cuda: Any, name: str, *arguments: Any) -> None:
    """One driver call; raises CudaError."""
    code = getattr(cuda, name)(*arguments)
    if code:
        said = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(said))
        raise CudaError(code, (said.value or b"unknown").decode(), name)


def gpus() -> list[dict[str, Any]]:
    """Name and visible SMs of every GPU, a context made on each."""
    cuda = ctypes.CDLL("libcuda.so.1")
    driver_call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    driver_call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    visible = []
    for ordinal in range(count.value):
        device, context, sms = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        driver_call(cuda, "cuDeviceGet", ctypes.byref(device), ordinal)
        driver_call(cuda, "cuDeviceGetName", name, 128, device)
        driver_call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        driver_call(cuda, "cuDeviceGetAttribute", ctypes.byref(sms), MULTIPROCESSOR_COUNT, device)
        visible.append({"name": name.value.decode(errors="replace"), "sms": sms.value})
        driver_call(cuda, "cuDevicePrimaryCtxRelease_v2", device)
    return visible


def main() -> int:
    """Print the answer."""
    try:
        reply: dict[str, Any] = {"gpus": gpus()}
    except CudaError as error:
        code, name, where = error.args
        reply = {"error": code, "name": name, "at": where}
    except OSError as error:
        reply = {"error": -1, "name": str(error), "at": "libcuda.so.1"}
    print(json.dumps(reply), flush=True)
    return int("error" in reply)


if __name__ == "__main__":
    sys.exit(main())
