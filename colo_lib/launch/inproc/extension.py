"""What vLLM's `--worker-extension-cls` names: its worker process then hosts the embedder in a thread.

    PYTHONPATH=… COLO_INPROC='{"folder": …, "gen_priority": "high"}' vllm serve … \\
        --worker-extension-cls colo_lib.launch.inproc.extension.EmbedBesideGen

vLLM (0.32: `worker_base.init_worker`) appends the class to the bases of its worker, so that `__new__` is called when
the worker is made, in its process, before it goes to the device. Nothing of vLLM is changed: the worker's own methods
are looked at, and on CUDA the streams that it makes get their priority.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from colo_lib.launch.inproc.engine_steps import StepsSeen
from colo_lib.launch.inproc.host import EmbedHost
from colo_lib.launch.inproc.lanes import high_priority_streams
from colo_lib.launch.inproc.names import JOB_NAME


def cuda_mark() -> Callable[[], bool]:
    """Whether the device has done what was launched on the engine's stream until now."""
    import torch

    event = torch.cuda.Event()
    event.record()
    query: Callable[[], bool] = event.query
    return query


def with_high_priority(method: Callable[..., Any], keep_stream: bool = False) -> Callable[..., Any]:
    """`method`, the streams that it makes of high priority; `keep_stream`: its thread goes on on one of them."""

    def around(*arguments: Any, **named: Any) -> Any:
        import torch

        with high_priority_streams():
            output = method(*arguments, **named)
            if keep_stream:
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                torch.cuda.set_stream(stream)
            return output

    return around


class EmbedBesideGen:
    """Appended to the bases of vLLM's worker; has no attribute of its own that could clash with one of vLLM's."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """The worker, and the sleeping thread beside it."""
        worker: Any = super().__new__(cls)
        told = json.loads(os.environ[JOB_NAME])
        rank = int(named["rank"] if "rank" in named else arguments[2])
        on_cuda = told["device"] == "cuda"
        seen = StepsSeen(cuda_mark if on_cuda else None)
        seen.around(worker)
        if on_cuda and told["gen_priority"] == "high":
            worker.init_device = with_high_priority(worker.init_device, keep_stream=True)
            worker.compile_or_warm_up_model = with_high_priority(worker.compile_or_warm_up_model)
        host = EmbedHost(told["folder"], rank, seen, worker)
        shutdown: Callable[[], Any] | None = getattr(worker, "shutdown", None)

        def end_both() -> None:
            host.end()
            if shutdown is not None:
                shutdown()

        worker.shutdown = end_both
        host.start()
        return worker
