"""What a trial's window says: rates, their drift, and whether the trial counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from colo_lib import rates
from colo_lib.launch.specs import TrialSpec
from colo_lib.launch.vllm_server import ServerCounters
from colo_lib.paths import frame_file
from colo_lib.placement import Placement
from colo_lib.records import WindowFacts

LEAST_EVENTS = 10


@dataclass(frozen=True)
class Window:
    """[start_ns, end_ns) of CLOCK_MONOTONIC; vLLM's own counters around it; cores that strangers used in it."""

    start_ns: int
    end_ns: int
    before: ServerCounters | None
    after: ServerCounters | None
    stranger_cores: float

    @property
    def seconds(self) -> float:
        """Length."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass
class _Gen:
    """What gen did in a window."""

    tokens: int | None = None
    per_s: float | None = None
    server_per_s: float | None = None
    server_gap_ms: float | None = None
    disagreement: float | None = None
    drift: float | None = None


def measure_window(spec: TrialSpec, folder: Path, window: Window) -> WindowFacts:
    """The part of a trial's record that its frames give; its status says whether it counts."""
    placement, gen, reasons = spec.placement, _Gen(), list[str]()
    sequences: int | None = None
    embed_per_s: float | None = None
    drift: dict[str, float | None] = {"gen": None, "embed": None}
    if placement.runs_gen:
        gen = _measure_gen(folder, window, reasons)
        drift["gen"] = gen.drift
    if placement.runs_embed:
        work, span = rates.sequences(pq.read_table(frame_file(folder, "embed"))), (window.start_ns, window.end_ns)
        sequences, drift["embed"], embed_per_s = work.ended(*span), work.drift(*span), work.rate(*span)
        if not sequences:
            reasons.append("no embedding batch was done in the window")
    facts = WindowFacts(
        window_start_ns=window.start_ns, window_end_ns=window.end_ns, window_s=window.seconds,
        gen_tokens=gen.tokens, gen_tokens_per_s=gen.per_s, gen_server_tokens_per_s=gen.server_per_s,
        gen_server_mean_gap_ms=gen.server_gap_ms, clock_disagreement=gen.disagreement,
        embed_sequences=sequences, embed_sequences_per_s=embed_per_s, drift_fraction=drift,
        neighbour=neighbour(placement), stranger_cores=window.stranger_cores, status="done", reason=None,
    )  # fmt: skip
    reasons += doubts(spec, facts)
    return facts.joined(status="invalid", reason="; ".join(reasons)) if reasons else facts


def _measure_gen(folder: Path, window: Window, reasons: list[str]) -> _Gen:
    """Token rate by the client's clock and by vLLM's own counter; what speaks against the trial goes to `reasons`."""
    tokens, requests = (pq.read_table(frame_file(folder, name)) for name in ("gen", "requests"))
    work, span = rates.tokens(tokens, requests), (window.start_ns, window.end_ns)
    total = work.ended(*span)
    errors = [text for text in requests["error"].to_pylist() if text]
    if errors:
        reasons.append(f"{len(errors)} requests failed, the first with {errors[0]}")
    if total < LEAST_EVENTS:
        reasons.append(f"only {total} tokens arrived in the window")
    found = _Gen(total, work.rate(*span), drift=work.drift(*span))
    if window.before and window.after:
        # vLLM's counters are read shortly before and after the window's ends: compare over the same span of time.
        before, after = window.before, window.after
        came = work.ended(int(before.t_ns), int(after.t_ns))
        served, gaps = after.tokens - before.tokens, after.gap_count - before.gap_count
        found.server_per_s = served / ((after.t_ns - before.t_ns) / 1e9)
        found.disagreement = abs(came / served - 1) if served else None
        if gaps:
            found.server_gap_ms = (after.gap_sum_s - before.gap_sum_s) / gaps * 1e3
        if after.cached_tokens > before.cached_tokens:
            reasons.append("vLLM's prefix cache served part of a prompt")
    return found


def doubts(spec: TrialSpec, facts: WindowFacts) -> list[str]:
    """Why a measured trial does not count; empty when it does."""
    found = []
    disagreement = facts.clock_disagreement
    # One engine step in flight at either end is the grain of the comparison.
    grain = 2 * spec.load.concurrency / max(1, facts.gen_tokens or 1)
    if disagreement is not None and disagreement > max(spec.window.max_clock_disagreement, grain):
        found.append(f"our token rate and vLLM's own counter differ by {disagreement:.1%}")
    for name, drift in (facts.drift_fraction or {}).items():
        if drift is not None and drift > spec.window.max_drift_fraction:
            found.append(f"{name} still drifted: the window's halves differ by {drift:.0%}")
    if spec.placement.device == "cpu" and (facts.stranger_cores or 0.0) > spec.window.max_stranger_cores:
        found.append(f"other processes used {facts.stranger_cores:.2f} cores")
    return found


def neighbour(placement: Placement) -> str:
    """What the other workload's engine does in a step that runs one alone."""
    return "under load" if placement.runs_gen and placement.runs_embed else "given no work"
