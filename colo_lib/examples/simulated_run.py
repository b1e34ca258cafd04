"""A simulated run folder with planted rates, latencies and stalls: for a fresh checkout, and for tests.

Where built-in examples are written: a folder that goes with the process it was made for.

No engine runs. The manifest says `simulated`, and every page made from such a run says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib import frames as colo_frames
from colo_lib import paths
from colo_lib.examples.simulated_trial import Plan, telemetry_frame, workload_frames
from colo_lib.params import Params, check
from colo_lib.placement import placement_of
from colo_lib.steps import STEPS

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
    own = {"blocks": plan.blocks, "window_s": plan.window_s, "warmup_s": plan.warmup_s}
    params = Params(**own | {"steps": ",".join(dict.fromkeys(planted["step"]))} | dict(plan.params))
    trials = []
    now_ns = 1_000 * S
    for rates in planted.to_dict("records"):
        trials.append(_write_trial(folder, plan, params, rates, now_ns))
        now_ns += int((plan.warmup_s + plan.window_s + 1.0) * S)
    manifest = _manifest(plan, params, trials, now_ns)
    manifest["files"] = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / paths.MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return folder


def _rates_of(step: str) -> list[str]:
    """Columns of the rates that a step has."""
    return [rate for rate, base in zip(RATE.values(), STEPS[step].baselines.values(), strict=True) if base]


def _write_trial(folder: Path, plan: Plan, params: Params, rates: dict[str, Any], now_ns: int) -> dict[str, Any]:
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
    record = _record(plan, step, trial, start_ns, end_ns, frames)
    (target / paths.TRIAL).write_text(json.dumps(record, indent=1), encoding="utf-8")
    row = {key: record[key] for key in ("step", "trial", "block", "status", "reason")}
    return {**row, "folder": target.relative_to(folder).as_posix()}


def _write_frame(file: Path, name: str, frame: pd.DataFrame) -> None:
    fields = colo_frames.FRAMES[name].items()
    arrow = pa.schema([pa.field(column, pa.type_for_alias(kind.rstrip("?"))) for column, kind in fields])
    pq.write_table(pa.Table.from_pandas(frame, schema=arrow, preserve_index=False), file, write_page_checksum=True)


def _record(
    plan: Plan, step: str, trial: int, start_ns: int, end_ns: int, frames: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    gen, embed = frames.get("gen"), frames.get("embed")
    tokens = None if gen is None else int(gen["arrival_ns"].between(start_ns, end_ns, inclusive="left").sum())
    done = None if embed is None else embed["done_ns"].between(start_ns, end_ns, inclusive="left")
    sequences = None if embed is None else int(embed.loc[done, "sequences"].sum())
    devices = placement_of(step, check({}, "the simulated run")).devices_record()
    window_s = (end_ns - start_ns) / S
    reason = plan.invalid.get((step, trial))
    return {
        "schema_version": colo_frames.SCHEMA_VERSION,
        "step": step,
        "trial": trial,
        "block": trial,
        "mechanism": STEPS[step].mechanism_on(plan.device),
        "status": "invalid" if reason else "done",
        "reason": reason,
        "window_start_ns": start_ns,
        "window_end_ns": end_ns,
        "window_s": window_s,
        "gen_tokens": tokens,
        "gen_tokens_per_s": None if tokens is None else tokens / window_s,
        "gen_server_tokens_per_s": None if tokens is None else tokens / window_s,
        "clock_disagreement": 0.0,
        "embed_sequences": sequences,
        "embed_sequences_per_s": None if sequences is None else sequences / window_s,
        "drift_fraction": {"gen": None if gen is None else 0.01, "embed": None if embed is None else 0.02},
        "neighbour": "idle",
        "pids": {"gen": [11, 12], "embed": [13]},
        "engine_starts": {name: f"{name}-{start_of_block(plan)[trial]}" for name in ("gen", "embed")},
        "devices": {name: value if name in frames else [] for name, value in devices.items()},
        "memory_gib": {
            "gen": 2.1 if gen is not None else None,
            "embed": 0.4 if embed is not None else None,
            "free": 18.0,
        },
        "telemetry_cost": {"cpu_fraction": 0.004, "samples": int(frames["telemetry"]["t_ns"].nunique())},
        "latency_clock": "client",
    }


def _manifest(plan: Plan, params: Params, trials: list[dict[str, Any]], end_ns: int) -> dict[str, Any]:
    model = {"parameters": 1_000_000, "weights": "dummy", "dtype": "bfloat16"}
    machine = {
        "stand_in": True,
        "simulated": True,
        "device_kind": "cpu",
        "device_name": "simulated device (no hardware)",
        "device_count": 2,
        "driver": None,
        "cuda": None,
        "power_limit_w": None,
        "cpu": "simulated",
        "cores": 2,
        "memory_gib": 24.0,
        "os": "simulated",
        "versions": {"python": "simulated", "vllm": "none", "torch": "none"},
        "git_commit": "0" * 40,
        "git_dirty": False,
        "boot_id": "simulated",
    }
    parts = {"gen weights": 0.5, "gen KV cache": 1.0, "gen activations": 0.1}
    parts |= {"embed weights": 0.1, "embed activations": 0.1, "reserve": 2.0}
    models = {
        "gen": {"name": "simulated-gen", "architecture": "Qwen3ForCausalLM", **model},
        "embed": {"name": "simulated-embed", "architecture": "BertModel", **model},
    }
    return {
        "schema_version": colo_frames.SCHEMA_VERSION,
        "run_id": plan.run_id,
        "status": "done",
        "created_utc": "2026-11-24T10:15:00Z",
        "finished_utc": "2026-11-24T10:22:00Z",
        "params": dataclasses.asdict(params) if dataclasses.is_dataclass(params) else params.model_dump(),
        "machine": {**machine, **plan.machine},
        "models": {**models, **plan.models},
        "budget": [{"device": "0,1", "available_gib": 20.0, "parts": parts}],
        "trials": trials,
        "measured_s": len(trials) * plan.window_s,
        "total_s": end_ns / S - 1_000,
    }
