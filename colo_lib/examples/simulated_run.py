"""Simulated runs and sweeps with planted rates, latencies, stalls and responses: for a fresh checkout, and for tests.

No engine runs. The manifest says `simulated`, and every page made from such a run says so. `example_folder` is where
built-in examples are written: a folder that goes with the process it was made for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.examples.simulated_trial import GAP_SPREAD, Plan, telemetry_frame, workload_frames
from colo_lib.frames import FRAMES, SCHEMA_VERSION
from colo_lib.params import Params, check
from colo_lib.placement import placement_of
from colo_lib.records import (
    BudgetRow,
    CellRecord,
    DemandFacts,
    ListedFile,
    ListedTrial,
    Machine,
    Manifest,
    ModelFacts,
    SweepAxis,
    SweepPlan,
    SweepRow,
    TelemetryCost,
    Trial,
)
from colo_lib.steps import STEPS
from colo_lib.sweep_plan import GridCell, grid, parse_axis

PREFIX = "colo-example-"
_kept: list[tempfile.TemporaryDirectory[str]] = []


def example_folder() -> Path:
    """A fresh folder below the system's temporary one that lives as long as this process: readers are lazy.

    Those of kernels that were killed, and could not remove their own, are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # somebody else removes it too
            pid = left.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)) and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
    _kept.append(tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-"))
    return Path(_kept[-1].name)


S = 1_000_000_000
CREATED_UTC = "2026-11-24T10:15:00Z"
RATE = {"gen": "gen_tokens_per_s", "embed": "embed_sequences_per_s"}


def order_of_trials(steps: list[str], blocks: int) -> list[tuple[str, int]]:
    """(step, block) in alternating order: 1 2 3 4 | 4 3 2 1 | …"""
    return [(step, block) for block in range(1, blocks + 1) for step in (steps if block % 2 else steps[::-1])]


def start_of_block(plan: Plan) -> dict[int, int]:
    """block -> the start of the engines that it runs on, both counted from 1."""
    count = min(plan.starts or plan.blocks, plan.blocks)
    return {block: (block - 1) * count // plan.blocks + 1 for block in range(1, plan.blocks + 1)}


def planted_rates(plan: Plan) -> pd.DataFrame:
    """A row a trial in running order: step, block and both rates per second, null where a workload is absent."""
    rng = np.random.default_rng(plan.seed)
    rows = []
    rounds = start_of_block(plan)
    effects = np.random.default_rng([plan.seed, 1]).normal(0, plan.start_noise, (max(rounds.values()), 99))
    planted = [step for step in STEPS if step in plan.gen_kept or step in plan.embed_kept]
    for place, (step, block) in enumerate(order_of_trials(planted, plan.blocks)):
        slowed = (1 - plan.drift_per_trial) ** place * (plan.bad_block.get(block, 1.0) if step == "step2" else 1.0)
        gen, embed = plan.gen_kept.get(step), plan.embed_kept.get(step)
        noise = np.exp(rng.normal(0, plan.noise, 2) + effects[rounds[block] - 1, planted.index(step)])
        rows.append(
            {
                "step": step,
                "block": block,
                "gen_tokens_per_s": plan.gen_tokens_per_s * gen * slowed * noise[0] if gen else np.nan,
                "embed_sequences_per_s": plan.embed_sequences_per_s * embed * slowed * noise[1] if embed else np.nan,
            }
        )
    return pd.DataFrame(rows)


def write_run(runs_dir: Path, plan: Plan) -> Path:
    """Write a finished, simulated run folder under `runs_dir`; gives its path."""
    folder = paths.run_folder(runs_dir, plan.run_id)
    planted = planted_rates(plan)
    # A step runs the workloads it runs: one of which half is planted is left out.
    planted = planted[[bool(row[_rates_of(row["step"])].notna().all()) for _, row in planted.iterrows()]]
    given = {"blocks": plan.blocks, "window_s": plan.window_s, "warmup_s": plan.warmup_s}
    params = Params(**given | {"steps": ",".join(dict.fromkeys(planted["step"]))} | dict(plan.params))
    trials = []
    now_ns = 1_000 * S
    for rates in planted.to_dict("records"):
        trials.append(_write_trial(folder, plan, params, rates, now_ns))
        now_ns += int((plan.warmup_s + plan.window_s + 1.0) * S)
    files = {
        file.relative_to(folder).as_posix(): ListedFile(
            bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest()
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    _manifest(plan, params, trials, files, now_ns).write(folder / paths.MANIFEST)
    return folder


def _rates_of(step: str) -> list[str]:
    """Columns of the rates that a step has."""
    return [rate for rate, base in zip(RATE.values(), STEPS[step].baselines.values(), strict=True) if base]


def _write_trial(folder: Path, plan: Plan, params: Params, rates: dict[str, Any], now_ns: int) -> ListedTrial:
    step, trial = rates["step"], int(rates["block"])
    target = paths.trial_folder(folder, step, trial)
    target.mkdir(parents=True)
    start_ns = now_ns + int(plan.warmup_s * S)
    end_ns = start_ns + int(plan.window_s * S)
    rng = np.random.default_rng([plan.seed, len(step), ord(step[-1]), trial])
    frames = workload_frames(plan, params, step, rates, now_ns, start_ns, end_ns, rng)
    frames["telemetry"] = telemetry_frame(params, step, rates, now_ns, end_ns, rng)
    for name, frame in frames.items():
        _write_frame(paths.frame_file(target, name), name, frame)
    record = _record(plan, params, step, trial, start_ns, end_ns, frames)
    record.write(target / paths.TRIAL)
    return ListedTrial(
        step=record.step, trial=record.trial, block=record.block, status=record.status, reason=record.reason,
        folder=target.relative_to(folder).as_posix(),
    )  # fmt: skip


def _write_frame(file: Path, name: str, frame: pd.DataFrame) -> None:
    fields = FRAMES[name].items()
    arrow = pa.schema([pa.field(column, pa.type_for_alias(kind.rstrip("?"))) for column, kind in fields])
    pq.write_table(pa.Table.from_pandas(frame, schema=arrow, preserve_index=False), file, write_page_checksum=True)


def _record(
    plan: Plan,
    params: Params,
    step: str,
    trial: int,
    start_ns: int,
    end_ns: int,
    frames: Mapping[str, pd.DataFrame],
) -> Trial:
    gen, embed = frames.get("gen"), frames.get("embed")
    tokens = None if gen is None else int(gen["arrival_ns"].between(start_ns, end_ns, inclusive="left").sum())
    done = None if embed is None else embed["done_ns"].between(start_ns, end_ns, inclusive="left")
    sequences = None if embed is None else int(embed.loc[done, "sequences"].sum())
    devices = placement_of(step, check({}, "the simulated run")).devices_record()
    window_s = (end_ns - start_ns) / S
    reason = plan.invalid.get((step, trial))
    return Trial(
        schema_version=SCHEMA_VERSION,
        step=step,
        trial=trial,
        block=trial,
        mechanism=STEPS[step].mechanism_on(plan.device),
        status="invalid" if reason else "done",
        reason=reason,
        window_start_ns=start_ns,
        window_end_ns=end_ns,
        window_s=window_s,
        gen_tokens=tokens,
        gen_tokens_per_s=None if tokens is None else tokens / window_s,
        gen_server_tokens_per_s=None if tokens is None else tokens / window_s,
        clock_disagreement=0.0,
        embed_sequences=sequences,
        embed_sequences_per_s=None if sequences is None else sequences / window_s,
        drift_fraction={"gen": None if gen is None else 0.01, "embed": None if embed is None else 0.02},
        neighbour="idle",
        pids={"gen": [11, 12], "embed": [13]},
        engine_starts={name: f"{name}-{start_of_block(plan)[trial]}" for name in ("gen", "embed")},
        devices={name: value if name in frames else [] for name, value in devices.items()},
        memory_gib={"gen": None if gen is None else 2.1, "embed": None if embed is None else 0.4, "free": 18.0},
        telemetry_cost=TelemetryCost(cpu_fraction=0.004, samples=int(frames["telemetry"]["t_ns"].nunique())),
        latency_clock="client",
        demand=_demand_facts(params, embed, start_ns, end_ns),
    )


def _demand_facts(
    params: Params, embed: pd.DataFrame | None, start_ns: int, end_ns: int
) -> dict[str, DemandFacts] | None:
    if embed is None or params.embed_arrivals == "closed":
        return None
    due = int(embed["started_ns"].between(start_ns, end_ns, inclusive="left").sum())
    return {"embed": DemandFacts(arrivals=params.embed_arrivals, rate=params.embed_rate, due=due)}


def _manifest(
    plan: Plan, params: Params, trials: list[ListedTrial], files: dict[str, ListedFile], end_ns: int
) -> Manifest:
    machine = Machine(
        stand_in=True, simulated=True, device_kind="cpu", device_name="simulated device (no hardware)", device_count=2,
        driver=None, cuda=None, power_limit_w=None, cpu="simulated", cores=2, memory_gib=24.0, os="simulated",
        versions={"python": "simulated", "vllm": "none", "torch": "none"}, git_commit="0" * 40, git_dirty=False,
        boot_id="simulated",
    )  # fmt: skip
    parts = {"gen weights": 0.5, "gen KV cache": 1.0, "gen activations": 0.1}
    parts |= {"embed weights": 0.1, "embed activations": 0.1, "reserve": 2.0}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=plan.run_id,
        status="done",
        created_utc=CREATED_UTC,
        finished_utc="2026-11-24T10:22:00Z",
        params=params.model_dump(),
        machine=machine.joined(**plan.machine),
        models={"gen": _model("simulated-gen", "Qwen3ForCausalLM"), "embed": _model("simulated-embed", "BertModel")}
        | {name: ModelFacts.model_validate(model) for name, model in plan.models.items()},
        budget=[BudgetRow(device="0,1", available_gib=20.0, parts=parts)],
        trials=trials,
        measured_s=len(trials) * plan.window_s,
        total_s=end_ns / S - 1_000,
        files=files,
    )


def _model(name: str, architecture: str) -> ModelFacts:
    return ModelFacts(name=name, architecture=architecture, parameters=1_000_000, weights="dummy", dtype="bfloat16")


MOST_MEMORY_GIB = 9.5


@dataclass(frozen=True)
class Response:
    """What a cell would measure: rates alone per second, and what steps 2 and 3 keep of them."""

    gen_tokens_per_s: float
    embed_sequences_per_s: float
    gen_kept: tuple[float, float]
    embed_kept: tuple[float, float]
    gap_spread: tuple[float, float] | None = None
    """Of steps 2 and 3, where it depends on the cell."""


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


def _demand(p: Params) -> Response:
    asked = p.embed_rate / 240
    kept = (1 - 0.35 * asked**2, 1 - 0.75 * asked)
    served = tuple(min(1.0, most / p.embed_rate) for most in (175.0, 115.0))
    return Response(120.0, p.embed_rate, kept, (served[0], served[1]), (0.05 + 0.5 * asked**2.5, 0.05 + 0.9 * asked))


# What an example sets beside what it varies.
SET: dict[str, dict[str, Any]] = {"demand": {"embed_arrivals": "poisson", "slo_embed_batch_ms": 400.0}}
EXAMPLES: dict[str, tuple[tuple[str, ...], Callable[[Params], Response]]] = {
    "threads": (("mps_embed_thread_percentage=10,25,50,75,100",), _threads),
    "concurrency": (("gen_concurrency=1,2,4,8,16",), _concurrency),
    "batch-more": (("gen_concurrency=1,2,4,8,16,32",), _batch_more),
    "eager": (("gen_enforce_eager=true,false",), _eager),
    "prefill": (("gen_prompt_tokens:gen_output_tokens=16:112,48:80,80:48,112:16",), _prefill),
    "demand": (("embed_rate=20,40,80,120,160,200",), _demand),
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
    given |= SET.get(name, {}) | {"gen_output_tokens": 24, "seed": seed}
    base = check(given, "the simulated sweep")
    axes = [parse_axis(word) for word in words]
    folder = sweeps_dir / f"example-{name}-simulated"
    cells = grid(base, axes)
    for cell in cells:
        cell_folder = paths.cell_folder(folder, cell.name)
        cell_folder.mkdir(parents=True)
        params = base.model_copy(update=cell.changes)
        _carry_out(cell_folder, cell, params, response(params), seed).write(cell_folder / paths.CELL)
    SweepPlan(
        schema_version=SCHEMA_VERSION,
        sweep_id=folder.name,
        created_utc=CREATED_UTC,
        params=base.model_dump(),
        over=[SweepAxis(names=list(axis.names), values=[list(row) for row in axis.values]) for axis in axes],
        cells=[SweepRow(cell=cell.name, changes=cell.changes) for cell in cells],
    ).write(folder / paths.SWEEP)
    return folder


def _carry_out(cell_folder: Path, cell: GridCell, params: Params, response: Response, seed: int) -> CellRecord:
    record = CellRecord(cell=cell.name, attempts=1, host="simulated", total_s=1.0, reason=None, status="done")
    if needed_gib(params) > MOST_MEMORY_GIB:
        reason = f"SIMULATED: needs {needed_gib(params):.1f} GiB of {MOST_MEMORY_GIB:.1f}"
        return record.joined(status="refused", reason=reason)
    steps = ("step2", "step3")
    gen, embed = (dict(zip(steps, kept, strict=True)) for kept in (response.gen_kept, response.embed_kept))
    given = {"gen_output_tokens": 24, "seed": seed, "telemetry_hz": 2.0} | cell.changes
    if params.embed_arrivals != "closed":
        given |= SET["demand"]
    spreads = {} if response.gap_spread is None else dict(zip(steps, response.gap_spread, strict=True))
    plan = Plan(
        run_id=cell.name, blocks=params.blocks, window_s=params.window_s, warmup_s=params.warmup_s,
        gen_tokens_per_s=response.gen_tokens_per_s, embed_sequences_per_s=response.embed_sequences_per_s,
        gen_kept={"step1": 1.0, **gen}, embed_kept={"step4": 1.0, **embed}, noise=0.01,
        seed=seed * 1000 + int(cell.name[-3:]), params=given,
        device="cuda" if "mps_embed_thread_percentage" in cell.changes else "cpu", gap_spread=GAP_SPREAD | spreads,
    )  # fmt: skip
    write_run(paths.cell_runs(cell_folder), plan)
    return record
