"""Lanes: where a pass of the embedder runs on the device, each with its own share of the SMs.

On CUDA a lane is a low-priority stream, of a green context unless it has every SM, with CUDA graphs of its own. On
cores that stand in it is a number of threads. `make_lanes` makes one for each wanted size, once.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SM_HOLD = Path(__file__).parents[1] / "mechanisms" / "sm_hold.py"
# Passes before a capture: libraries make their handles and workspaces, kernels are loaded.
WARM_PASSES = 3
# CUdevResource (cuda.h): a type and 92 bytes, then the number of SMs.
RESOURCE_BYTES, SM_COUNT_AT, SM_RESOURCE = 256, 96, 1

# (sequences, tokens) ids on the device to (sequences, width) vectors there.
Pass = Callable[[Any], Any]


def sm_hold() -> Any:
    """The module `mechanisms/sm_hold.py`, by path: its package needs libraries that engines lack."""
    spec = importlib.util.spec_from_file_location("colo_sm_hold", SM_HOLD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CoreLane:
    """Some of the cores: how many threads this thread's operators may use."""

    def __init__(self, wanted: int, all_cores: int, embed: Pass) -> None:
        import torch

        self.wanted, self.given, self.embed = wanted, min(wanted or all_cores, all_cores), embed
        # vLLM puts a refusal in the place of torch.set_num_threads; the count is each thread's own (OpenMP).
        self.set_threads = torch._C.set_num_threads
        self.facts = {"wanted": wanted, "held_sms": self.given, "all_sms": all_cores, "backend": "threads"}
        self.may_capture = False

    def told(self) -> dict[str, Any]:
        """What it is, for the records."""
        return self.facts

    def run(self, ids: Any) -> Any:
        """Vectors of one pass, on the host."""
        self.set_threads(self.given)
        return self.embed(ids)


class CudaLane:
    """A stream with its share of the SMs; a graph for each shape of a pass, where the model can be captured."""

    def __init__(self, stream: Any, facts: dict[str, Any], embed: Pass, context: Any = None) -> None:
        self.stream, self.facts, self.embed = stream, facts, embed
        self.context = context  # of the stream, which would end with it
        self.graphs: dict[tuple[int, ...], Any] = {}
        self.why_eager = ""
        # While the engine works none is captured: its own random numbers, drawn meanwhile, would be refused.
        self.may_capture = True

    def run(self, ids: Any) -> Any:
        """(sequences, tokens) ids of the host to vectors, back on the host; waits without holding the interpreter."""
        import torch

        shape = tuple(ids.shape)
        if shape not in self.graphs:
            self.graphs[shape] = self.captured(ids) if self.may_capture else None
            if not self.may_capture:
                self.why_eager = f"passes of {shape[0]} sequences: captured are whole batches"
        held = self.graphs[shape]
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            if held is None:
                vectors = self.embed(ids.to("cuda", non_blocking=True))
                host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
                done = torch.cuda.Event(blocking=True)
            else:
                graph, inputs, vectors, host, done = held
                inputs.copy_(ids, non_blocking=True)
                graph.replay()
            host.copy_(vectors, non_blocking=True)
            done.record(self.stream)
        done.synchronize()
        return host

    def captured(self, ids: Any) -> Any:
        """(graph, its inputs, its vectors, their place on the host, an event); None where it cannot be captured.

        Errors of capture are this thread's alone: the engine's thread may allocate and wait meanwhile.
        """
        import torch

        with torch.inference_mode():
            try:
                inputs = ids.to("cuda")
                with torch.cuda.stream(self.stream):
                    for _ in range(WARM_PASSES):
                        self.embed(inputs)
                self.stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    vectors = self.embed(inputs)
                host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
                return graph, inputs, vectors, host, torch.cuda.Event(blocking=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                print(f"embed: no CUDA graph on {self.facts['held_sms']} SMs: {self.why_eager}", flush=True)
                return None

    def told(self) -> dict[str, Any]:
        """What it is, for the records."""
        return self.facts | {"graphs": not self.why_eager, "why_eager": self.why_eager}


def all_sms() -> int:
    """SMs of the current device."""
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def granted_sms(stream: Any) -> int | None:
    """How many SMs the driver gave to the green context of a stream; None where it does not tell.

    `cuStreamGetGreenCtx`, `cuGreenCtxGetDevResource` (CUDA 12.4).
    """
    with contextlib.suppress(OSError, AttributeError):
        cuda = ctypes.CDLL("libcuda.so.1")
        context, resource = ctypes.c_void_p(), ctypes.create_string_buffer(RESOURCE_BYTES)
        if cuda.cuStreamGetGreenCtx(ctypes.c_void_p(stream.cuda_stream), ctypes.byref(context)) or not context.value:
            return None
        if cuda.cuGreenCtxGetDevResource(context, resource, SM_RESOURCE):
            return None
        return ctypes.c_uint.from_buffer(resource, SM_COUNT_AT).value
    return None


def green_stream(sms: int) -> tuple[Any, dict[str, Any], Any]:
    """(stream, facts, what has to be kept) of at least `sms` SMs; raises RuntimeError with each way's reason.

    Through torch where its green contexts have streams, else through cuda-bindings.
    """
    import torch

    reasons, hold = [], sm_hold()
    kind = getattr(getattr(torch.cuda, "green_contexts", None), "GreenContext", None)
    if kind is not None and hasattr(kind, "Stream"):
        try:
            context = kind.create(num_sms=sms) if hasattr(kind, "create") else kind(num_sms=sms)
            stream = context.Stream()
            if (given := granted_sms(stream)) is not None:
                return stream, {"backend": "torch green context", "held_sms": given}, context
            reasons.append("torch: the driver does not tell how many SMs its green context got")
        except (RuntimeError, TypeError, AttributeError) as error:
            reasons.append(f"torch: {error}")
    else:
        reasons.append(f"torch {torch.__version__} makes no streams of green contexts")
    try:
        stream, split = hold.green_context_stream(sms)
        return stream, {"backend": "green context", "held_sms": granted_sms(stream) or split}, None
    except hold.CannotHold as error:
        reasons.append(f"cuda-bindings: {error}")
    raise RuntimeError(f"inproc_embed_sms: no green context of {sms} SMs: " + "; ".join(reasons))


def make_lanes(sizes: Sequence[int], embed: Pass, device: str, cores: int) -> dict[int, Any]:
    """Size as asked for -> its lane. `embed` runs a pass on the current stream; `cores`: where they stand in.

    Raises RuntimeError for SMs that cannot be had.
    """
    if device == "cpu":
        return {size: CoreLane(size, cores, embed) for size in sizes}
    return {size: _cuda_lane(size, embed) for size in sizes}


def _cuda_lane(size: int, embed: Pass) -> CudaLane:
    """With the check that it holds: a fixed product on all SMs and on its own."""
    import torch

    total, kept = all_sms(), None
    if 0 < size < total:
        stream, facts, kept = green_stream(size)
    else:
        # 0 is the lowest priority there is.
        stream, facts = torch.cuda.Stream(priority=0), {"backend": "low priority", "held_sms": total}
    facts |= {"wanted": size, "all_sms": total} | timed_product(stream)
    return CudaLane(stream, facts, embed, kept)


def timed_product(stream: Any) -> dict[str, float]:
    """Mean time of a fixed matrix product on a stream of all SMs and on `stream`, ms (`sm_hold.product_ms`)."""
    import torch

    hold = sm_hold()
    with torch.inference_mode():
        with torch.cuda.stream(torch.cuda.Stream()):
            free_ms = hold.product_ms()
        with torch.cuda.stream(stream):
            held_ms = hold.product_ms()
    return {"free_ms": free_ms, "held_ms": held_ms}


@contextlib.contextmanager
def high_priority_streams() -> Iterator[None]:
    """Streams that torch makes inside get the highest priority: what is captured on them keeps it in its graphs."""
    import torch

    kind, make = torch.cuda.Stream, torch.cuda.Stream.__new__
    highest = kind.priority_range()[1]

    def new(cls: Any, device: Any = None, priority: int | None = None, **more: Any) -> Any:
        # With more it is a stream that there is already, of the priority that it has.
        given = (0 if more else highest) if priority is None else priority
        return make(cls, device, given, **more)

    # The class stays the one that it is: others may ask whether something is a stream.
    kind.__new__ = new
    try:
        yield
    finally:
        kind.__new__ = make
