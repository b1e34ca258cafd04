"""A capture's answers as one JSON-ready object: `colo trace --json`, described in docs/traces.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals, occupancy, overlap
from colo_lib.analysis.trace import kernels as trace_kernels
from colo_lib.analysis.trace.processes import launchers, printable
from colo_lib.analysis.trace.residency import RESIDENCY
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.records import CaptureFacts
from colo_lib.steps import WORKLOADS, mechanism_in_words

SCHEMA_VERSION = 1
LONGEST_NAME = 4000  # characters; a template can be longer than any reader wants
GRAPH, NODE, KERNEL = "graph", "node", "kernel"


def summary_of(view: TraceWindow, patterns: trace_kernels.Patterns = trace_kernels.PATTERNS) -> dict[str, Any]:
    """The object of a view that was looked at already."""
    busy = view.busy
    busy_ns = intervals.length(busy)
    moved = overlap.alignment_range(view)
    alignment = view.capture.alignment
    others_ns = intervals.length(view.others)
    return {
        "schema_version": SCHEMA_VERSION,
        "simulated": view.capture.simulated,
        "device": {"id": view.device.number, "name": printable(view.device.name), "sm_count": view.device.sm_count},
        "granularity": granularity(view.workloads),
        "basis": view.basis,
        "mechanism": view.mechanism,
        "overlap_is_upper_bound": view.upper_bound,
        "window_ns": view.window_ns,
        "window_s": [view.window[0] / 1e9, view.window[1] / 1e9],
        "busy_ns": busy_ns,
        "idle_fraction": 1 - busy_ns / view.window_ns,
        "idle_fraction_with_copies": trace_kernels.idle_without(view),
        "gaps": occupancy.gap_summary(intervals.gaps(busy, view.window)),
        **overlap.overlap_summary(view),
        "alignment": {
            "method": alignment.method,
            "offsets_ms": [offset / 1e6 for offset in alignment.offsets_ns],
            "uncertainty_us": alignment.uncertainty_ns / 1e3,
            "overlap_ns_range": None if moved is None else list(moved.ns),
            "overlap_of_gen_range": None if moved is None or moved.of_gen is None else list(moved.of_gen),
            "overlap_of_embed_range": None if moved is None or moved.of_embed is None else list(moved.of_embed),
            "range_is_exact": None if moved is None else moved.exact,
        },
        "absent": view.absent(),
        "workloads": {name: _workload(view, name, patterns) for name in view.workloads},
        "other_processes": {"busy_ns": others_ns, "fraction_of_window": others_ns / view.window_ns},
        "processes": [_process(item.process.pid, item.process.label, item.process.name, item.kernel_count,
                               item.graph_count) for item in launchers(view.capture)],
        "profiler_overhead": overhead(view),
        "devices": sorted(device.number for device in view.capture.devices),
        "omissions": list(view.capture.omissions),
        "notes": notes(view),
    }  # fmt: skip


def profiled_words(facts: CaptureFacts, unprofiled: Mapping[str, float]) -> str:
    """Rates while profiling over the rates of the same step's trials; a capture explains, it is not for throughput."""
    ratios = []
    for name, rate in (facts.profiled.plain() if facts.profiled else {}).items():
        base = unprofiled.get(name)
        if rate and base and base == base:
            ratios.append(f"{WORKLOADS[name.split('_')[0]]} {rate / base:.2f}")
    return f"Profiled / unprofiled rate: {', '.join(ratios) or 'not recorded'}."


def granularity(workloads: Mapping[str, Active]) -> str:
    """graph: some work is graph launches traced whole; node: kernels of graphs one by one; kernel: no graphs."""
    if any(active.get("graph").any() for active in workloads.values()):
        return GRAPH
    return NODE if any(active.get("node").any() for active in workloads.values()) else KERNEL


def overhead(view: TraceWindow) -> dict[str, Any]:
    """The profiler's own rows in the window: count, busy_ns (union), fraction of the window."""
    rows = view.capture.overhead
    start, end = intervals.within(rows.start_ns, rows.end_ns, view.window)
    busy_ns = intervals.length(intervals.union(start, end))
    return {"count": int((end > start).sum()), "busy_ns": busy_ns, "fraction": busy_ns / view.window_ns}


def notes(view: TraceWindow) -> list[str]:
    """What a reader must know to take the numbers for what they are."""
    sentences = []
    if view.basis != RESIDENCY and len(view.workloads) > 1:
        sentences.append(_why_intervals(view))
    if granularity(view.workloads) == GRAPH:
        sentences.append(
            "graph launches count as busy, idle and overlap; what ran inside them is not known, so they are in no "
            "occupancy and no category (record with --cuda-graph-trace=node)"
        )
    sentences += _unknown_shapes(view)
    for export in view.capture.exports:
        sentences += [f"{export.file}: {words}: figures may be off" for words in export.doubts]
    if view.device.sm_count is None:
        sentences.append("the export does not say how many SMs the device has: no occupancy")
    if any(not export.tells_gpus and len(export.gpus) > 1 for export in view.capture.exports):
        sentences.append(
            "the export describes several GPUs and does not say which of them a process calls its device 0: what is "
            "told of a device holds only if every process sees all GPUs in the same order"
        )
    if len(view.capture.devices) > 1:
        sentences.append(f"work ran on {len(view.capture.devices)} devices; this is device {view.device.number} alone")
    if len(view.others[0]):
        sentences.append("other processes ran kernels on this device; they are in no number of the LLM or the embedder")
    sentences += [f"the {WORKLOADS[name]} {why}: it is absent from the numbers" for name, why in view.absent().items()]
    return sentences


def _unknown_shapes(view: TraceWindow) -> list[str]:
    """How many kernels of each workload have no grid: what they would have filled is in no occupancy."""
    sentences = []
    for workload, active in view.workloads.items():
        name = f"the {WORKLOADS[workload]}"
        graph, blocks = active.get("graph"), active.get("blocks")
        lost, kernels = int(((blocks <= 0) & ~graph).sum()), int((~graph).sum())
        if lost:
            sentences.append(
                f"{lost:,} of {kernels:,} kernels of {name} have no grid recorded: they are in no occupancy"
            )
        half = int(((blocks > 0) & (active.get("threads") <= 0) & ~graph).sum())
        if half and view.device.limits:
            sentences.append(
                f"{half:,} of {kernels:,} kernels of {name} lack threads, registers or shared memory: they are in no "
                "resident occupancy"
            )
    return sentences


def _why_intervals(view: TraceWindow) -> str:
    """Why the figures of two workloads rest on kernel intervals, and what that means for the overlap."""
    reason = view.decided.reason
    recorded = len(view.capture.switches) > 0
    why = f"context switches were recorded but are not used ({reason})" if recorded else reason
    if not view.upper_bound:
        how = mechanism_in_words(view.mechanism)
        return f"{why}; under {how} no context is switched out for the other: intervals tell the overlap"
    remedy = "" if recorded else " (record with --gpuctxsw=true)"
    return (
        f"{why}: if the two were time-sliced, a kernel's interval includes the time its context was switched out, "
        f"so the overlap is an upper bound{remedy}"
    )


def _workload(view: TraceWindow, name: str, patterns: trace_kernels.Patterns) -> dict[str, Any]:
    active = view.workloads[name]
    table = trace_kernels.by_name(active, view.capture.names)
    places = np.unique(active.get("process")).tolist()
    pids = [view.capture.processes[place].pid for place in places]
    graphs = active.get("graph")
    kernels = int(len(graphs) - graphs.sum())
    kernel_time_ns = int(active.active_ns[~graphs].sum())
    return {
        "pid": pids[0],
        "pids": pids,
        "name": printable(view.capture.processes[places[0]].name),
        "kernel_count": kernels,
        "graph_launch_count": int(graphs.sum()),
        "kernel_time_ns": kernel_time_ns,
        "graph_time_ns": int(active.active_ns[graphs].sum()),
        "busy_ns": intervals.length(active.busy),
        "busy_ns_by_kernel_intervals": intervals.length(active.span),
        "mean_kernel_us": kernel_time_ns / kernels / 1e3 if kernels else None,
        **occupancy.occupancy_summary(active, view.device),
        "categories": trace_kernels.category_times(table, patterns),
        "top_kernels": [
            row | {"name": printable(row["name"], LONGEST_NAME)} for row in trace_kernels.top_kernels(table)
        ],
        "copies": trace_kernels.copy_summary(view.copies[name]),
    }


def _process(pid: int, label: str, name: str, kernels: int, graphs: int) -> dict[str, Any]:
    return {"pid": pid, "label": label, "name": printable(name), "kernel_count": kernels, "graph_launch_count": graphs}
