"""GPU memory between engines: nobody starts while another's is still being given back, or where too little is left.

vLLM sizes its cache by what is free when it starts, and stops when that grows while it looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from colo_lib.budget import refuse_if_too_large
from colo_lib.errors import InputError, StepFailed
from colo_lib.gpu_look import look_at_gpus
from colo_lib.memory import budget_here
from colo_lib.params import Params

STILL_GIB = 0.05
STILL_READINGS = 3
POLL_S = 0.5
SETTLE_TIMEOUT_S = 60.0
Read = Callable[[], Mapping[str, float] | None]


def used_gib(devices: tuple[str, ...]) -> dict[str, float] | None:
    """Memory in use on each GPU, GiB; None where NVML does not tell."""
    look = look_at_gpus()
    found: dict[str, float] = {}
    for gpu in look.gpus:
        for name in {str(gpu["index"]), str(gpu["uuid"])} & set(devices):
            if gpu["total_gib"] is None or gpu["free_gib"] is None:
                return None
            found[name] = gpu["total_gib"] - gpu["free_gib"]
    return found or None


def wait_still(read: Read, timeout_s: float = SETTLE_TIMEOUT_S, poll_s: float = POLL_S) -> Mapping[str, float] | None:
    """Until `STILL_READINGS` readings in a row differ by no more than `STILL_GIB`; the last, None where none is told.

    Raises StepFailed naming the GPU whose memory is still moving when the time is over.
    """
    deadline, readings = time.monotonic() + timeout_s, list[Mapping[str, float]]()
    while True:
        now = read()
        if now is None:
            return None
        readings = [*readings[1 - STILL_READINGS :], now]
        moving = [name for name in now if _spread(readings, name) > STILL_GIB]
        if len(readings) == STILL_READINGS and not moving:
            return now
        if time.monotonic() > deadline:
            raise StepFailed(
                f"memory of GPU {', '.join(moving or now)} still moves after {timeout_s:g} s: somebody else loads or "
                "ends a model there; wait for it, or choose another GPU in devices"
            )
        time.sleep(poll_s)


def _spread(readings: list[Mapping[str, float]], name: str) -> float:
    values = [reading.get(name, 0.0) for reading in readings]
    return max(values) - min(values)


def check_room(params: Params) -> None:
    """Raises StepFailed, with the numbers, when the GPUs have no longer room for what the run puts there."""
    try:
        refuse_if_too_large(budget_here(params))
    except InputError as error:
        raise StepFailed(
            f"{error}\nSomebody else holds it (nvidia-smi says who), or a process of an earlier trial hangs in the "
            "driver: then only a restart of the host helps"
        ) from None


def before_engines(params: Params, devices: tuple[str, ...]) -> None:
    """Wait until the GPUs' memory is still, then see that there is room; nothing to do where cores stand in."""
    if params.device == "cuda":
        wait_still(lambda: used_gib(devices))
        check_room(params)
