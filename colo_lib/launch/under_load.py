"""Put the engines of a placement under load: the client, the embedding processes, who takes turns, who paces."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from colo_lib.launch.engines import Handles
from colo_lib.launch.loads import Loads, start_client, stop_quietly
from colo_lib.launch.orders import order
from colo_lib.launch.pacing import start_order
from colo_lib.launch.placement import Placement
from colo_lib.launch.turns import start_alternator
from colo_lib.params import Params


def connect(
    params: Params, placement: Placement, handles: Handles, runtime: Path, folder: Path, stack: ExitStack
) -> Loads:
    """Everything that will be under load, ready for orders and at rest; the stack ends what was started for it."""
    loads = Loads(None, handles.embeds if placement.runs_embed else ())
    if placement.runs_gen:
        loads.client = start_client(params, handles, runtime, folder, stack)
    return loads


def begin(
    params: Params, placement: Placement, handles: Handles, loads: Loads, runtime: Path, folder: Path, stack: ExitStack
) -> None:
    """Give every workload its work; the stack takes it away again."""
    for name, handle in loads.each():
        order(handle, "start", **(start_order(params, placement) if name == "embed" else {}))
        stack.callback(stop_quietly, handle, runtime)
    if placement.mechanism == "cpu-alternating":
        loads.mechanism.append(start_alternator(params, handles, runtime, folder, stack))
