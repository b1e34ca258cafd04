"""The object of `colo trace` as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colo_lib.steps import WORKLOADS

NAME_WIDTH = 76
THE = {workload: f"the {name}" for workload, name in WORKLOADS.items()}


def text(summary: Mapping[str, Any]) -> str:
    """Every answer on a screen or two, the unsure ones with what makes them so."""
    lines = [*_head(summary), "", *_overlap(summary), *_idle(summary)]
    for name, workload in summary["workloads"].items():
        lines += ["", *_workload(name, workload)]
    lines += [line for name, why in summary["absent"].items() for line in ("", f"{WORKLOADS[name]}: absent, it {why}")]
    notes = [*summary["notes"], *(f"left out: {words}" for words in summary["omissions"])]
    if notes:
        lines += ["", "Note:", *(f"  - {words}" for words in notes)]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A fraction as percent, '—' where there is none."""
    return "—" if value is None else f"{value:.1%}"


def without_overlap(summary: Mapping[str, Any]) -> str:
    """Why there is no overlap: which workload is absent."""
    absent = [f"{THE[name]} {why}" for name, why in summary["absent"].items()]
    return f"it takes both the LLM and the embedder{': ' if absent else ''}{', '.join(absent)}"


def clocks_moved(alignment: Mapping[str, Any]) -> dict[str, str]:
    """What the overlap may be as the clocks of two sessions allow, by figure, in words; empty with one session."""
    nanoseconds = alignment["overlap_ns_range"]
    if nanoseconds is None:
        return {}
    ranges = {"Both at once": f"{_ms(nanoseconds[0])} to {_ms(nanoseconds[1])}"}
    for name in ("gen", "embed"):
        shares = alignment[f"overlap_of_{name}_range"]
        if shares:
            ranges[f"Overlap of {THE[name]}"] = f"{percent(shares[0])} to {percent(shares[1])} of {THE[name]}'s"
    if not alignment["range_is_exact"]:
        ranges = {what: f"{words} (at the widest: too much to go through)" for what, words in ranges.items()}
    return ranges


def _head(summary: Mapping[str, Any]) -> list[str]:
    device = summary["device"]
    sms = f"{device['sm_count']} SMs" if device["sm_count"] else "SM count not recorded"
    start, end = summary["window_s"]
    lines = ["SIMULATED: these rows were planted, no GPU ran."] if summary["simulated"] else []
    lines += [
        f"GPU {device['id']}: {device['name']} ({sms}); window {start:.6f} to {end:.6f} s, "
        f"{_ms(summary['window_ns'])}; granularity: {summary['granularity']}; "
        f"mechanism: {summary['mechanism'] or 'not recorded'}",
        "Processes that launched work:",
    ]
    roles = {pid: name for name, workload in summary["workloads"].items() for pid in workload["pids"]}
    how = "likely " if summary.get("workloads_guessed") else ""
    for process in summary["processes"]:
        graphs = f", {process['graph_launch_count']:,} graph launches" if process["graph_launch_count"] else ""
        role = f"  -> {how}{WORKLOADS[roles[process['pid']]]}" if process["pid"] in roles else ""
        name = process["name"] or "(no name recorded)"
        lines.append(f"  {process['label']:>9}  {name}: {process['kernel_count']:,} kernels{graphs}{role}")
    if summary.get("workloads_guessed"):
        lines.append("  (guessed from names, graphs and durations; --gen and --embed say it)")
    alignment = summary["alignment"]
    if alignment["uncertainty_us"]:
        apart = ", ".join(f"{offset:.3f}" for offset in alignment["offsets_ms"])
        lines.append(
            f"Clocks: {alignment['method']}, at {apart} ms; uncertainty {alignment['uncertainty_us']:.0f} us (assumed: "
            "no export records it)"
        )
    return lines


def _overlap(summary: Mapping[str, Any]) -> list[str]:
    if summary["overlap_ns"] is None:
        return [f"Kernel overlap: — ({without_overlap(summary)})"]
    bound = ", an UPPER BOUND" if summary["overlap_is_upper_bound"] else ""
    lines = [
        f"Kernel overlap (basis: {summary['basis']}{bound}): {_ms(summary['overlap_ns'])} = "
        f"{percent(summary['overlap_of_gen'])} of {THE['gen']}'s busy time, "
        f"{percent(summary['overlap_of_embed'])} of {THE['embed']}'s"
    ]
    moved = clocks_moved(summary["alignment"])
    lines += [f"  with the clocks moved by their uncertainty: {', '.join(moved.values())}"] if moved else []
    return lines


def _idle(summary: Mapping[str, Any]) -> list[str]:
    gaps, overhead = summary["gaps"], summary["profiler_overhead"]
    lines = [
        f"GPU idle: {percent(summary['idle_fraction'])} of the window (busy {_ms(summary['busy_ns'])}, union of "
        f"kernels); {percent(summary['idle_fraction_with_copies'])} with neither kernel nor copy"
    ]
    if gaps["count"]:
        lines.append(
            f"  {gaps['count']:,} gaps: mean {gaps['mean_us']:.1f} us, p50 {gaps['p50_us']:.1f}, p99 "
            f"{gaps['p99_us']:.1f}, longest {gaps['max_us']:,.1f}; {gaps['over_10us_count']:,} over 10 us"
        )
    if overhead["count"]:
        lines.append(
            f"  profiler's own rows: {overhead['count']:,}, {_ms(overhead['busy_ns'])} = "
            f"{percent(overhead['fraction'])} of the window"
        )
    return lines


def _workload(name: str, answers: Mapping[str, Any]) -> list[str]:
    pids = ", ".join(str(pid) for pid in answers["pids"])
    graphs = f" + {answers['graph_launch_count']:,} graph launches {_ms(answers['graph_time_ns'])}"
    graphs = graphs if answers["graph_launch_count"] else ""
    mean = "" if answers["mean_kernel_us"] is None else f", mean {answers['mean_kernel_us']:.1f} us"
    lines = [
        f"{WORKLOADS[name]} (pid {pids}): {answers['kernel_count']:,} kernels, summed "
        f"{_ms(answers['kernel_time_ns'])}{mean}{graphs}; busy (union) {_ms(answers['busy_ns'])}"
    ]
    if answers["sm_occupancy_by_count"] is not None:
        half = answers["under_half_device"]
        lines += [
            f"  SM occupancy by launch shape (arithmetic): {percent(answers['sm_occupancy_by_count'])} by count, "
            f"{percent(answers['sm_occupancy_by_time'])} by time; {answers['mean_blocks_per_kernel']:,.0f} blocks a "
            f"kernel; resident {percent(answers['resident_occupancy_by_time'])}",
            f"  under half the SMs: {percent(half['by_count'])} of kernels, {percent(half['by_time'])} of their time; "
            f"one block: {percent(answers['one_block_fraction'])}; all SMs: {percent(answers['full_device_fraction'])}",
        ]
    for row in answers["categories"]:
        lines.append(
            f"  {row['category']:>14}  {row['kernel_count']:>9,}  {_ms(row['kernel_time_ns']):>12}  "
            f"{percent(row['fraction']):>6}"
        )
    for row in answers["top_kernels"][:5]:
        blocks = "—" if row["mean_blocks"] is None else f"{row['mean_blocks']:,.0f} blocks"
        shown = row["name"] if len(row["name"]) <= NAME_WIDTH else row["name"][: NAME_WIDTH - 1] + "…"
        lines.append(f"  {percent(row['fraction']):>6}  {row['mean_us']:>9.1f} us  {blocks:>14}  {shown}")
    copies = answers["copies"]
    if copies["count"]:
        lines.append(f"  copies and sets: {copies['count']:,}, {_ms(copies['busy_ns'])}, {copies['bytes']:,} bytes")
    return lines


def _ms(value_ns: int) -> str:
    return f"{value_ns / 1e6:,.2f} ms"
