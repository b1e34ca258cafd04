"""The view of a chosen capture: whose processes are gen and embed, as a notebook's parameters and the capture say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colo_lib.analysis.trace import overlap, token_time
from colo_lib.analysis.trace.processes import WORKLOADS, assign, launchers
from colo_lib.analysis.trace.token_time import replays, tokens_of
from colo_lib.analysis.trace.window import TraceWindow, look, window_of
from colo_lib.params import Params
from colo_lib.trace import Capture, Launches


def view_of(
    capture: Capture, facts: Mapping[str, Any], params: Params, recorded_s: tuple[float, float] | None = None
) -> TraceWindow:
    """Look at `capture`, whose capture.json says `facts`, through `trace_gen`, `trace_embed` and `trace_window`.

    Without a `trace_window` it is the recorded window of steady state, `recorded_s`, where there is one.
    """
    asked = {"gen": params.trace_gen, "embed": params.trace_embed}
    window_s = window_of(params.trace_window) or recorded_s
    return looked_at(capture, facts, asked, window_s)[0]


def looked_at(
    capture: Capture,
    facts: Mapping[str, Any],
    asked: Mapping[str, str],
    window_s: tuple[float, float] | None = None,
    device: int | None = None,
    mechanism: str | None = None,
) -> tuple[TraceWindow, bool]:
    """Look at `capture`, and whether a workload's processes were guessed.

    What is not asked for is as `facts`, its capture.json, says: the processes of a workload and the mechanism. A
    workload of which no recorded process launched a kernel is idle, whoever else did.
    """
    asked, recorded, idle = dict(asked), facts.get("pids") or {}, []
    launched = {item.process.pid for item in launchers(capture)}
    for workload in WORKLOADS:
        if not asked.get(workload, "").strip() and recorded.get(workload):
            # The recorded pids are a whole process tree, of which some launched work.
            own = [str(pid) for pid in recorded[workload] if pid in launched]
            asked[workload] = ",".join(own)
            idle += [] if own else [workload]
    assignment, guessed = assign(capture, asked, idle)
    return look(capture, assignment, window_s, device, mechanism or facts.get("mechanism")), guessed


def gen_times(
    capture: Capture,
    facts: Mapping[str, Any],
    recorded_s: tuple[float, float] | None,
    launches: Launches,
    params: Params,
    concurrency: int,
) -> dict[str, Any] | None:
    """`device_time.decompose` of gen per decoded token, with `tokens`, how many those were, and `clipped`.

    `concurrency`: the run's requests in flight. `clipped`: no interval holds time in which gen's context was switched
    out. None for a capture without gen, or whose capture.json has no rate of gen.
    """
    rate = (facts.get("profiled") or {}).get("gen_tokens_per_s")
    view = view_of(capture, facts, params, recorded_s)
    if not rate or "gen" not in view.workloads:
        return None
    alone = len(view.workloads) == 1
    tokens = tokens_of(_replays(view), rate * view.window_ns / 1e9, concurrency)
    found = token_time.decompose_token_time(view, "gen", launches, tokens)
    return found | {"tokens": tokens, "clipped": alone or not view.upper_bound}


def _replays(view: TraceWindow) -> float | None:
    rows = view.workloads["gen"].rows
    process = view.capture.kernels.process[rows]
    return replays(view.capture.kernels, rows[process == np.bincount(process).argmax()])


def verdict_overlap(
    view: TraceWindow, facts: Mapping[str, Any] | None = None, unprofiled_tokens_per_s: float | None = None
) -> dict[str, Any] | None:
    """What `verdict.judge` takes as the overlap of a capture of step 2; None where it has only one workload.

    With the capture.json and the rate of step 2's trials, profiled_ratio says how much the capture slowed gen.
    """
    share = overlap.overlap_summary(view)["overlap_of_gen"]
    if share is None:
        return None
    rate = ((facts or {}).get("profiled") or {}).get("gen_tokens_per_s")
    found = {"fraction_of_gen": share, "basis": view.basis, "upper_bound": view.upper_bound}
    moved = overlap.alignment_range(view)
    found |= {"range": moved.of_gen} if moved and moved.of_gen else {}
    base = unprofiled_tokens_per_s
    return found | ({"profiled_ratio": rate / base} if rate and base and base == base else {})


def profiled_words(facts: Mapping[str, Any], unprofiled: Mapping[str, float]) -> str:
    """Rates while profiling over the rates of the same step's trials; a capture explains, it is not for throughput."""
    told = []
    for name, rate in (facts.get("profiled") or {}).items():
        base = unprofiled.get(name)
        if rate and base and base == base:
            told.append(f"{name.split('_')[0]} {rate / base:.2f}")
    return f"Profiled / unprofiled rate: {', '.join(told) or 'not recorded'}."


def views_alone(
    captures: Mapping[str, tuple[Capture, Mapping[str, Any], tuple[float, float] | None]],
) -> dict[str, TraceWindow]:
    """Workload -> the view of a capture in which it ran alone; a key that is no workload stands for the likely one."""
    found = {}
    for name, (capture, facts, window_s) in captures.items():
        likely, _ = assign(capture, {})
        places = sorted({place for own in likely.values() for place in own})
        workload = name if name in WORKLOADS else next(iter(likely))
        found[workload] = look(capture, {workload: places}, window_s, mechanism=facts.get("mechanism"))
    return found
