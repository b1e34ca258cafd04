"""Frames of one simulated trial: tokens, requests, batches and telemetry at planted rates.

What a simulated run is told to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.frames import TELEMETRY
from colo_lib.params import Params
from colo_lib.steps import STEPS

GEN_KEPT = {"step1": 1.0, "step2": 0.80, "step3": 0.52, "configA": 1.0, "configB": 1.35}
EMBED_KEPT = {"step2": 0.71, "step3": 0.47, "step4": 1.0, "configA": 1.0, "configB": 0.62}
GAP_SPREAD = {"step1": 0.05, "step2": 0.35, "step3": 0.9, "configA": 0.05, "configB": 0.3}


@dataclass(frozen=True)
class Plan:
    """What is planted. Rates are per second; kept fractions by step against step 1, step 4 or config A."""

    run_id: str = "simulated-run"
    blocks: int = 3
    window_s: float = 6.0
    warmup_s: float = 1.0
    gen_tokens_per_s: float = 120.0
    embed_sequences_per_s: float = 64.0
    gen_kept: Mapping[str, float] = field(default_factory=lambda: dict(GEN_KEPT))
    embed_kept: Mapping[str, float] = field(default_factory=lambda: dict(EMBED_KEPT))
    gap_spread: Mapping[str, float] = field(default_factory=lambda: dict(GAP_SPREAD))
    noise: float = 0.02  # standard deviation of a trial's rate, as a fraction
    starts: int = 0  # starts of the engines that the blocks are spread over; 0: one a block
    start_noise: float = 0.0  # standard deviation of a start's effect on a step's rates, as a fraction
    drift_per_trial: float = 0.0  # each trial is slower than the one before by this fraction
    bad_block: Mapping[int, float] = field(default_factory=dict)  # block -> factor on step 2's rates
    stall_s: Mapping[str, float] = field(default_factory=dict)  # step -> a hole in gen's tokens
    invalid: Mapping[tuple[str, int], str] = field(default_factory=dict)  # (step, trial) -> reason
    device: str = "cpu"  # whose names of the mechanisms the trials carry
    seed: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)


S = 1_000_000_000


def workload_frames(
    plan: Plan,
    params: Params,
    step: str,
    rates: dict[str, Any],
    now_ns: int,
    start_ns: int,
    end_ns: int,
    rng: np.random.Generator,
) -> dict[str, pd.DataFrame]:
    """gen, requests and embed frames of a trial; one that its step does not run is absent."""
    frames = {}
    if rates["gen_tokens_per_s"] > 0:
        hole_ns = int(plan.stall_s.get(step, 0.0) * S)
        hole = ((start_ns + end_ns) // 2, hole_ns)
        spread = plan.gap_spread.get(step, 0.05)
        streams = [
            _stream(params, k, rates["gen_tokens_per_s"] / params.gen_concurrency, spread, now_ns, end_ns, hole, rng)
            for k in range(params.gen_concurrency)
        ]
        frames["gen"] = pd.concat([gen for gen, _ in streams]).sort_values("arrival_ns", ignore_index=True)
        frames["requests"] = pd.concat([rows for _, rows in streams]).sort_values("submitted_ns", ignore_index=True)
    if rates["embed_sequences_per_s"] > 0:
        served = rates["embed_sequences_per_s"]
        if params.embed_arrivals == "closed":
            frames["embed"] = _batches(params, served, now_ns, end_ns, rng)
        else:  # due at the same moments in every step
            moments = np.random.default_rng([params.seed, int(rates["block"])])
            frames["embed"] = _due_batches(params, served, now_ns, end_ns, moments)
    if STEPS[step].mechanism_on("cpu") == "cpu-alternating":
        frames["slices"] = _turns(params, now_ns, end_ns)
    return frames


def _turns(params: Params, now_ns: int, end_ns: int) -> pd.DataFrame:
    """Equal turns of `slice_ms`, gen first."""
    starts = np.arange(now_ns, end_ns, int(params.slice_ms * S / 1000))
    names = np.where(np.arange(len(starts)) % 2, "embed", "gen")
    return pd.DataFrame({"workload": names, "start_ns": starts, "end_ns": [*starts[1:], end_ns]})


def _stream(
    params: Params,
    stream: int,
    tokens_per_s: float,
    spread: float,
    now_ns: int,
    end_ns: int,
    hole: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    count = int(tokens_per_s * (end_ns - now_ns) / S)
    # Log-normal gaps of the planted mean: the rate stays what was planted whatever the spread.
    gaps = np.exp(rng.normal(0, spread, count))
    gaps *= (end_ns - now_ns) / gaps.sum()
    arrival = now_ns + np.cumsum(gaps).astype(np.int64) - 1
    arrival = np.where((arrival >= hole[0]) & (arrival < sum(hole)), sum(hole), arrival)
    length = params.gen_output_tokens
    request = np.arange(count) // length * params.gen_concurrency + stream
    gen = pd.DataFrame(
        {
            "request_id": request.astype(np.int32),
            "sequence_number": (np.arange(count) % length).astype(np.int32),
            "arrival_ns": arrival,
        }
    )
    return gen, _requests(gen, params, now_ns)


def _requests(gen: pd.DataFrame, params: Params, now_ns: int) -> pd.DataFrame:
    """A closed loop: a request is submitted when the one before it has ended."""
    first = gen.groupby("request_id")["arrival_ns"].first()
    last = gen.groupby("request_id")["arrival_ns"].last()
    sizes = gen.groupby("request_id").size()
    return pd.DataFrame(
        {
            "request_id": first.index.astype(np.int32),
            "prompt_tokens": np.int32(params.gen_prompt_tokens),
            "output_tokens": sizes.to_numpy().astype(np.int32),
            "submitted_ns": [now_ns, *last.iloc[:-1]],
            "first_token_ns": first.astype("Int64").to_numpy(),
            "done_ns": last.where(sizes == params.gen_output_tokens).astype("Int64").to_numpy(),
            "error": None,
        }
    )


def _batches(
    params: Params, sequences_per_s: float, now_ns: int, end_ns: int, rng: np.random.Generator
) -> pd.DataFrame:
    size = min(params.embed_batch_size, 2)  # small batches: little whole-batch rounding in a short window
    count = int(sequences_per_s / size * (end_ns - now_ns) / S)
    times = np.exp(rng.normal(0, 0.05, count))
    edges = now_ns + np.concatenate([[0], np.cumsum(times) / times.sum()]) * (end_ns - now_ns - 1)
    edges = edges.astype(np.int64)
    return pd.DataFrame(
        {
            "started_ns": edges[:-1],
            "done_ns": edges[1:],
            "sequences": np.int32(size),
            "tokens": np.int32(size * params.embed_sequence_tokens),
        }
    )


def _due_batches(
    params: Params, sequences_per_s: float, now_ns: int, end_ns: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Batches that were due at `embed_rate`, at random; where fewer are served than are due, each waits longer."""
    size, span_s = min(params.embed_batch_size, 2), (end_ns - now_ns) / S
    due_s = np.sort(rng.uniform(0, span_s, max(1, rng.poisson(params.embed_rate / size * span_s))))
    behind = max(1.0, params.embed_rate / sequences_per_s * 0.95)  # noise of a few per cent is no queue
    took_s = np.exp(rng.normal(np.log(0.03), 0.4, len(due_s)))
    done_s = due_s * behind + took_s
    frame = pd.DataFrame(
        {
            "started_ns": (now_ns + due_s * S).astype(np.int64),
            "done_ns": (now_ns + done_s * S).astype(np.int64),
            "sequences": np.int32(size),
            "tokens": np.int32(size * params.embed_sequence_tokens),
        }
    )
    return frame.sort_values("done_ns", ignore_index=True)


def telemetry_frame(
    params: Params, step: str, rates: dict[str, Any], now_ns: int, end_ns: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Two devices and the workloads of the step, sampled at `params.telemetry_hz`."""
    times = np.arange(now_ns, end_ns, int(S / params.telemetry_hz))
    workloads = [
        name for name, rate in (("gen", "gen_tokens_per_s"), ("embed", "embed_sequences_per_s")) if rates[rate] > 0
    ]
    frames = [
        pd.DataFrame(
            {
                "t_ns": times,
                "scope": "device",
                "name": device,
                "utilization": np.clip(rng.normal(0.6 + 0.18 * len(workloads), 0.03, len(times)), 0, 1),
                "memory_used_gib": 2.0 + 0.4 * len(workloads),
            }
        )
        for device in ("0", "1")
    ]
    for name in workloads:
        share = {"gen": 1.2, "embed": 0.7}[name] if len(workloads) == 2 else 1.9
        frames.append(
            pd.DataFrame(
                {
                    "t_ns": times,
                    "scope": "workload",
                    "name": name,
                    "cpu_cores": np.clip(rng.normal(share, 0.08, len(times)), 0, 2),
                    "memory_used_gib": {"gen": 2.1, "embed": 0.4}[name],
                    "processes": np.int32({"gen": 2, "embed": 1}[name]),
                }
            )
        )
    return pd.concat(frames).reindex(columns=list(TELEMETRY)).sort_values("t_ns", ignore_index=True)
