"""Simulated sweeps with planted responses: for a fresh checkout, and for tests. No engine runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib import frames, paths
from colo_lib.errors import InputError
from colo_lib.examples.simulated_run import write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.params import Params, check
from colo_lib.sweep_plan import GridCell, grid, parse_axis

MOST_MEMORY_GIB = 9.5


@dataclass(frozen=True)
class Response:
    """What a cell would measure: rates alone per second, and what steps 2 and 3 keep of them."""

    gen_tokens_per_s: float
    embed_sequences_per_s: float
    gen_kept: tuple[float, float]
    embed_kept: tuple[float, float]


def _threads(p: Params) -> Response:
    share = p.mps_embed_thread_percentage / 100
    kept = 1 - 0.28 * share**1.5
    return Response(120.0, 240.0, (kept, 0.5), (0.93 * (1 - np.exp(-2.6 * share)), 0.48))


def _concurrency(p: Params) -> Response:
    c = p.gen_concurrency
    return Response(60.0 * c**0.8, 240.0, (0.95 - 0.05 * np.log2(c), 0.5), (0.9 - 0.08 * np.log2(c), 0.47))


def _batch_more(p: Params) -> Response:
    c = p.gen_concurrency
    return Response(1500.0 * c / (c + 12), 240.0, (0.93 - 0.04 * np.log2(c), 0.5), (0.85 - 0.06 * np.log2(c), 0.48))


def _eager(p: Params) -> Response:
    kept, alone = (0.94, 75.0) if p.gen_enforce_eager else (0.78, 130.0)
    return Response(alone, 240.0, (kept, 0.5), (0.85 if p.gen_enforce_eager else 0.72, 0.48))


def _prefill(p: Params) -> Response:
    share = p.gen_prompt_tokens / (p.gen_prompt_tokens + p.gen_output_tokens)
    return Response(130.0 * (1 - 0.5 * share), 240.0, (0.92 - 0.3 * share, 0.5), (0.8 - 0.35 * share, 0.47))


def _memory(p: Params) -> Response:
    gen = 900.0 * min(1.0, p.gen_kv_cache_gib / 4)
    embed = 400.0 * p.embed_batch_size / (p.embed_batch_size + 16)
    return Response(gen, embed, (0.8, 0.5), (0.7, 0.47))


EXAMPLES: dict[str, tuple[tuple[str, ...], Callable[[Params], Response]]] = {
    "threads": (("mps_embed_thread_percentage=10,25,50,75,100",), _threads),
    "concurrency": (("gen_concurrency=1,2,4,8,16",), _concurrency),
    "batch-more": (("gen_concurrency=1,2,4,8,16,32",), _batch_more),
    "eager": (("gen_enforce_eager=true,false",), _eager),
    "prefill": (("gen_prompt_tokens:gen_output_tokens=16:112,48:80,80:48,112:16",), _prefill),
    "memory": (("gen_kv_cache_gib=1,2,4,8", "embed_batch_size=8,32,128"), _memory),
}


def needed_gib(params: Params) -> float:
    """What a simulated cell needs: KV cache and the batch's activations beside the weights."""
    return 1.0 + params.gen_kv_cache_gib + params.embed_batch_size * 0.05


def write_sweep(sweeps_dir: Path, name: str, seed: int = 1, blocks: int = 4) -> Path:
    """Write a simulated sweep (a key of `EXAMPLES`) below `sweeps_dir`; gives its folder."""
    if name not in EXAMPLES:
        raise InputError(f"no example sweep {name!r}: {', '.join(EXAMPLES)}")
    words, response = EXAMPLES[name]
    given = {"run_name": "example", "blocks": blocks, "window_s": 1.5, "warmup_s": 0.2}
    base = check(given | {"gen_output_tokens": 24, "seed": seed}, "the simulated sweep")
    axes = [parse_axis(word) for word in words]
    folder = sweeps_dir / f"example-{name}-simulated"
    cells = grid(base, axes)
    for cell in cells:
        own = paths.cell_folder(folder, cell.name)
        own.mkdir(parents=True)
        params = base.model_copy(update=cell.changes)
        record = _carry_out(own, cell, params, response(params), seed)
        (own / paths.CELL).write_text(json.dumps(record), encoding="utf-8")
    plan: dict[str, Any] = {
        "schema_version": frames.SCHEMA_VERSION,
        "sweep_id": folder.name,
        "created_utc": "2026-11-24T10:15:00Z",
    }
    plan |= {"params": base.model_dump(), "over": [vars(axis) for axis in axes]}
    plan |= {"cells": [{"cell": cell.name, "changes": cell.changes} for cell in cells]}
    (folder / paths.SWEEP).write_text(json.dumps(plan, indent=1), encoding="utf-8")
    return folder


def _carry_out(own: Path, cell: GridCell, params: Params, told: Response, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {"cell": cell.name, "attempts": 1, "host": "simulated", "total_s": 1.0, "reason": None}
    if needed_gib(params) > MOST_MEMORY_GIB:
        reason = f"SIMULATED: needs {needed_gib(params):.1f} GiB of {MOST_MEMORY_GIB:.1f}"
        return record | {"status": "refused", "reason": reason}
    gen, embed = (dict(zip(("step2", "step3"), kept, strict=True)) for kept in (told.gen_kept, told.embed_kept))
    given = {"gen_output_tokens": 24, "seed": seed, "telemetry_hz": 2.0} | cell.changes
    plan = Plan(
        run_id=cell.name, blocks=params.blocks, window_s=params.window_s, warmup_s=params.warmup_s,
        gen_tokens_per_s=told.gen_tokens_per_s, embed_sequences_per_s=told.embed_sequences_per_s,
        gen_kept={"step1": 1.0, **gen}, embed_kept={"step4": 1.0, **embed}, noise=0.01,
        seed=seed * 1000 + int(cell.name[-3:]), params=given,
        device="cuda" if "mps_embed_thread_percentage" in cell.changes else "cpu",
    )  # fmt: skip
    write_run(paths.cell_runs(own), plan)
    return record | {"status": "done"}
