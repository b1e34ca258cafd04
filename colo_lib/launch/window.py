"""What a trial's window says: rates, their drift, and whether the trial counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from colo_lib import rates
from colo_lib.params import Params
from colo_lib.paths import frame_file
from colo_lib.steps import Placement

LEAST_EVENTS = 10


@dataclass(frozen=True)
class Window:
    """[start_ns, end_ns) of CLOCK_MONOTONIC; vLLM's own counters around it; cores that strangers used in it."""

    start_ns: int
    end_ns: int
    before: dict[str, float] | None
    after: dict[str, float] | None
    stranger_cores: float

    @property
    def seconds(self) -> float:
        """Length."""
        return (self.end_ns - self.start_ns) / 1e9


def measure_window(params: Params, placement: Placement, folder: Path, window: Window) -> dict[str, Any]:
    """The part of a trial's record that its frames give; its status says whether it counts."""
    record: dict[str, Any] = {
        "window_start_ns": window.start_ns, "window_end_ns": window.end_ns, "window_s": window.seconds,
        "gen_tokens": None, "gen_tokens_per_s": None, "gen_server_tokens_per_s": None, "gen_server_mean_gap_ms": None,
        "clock_disagreement": None, "embed_sequences": None, "embed_sequences_per_s": None,
        "drift_fraction": {"gen": None, "embed": None}, "neighbour": neighbour(placement),
        "stranger_cores": window.stranger_cores,
    }  # fmt: skip
    reasons: list[str] = []
    if placement.runs_gen:
        record |= measure_gen(folder, window, record["drift_fraction"], reasons)
    if placement.runs_embed:
        work, span = rates.sequences(pq.read_table(frame_file(folder, "embed"))), (window.start_ns, window.end_ns)
        total, record["drift_fraction"]["embed"] = work.ended(*span), work.drift(*span)
        record |= {"embed_sequences": total, "embed_sequences_per_s": work.rate(*span)}
        if not total:
            reasons.append("no embedding batch was done in the window")
    reasons += doubts(params, record)
    return record | {"status": "invalid" if reasons else "done", "reason": "; ".join(reasons) or None}


def measure_gen(folder: Path, window: Window, drift: dict[str, Any], reasons: list[str]) -> dict[str, Any]:
    """Token rate by the client's clock and by vLLM's own counter."""
    tokens, requests = (pq.read_table(frame_file(folder, name)) for name in ("gen", "requests"))
    work, span = rates.tokens(tokens, requests), (window.start_ns, window.end_ns)
    total, drift["gen"] = work.ended(*span), work.drift(*span)
    errors = [text for text in requests["error"].to_pylist() if text]
    if errors:
        reasons.append(f"{len(errors)} requests failed, the first with {errors[0]}")
    if total < LEAST_EVENTS:
        reasons.append(f"only {total} tokens arrived in the window")
    found: dict[str, Any] = {"gen_tokens": total, "gen_tokens_per_s": work.rate(*span)}
    if window.before and window.after:
        # vLLM's counters are read shortly before and after the window's ends: compare over the same span of time.
        came = work.ended(int(window.before["t_ns"]), int(window.after["t_ns"]))
        served = window.after["tokens"] - window.before["tokens"]
        span_s = (window.after["t_ns"] - window.before["t_ns"]) / 1e9
        gaps = window.after["gap_count"] - window.before["gap_count"]
        found["gen_server_tokens_per_s"] = served / span_s
        found["clock_disagreement"] = abs(came / served - 1) if served else None
        if gaps:
            found["gen_server_mean_gap_ms"] = (window.after["gap_sum_s"] - window.before["gap_sum_s"]) / gaps * 1e3
        if window.after["cached_tokens"] > window.before["cached_tokens"]:
            reasons.append("vLLM's prefix cache served part of a prompt")
    return found


def doubts(params: Params, record: dict[str, Any]) -> list[str]:
    """Why a measured trial does not count; empty when it does."""
    found = []
    disagreement = record["clock_disagreement"]
    # One engine step in flight at either end is the grain of the comparison.
    grain = 2 * params.gen_concurrency / max(1, record["gen_tokens"] or 1)
    if disagreement is not None and disagreement > max(params.max_clock_disagreement, grain):
        found.append(f"our token rate and vLLM's own counter differ by {disagreement:.1%}")
    for name, drift in record["drift_fraction"].items():
        if drift is not None and drift > params.max_drift_fraction:
            found.append(f"{name} still drifted: the window's halves differ by {drift:.0%}")
    if record["stranger_cores"] > params.max_stranger_cores and params.device == "cpu":
        found.append(f"other processes used {record['stranger_cores']:.2f} cores")
    return found


def neighbour(placement: Placement) -> str:
    """What the other workload's engine does in a step that runs one alone."""
    return "under load" if placement.runs_gen and placement.runs_embed else "given no work"
