"""The object of `colo trace` as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME_WIDTH = 76


def text(found: Mapping[str, Any]) -> str:
    """Every answer on a screen or two, the unsure ones with what makes them so."""
    lines = [*_head(found), "", *_overlap(found), *_idle(found)]
    for name, workload in found["workloads"].items():
        lines += ["", *_workload(name, workload)]
    lines += [line for name, why in found["absent"].items() for line in ("", f"{name}: absent, it {why}")]
    told = [*found["notes"], *(f"left out: {words}" for words in found["omissions"])]
    if told:
        lines += ["", "Note:", *(f"  - {words}" for words in told)]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A fraction as percent, '—' where there is none."""
    return "—" if value is None else f"{value:.1%}"


def without_overlap(found: Mapping[str, Any]) -> str:
    """Why there is no overlap: which workload is absent."""
    told = [f"{name} {why}" for name, why in found["absent"].items()]
    return f"it takes both gen and embed{': ' if told else ''}{', '.join(told)}"


def clocks_moved(alignment: Mapping[str, Any]) -> dict[str, str]:
    """What the overlap may be as the clocks of two sessions allow, by figure, in words; empty with one session."""
    nanoseconds = alignment["overlap_ns_range"]
    if nanoseconds is None:
        return {}
    told = {"Both at once": f"{_ms(nanoseconds[0])} to {_ms(nanoseconds[1])}"}
    for name in ("gen", "embed"):
        shares = alignment[f"overlap_of_{name}_range"]
        if shares:
            told[f"Overlap of {name}"] = f"{percent(shares[0])} to {percent(shares[1])} of {name}'s"
    if not alignment["range_is_exact"]:
        told = {what: f"{words} (at the widest: too much to go through)" for what, words in told.items()}
    return told


def _head(found: Mapping[str, Any]) -> list[str]:
    device = found["device"]
    sms = f"{device['sm_count']} SMs" if device["sm_count"] else "SM count not recorded"
    start, end = found["window_s"]
    lines = ["SIMULATED: these rows were planted, no GPU ran."] if found["simulated"] else []
    lines += [
        f"GPU {device['id']}: {device['name']} ({sms}); window {start:.6f} to {end:.6f} s, {_ms(found['window_ns'])}; "
        f"granularity: {found['granularity']}; mechanism: {found['mechanism'] or 'not recorded'}",
        "Processes that launched work:",
    ]
    roles = {pid: name for name, workload in found["workloads"].items() for pid in workload["pids"]}
    how = "likely " if found.get("workloads_guessed") else ""
    for process in found["processes"]:
        graphs = f", {process['graph_launch_count']:,} graph launches" if process["graph_launch_count"] else ""
        role = f"  -> {how}{roles[process['pid']]}" if process["pid"] in roles else ""
        name = process["name"] or "(no name recorded)"
        lines.append(f"  {process['label']:>9}  {name}: {process['kernel_count']:,} kernels{graphs}{role}")
    if found.get("workloads_guessed"):
        lines.append("  (guessed from names, graphs and durations; --gen and --embed say it)")
    alignment = found["alignment"]
    if alignment["uncertainty_us"]:
        apart = ", ".join(f"{offset:.3f}" for offset in alignment["offsets_ms"])
        lines.append(
            f"Clocks: {alignment['method']}, at {apart} ms; uncertainty {alignment['uncertainty_us']:.0f} us (assumed: "
            "no export records it)"
        )
    return lines


def _overlap(found: Mapping[str, Any]) -> list[str]:
    if found["overlap_ns"] is None:
        return [f"Kernel overlap: — ({without_overlap(found)})"]
    bound = ", an UPPER BOUND" if found["overlap_is_upper_bound"] else ""
    lines = [
        f"Kernel overlap (basis: {found['basis']}{bound}): {_ms(found['overlap_ns'])} = "
        f"{percent(found['overlap_of_gen'])} of gen's busy time, {percent(found['overlap_of_embed'])} of embed's"
    ]
    moved = clocks_moved(found["alignment"])
    lines += [f"  with the clocks moved by their uncertainty: {', '.join(moved.values())}"] if moved else []
    return lines


def _idle(found: Mapping[str, Any]) -> list[str]:
    gaps, overhead = found["gaps"], found["profiler_overhead"]
    lines = [
        f"GPU idle: {percent(found['idle_fraction'])} of the window (busy {_ms(found['busy_ns'])}, union of kernels); "
        f"{percent(found['idle_fraction_with_copies'])} with neither kernel nor copy"
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


def _workload(name: str, found: Mapping[str, Any]) -> list[str]:
    pids = ", ".join(str(pid) for pid in found["pids"])
    graphs = f" + {found['graph_launch_count']:,} graph launches {_ms(found['graph_time_ns'])}"
    graphs = graphs if found["graph_launch_count"] else ""
    mean = "" if found["mean_kernel_us"] is None else f", mean {found['mean_kernel_us']:.1f} us"
    lines = [
        f"{name} (pid {pids}): {found['kernel_count']:,} kernels, summed {_ms(found['kernel_time_ns'])}{mean}{graphs}; "
        f"busy (union) {_ms(found['busy_ns'])}"
    ]
    if found["sm_occupancy_by_count"] is not None:
        half = found["under_half_device"]
        lines += [
            f"  SM occupancy by launch shape (arithmetic): {percent(found['sm_occupancy_by_count'])} by count, "
            f"{percent(found['sm_occupancy_by_time'])} by time; {found['mean_blocks_per_kernel']:,.0f} blocks a "
            f"kernel; resident {percent(found['resident_occupancy_by_time'])}",
            f"  under half the SMs: {percent(half['by_count'])} of kernels, {percent(half['by_time'])} of their time; "
            f"one block: {percent(found['one_block_fraction'])}; all SMs: {percent(found['full_device_fraction'])}",
        ]
    for row in found["categories"]:
        lines.append(
            f"  {row['category']:>14}  {row['kernel_count']:>9,}  {_ms(row['kernel_time_ns']):>12}  "
            f"{percent(row['fraction']):>6}"
        )
    for row in found["top_kernels"][:5]:
        blocks = "—" if row["mean_blocks"] is None else f"{row['mean_blocks']:,.0f} blocks"
        shown = row["name"] if len(row["name"]) <= NAME_WIDTH else row["name"][: NAME_WIDTH - 1] + "…"
        lines.append(f"  {percent(row['fraction']):>6}  {row['mean_us']:>9.1f} us  {blocks:>14}  {shown}")
    copies = found["copies"]
    if copies["count"]:
        lines.append(f"  copies and sets: {copies['count']:,}, {_ms(copies['busy_ns'])}, {copies['bytes']:,} bytes")
    return lines


def _ms(value_ns: int) -> str:
    return f"{value_ns / 1e6:,.2f} ms"
