"""What each engine's device memory is made of: as vLLM tells it in its log, as torch tells it in embed's process."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from colo_lib.launch.engines import Handles
from colo_lib.launch.rpc import call
from colo_lib.records import MemoryParts

# vLLM's worker (v1/worker/gpu_worker.py, gpu_model_runner.py); a rank a line.
TOLD = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv_cache": re.compile(r"Available KV cache memory: ([\d.]+) GiB"),
    "graphs": re.compile(r"Graph capturing finished in \d+ secs?, took (-?[\d.]+) GiB"),
}
READ_BYTES = 4 * 2**20


def gen_parts(log: Path, given_kv_cache_gib: float) -> dict[str, float | None]:
    """weights, kv_cache, graphs of one rank of gen, GiB; None where the log does not tell."""
    try:
        said = log.read_bytes()[:READ_BYTES].decode(errors="replace")
    except OSError:
        said = ""
    found = {name: float(match[1]) if (match := pattern.search(said)) else None for name, pattern in TOLD.items()}
    if given_kv_cache_gib:
        found["kv_cache"] = given_kv_cache_gib  # given as bytes: vLLM takes them as they are
    return found


def embed_parts(told: dict[str, Any]) -> dict[str, float | None]:
    """weights, activations (most in use beyond them), cached (what torch keeps besides) of one process, GiB."""
    if not told:
        return {"weights": None, "activations": None, "cached": None}
    weights, peak, reserved = (float(told[name]) for name in ("weights", "peak", "reserved"))
    return {"weights": weights, "activations": peak - weights, "cached": reserved - peak}


def memory_parts(
    given_kv_cache_gib: float, handles: Handles, held_gib: dict[str, float | None]
) -> dict[str, MemoryParts | None]:
    """Parts of each workload's device memory, GiB a process; `rest` is what NVML counts beyond them.

    For gen the rest is activations and CUDA context, for embed the context. `held_gib`: NVML's figure by workload.
    """
    found: dict[str, MemoryParts | None] = {}
    if handles.gen is not None:
        parts = gen_parts(Path(handles.gen.log), given_kv_cache_gib)
        found["gen"] = with_rest(parts, held_gib.get("gen"), handles.tensor_parallel)
    for handle in handles.embeds[:1]:
        with suppress(OSError, ValueError):
            told = call(handle, "status", timeout_s=10.0).get("memory_gib", {})
            found["embed"] = with_rest(embed_parts(told), held_gib.get("embed"), len(handles.embeds))
    return found


def with_rest(parts: dict[str, float | None], held_gib: float | None, processes: int) -> MemoryParts:
    """`parts`, and what a process holds beyond them: None unless NVML's figure and the weights are known."""
    if held_gib is None or parts.get("weights") is None:
        return MemoryParts(**parts, rest=None)
    rest_gib = held_gib / processes - sum(value for value in parts.values() if value is not None)
    return MemoryParts(**parts, rest=rest_gib)
