"""Holds this process's GPU work to some of the SMs, and times a fixed matrix product to show that the hold holds.

Needs torch, nothing else of this package. `embed_worker` loads it by path; run as a file by the engine's interpreter it
verifies and prints one JSON line:

    python sm_hold.py '{"backend": "green-context", "sms": 32}'

`backend`: `green-context` (a CUDA green context's stream, through cuda-bindings), `libsmctrl` (a mask over TPCs,
through the library that `library` names) or `none` (time only: the environment holds the process, if anything does).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

SIDE = 4096  # of the matrices: compute-bound on every card listed, a few ms on a whole one
ROUNDS = 20


class CannotHold(Exception):
    """This backend does not work here; the message says why."""


def hold(spec: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """A context in which this thread's work runs on the SMs that `spec` gives it; raises CannotHold.

    Sets `spec["held_sms"]` to the SMs that it was given: backends round up to whole clusters or TPCs.
    """
    backends: dict[str, Callable[[dict[str, Any]], contextlib.AbstractContextManager[Any]]] = {
        "none": lambda _: contextlib.nullcontext(),
        "green-context": green_stream,
        "libsmctrl": masked,
    }
    return backends[spec["backend"]](spec)


def green_stream(spec: dict[str, Any]) -> Any:
    """A torch stream of a green context over at least `sms` SMs."""
    import torch

    stream, spec["held_sms"] = green_context_stream(spec["sms"])
    # The new stream waits for nothing: what was begun on others must be done.
    torch.cuda.synchronize()
    return torch.cuda.stream(stream)


def green_context_stream(sms: int) -> tuple[Any, int]:
    """A torch stream of a new green context on the current device, through cuda-bindings, and the SMs that it got.

    The context is never destroyed: it lasts as long as the process. Raises CannotHold.
    """
    import torch

    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CannotHold(f"cuda-bindings does not import: {error}") from None

    def call(name: str, *arguments: Any) -> Any:
        if not hasattr(driver, name):
            raise CannotHold(f"these cuda-bindings have no {name}: CUDA 12.4 or newer is needed")
        code, *rest = getattr(driver, name)(*arguments)
        if int(code):
            raise CannotHold(f"{name}: {code.name}")
        return rest[0] if len(rest) == 1 else rest

    torch.cuda.init()
    device = call("cuDeviceGet", torch.cuda.current_device())
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    everything = call("cuDeviceGetDevResource", device, kind)
    if sms >= everything.sm.smCount:
        raise CannotHold(f"{sms} SMs are asked for, and the GPU has {everything.sm.smCount}")
    groups, _, _ = call("cuDevSmResourceSplitByCount", 1, everything, 0, sms)
    descriptor = call("cuDevResourceGenerateDesc", groups[:1], 1)
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = call("cuGreenCtxCreate", descriptor, device, flags)
    stream = call("cuGreenCtxStreamCreate", context, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, 0)
    return torch.cuda.ExternalStream(int(stream)), int(groups[0].sm.smCount)


@contextlib.contextmanager
def masked(spec: dict[str, Any]) -> Any:
    """A global TPC mask of libsmctrl, lifted at the end; a TPC holds two SMs on every architecture it supports."""
    import torch

    try:
        library = ctypes.CDLL(spec["library"])
        set_mask = library.libsmctrl_set_global_mask
    except (OSError, AttributeError) as error:
        raise CannotHold(f"libsmctrl: {error}") from None
    set_mask.argtypes, set_mask.restype = [ctypes.c_uint64], None
    tpcs = torch.cuda.get_device_properties(0).multi_processor_count // 2
    if tpcs > 64:
        raise CannotHold(f"libsmctrl: its mask covers 64 TPCs, this GPU has {tpcs}")
    wanted = -(-spec["sms"] // 2)
    if wanted >= tpcs:
        raise CannotHold(f"sm_partition_embed_sms = {spec['sms']}, and the GPU has {2 * tpcs}")
    spec["held_sms"] = 2 * wanted
    # A set bit forbids a TPC.
    set_mask((2**64 - 1) & ~(2**wanted - 1))
    try:
        yield
    finally:
        set_mask(0)


def product_ms() -> float:
    """Mean time of one bf16 matrix product on the current stream, ms; after warm-up, by CUDA events."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(5):
        a @ b
    begin.record()
    for _ in range(ROUNDS):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / ROUNDS


def timed_hold(spec: dict[str, Any]) -> dict[str, Any]:
    """Time of the product on all visible SMs and under the hold, and how many SMs each had; raises CannotHold."""
    import torch

    total = torch.cuda.get_device_properties(0).multi_processor_count
    free_ms = product_ms()
    with hold(spec):
        held_ms = product_ms()
    return {"visible_sms": total, "held_sms": spec.get("held_sms"), "free_ms": free_ms, "held_ms": held_ms}


def main() -> int:
    """Verify and print."""
    try:
        reply: dict[str, Any] = timed_hold(json.loads(sys.argv[1]))
    except Exception as error:  # Whatever it is, the owner tells it.
        reply = {"error": str(error) if isinstance(error, CannotHold) else f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(reply), flush=True)
    return int("error" in reply)


if __name__ == "__main__":
    sys.exit(main())
