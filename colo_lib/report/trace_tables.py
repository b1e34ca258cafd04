"""The answers of captures as tables to read, and as text for a terminal.

The object of `colo trace` as text for a terminal.

The answers of captures as tables to read.

The answers of a capture as tables to read: every table of the brief's section on traces.

Where a token's time goes in every captured step of some runs, for reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.residency import Basis
from colo_lib.steps import STEPS

NAME_WIDTH_IN_TEXT = 76


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
        shown = row["name"] if len(row["name"]) <= NAME_WIDTH_IN_TEXT else row["name"][: NAME_WIDTH_IN_TEXT - 1] + "…"
        lines.append(f"  {percent(row['fraction']):>6}  {row['mean_us']:>9.1f} us  {blocks:>14}  {shown}")
    copies = found["copies"]
    if copies["count"]:
        lines.append(f"  copies and sets: {copies['count']:,}, {_ms(copies['busy_ns'])}, {copies['bytes']:,} bytes")
    return lines


NONE = "—"
NAME_WIDTH = 90


def device(found: Mapping[str, Any]) -> pd.DataFrame:
    """What was looked at, on what, and how sure it is (`analysis.trace.summary`)."""
    gpu, alignment = found["device"], found["alignment"]
    start, end = found["window_s"]
    clocks = alignment["method"]
    if alignment["uncertainty_us"]:
        apart = max(alignment["offsets_ms"]) - min(alignment["offsets_ms"])
        clocks += f", {apart:.3f} ms apart; uncertainty {alignment['uncertainty_us']:.0f} us (assumed)"
    overhead = found["profiler_overhead"]
    rows = [
        ("GPU", f"{gpu['name']}, {gpu['sm_count'] or 'unknown number of'} SMs"),
        ("Window", f"{found['window_ns'] / 1e6:,.2f} ms, from {start:.4f} to {end:.4f} s"),
        ("Granularity", f"{found['granularity']} (graph: launches whole; node: a graph's kernels; kernel: no graphs)"),
        ("Basis", Basis(found["basis"], found["overlap_is_upper_bound"]).words),
        ("Mechanism", found["mechanism"] or "not recorded"),
        ("Clocks", clocks),
        ("Profiler's own rows", f"{overhead['count']:,}, {percent(overhead['fraction'])} of the window"),
        ("Other processes on the GPU", percent(found["other_processes"]["fraction_of_window"])),
        *((f"{name[0].upper()}{name[1:]}", f"absent: it {why}") for name, why in found["absent"].items()),
    ]
    return pd.DataFrame(rows, columns=["What", "Value"])


def overlap(found: Mapping[str, Any]) -> pd.DataFrame:
    """Kernel overlap, each share with its denominator."""
    if found["overlap_ns"] is None:
        return pd.DataFrame([("Kernel overlap", NONE, without_overlap(found))], columns=["What", "Value", "Of"])
    rows = [
        ("Both at once", _ms(found["overlap_ns"]), "|U(gen) ∩ U(embed)|"),
        ("Overlap of gen", percent(found["overlap_of_gen"]), f"gen's busy {_busy(found, 'gen')}"),
        ("Overlap of embed", percent(found["overlap_of_embed"]), f"embed's busy {_busy(found, 'embed')}"),
    ]
    for what, words in clocks_moved(found["alignment"]).items():
        rows.append((f"{what}, clocks moved by their uncertainty", words, ""))
    return pd.DataFrame(rows, columns=["What", "Value", "Of"])


def occupancy(found: Mapping[str, Any]) -> pd.DataFrame:
    """The brief's table of kernels and occupancy, a column a workload."""
    rows = {
        "Kernels": lambda w: f"{w['kernel_count']:,}",
        "Graph launches (unknown shape)": lambda w: f"{w['graph_launch_count']:,}",
        "Kernels without a grid (in no occupancy)": lambda w: f"{w['unknown_shape_count']:,}",
        "Mean kernel duration": lambda w: _us(w["mean_kernel_us"]),
        "Mean blocks a kernel": lambda w: _number(w["mean_blocks_per_kernel"]),
        "SM occupancy by kernel count (theoretical)": lambda w: percent(w["sm_occupancy_by_count"]),
        "SM occupancy by kernel time (theoretical)": lambda w: percent(w["sm_occupancy_by_time"]),
        "Resident warps by kernel time (arithmetic)": lambda w: percent(w["resident_occupancy_by_time"]),
        "Kernels under half the SMs, by count": lambda w: percent((w["under_half_device"] or {}).get("by_count")),
        "Kernels under half the SMs, by time": lambda w: percent((w["under_half_device"] or {}).get("by_time")),
        "Kernels of one block": lambda w: percent(w["one_block_fraction"]),
        "Kernels that fill all SMs": lambda w: percent(w["full_device_fraction"]),
        "Summed kernel and graph time": lambda w: _ms(w["kernel_time_ns"] + w["graph_time_ns"]),
        "Busy (union)": lambda w: _ms(w["busy_ns"]),
    }
    return _by_workload(found, rows)


def idle(found: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Idle share and gaps of the device, then the size classes."""
    gaps = found["gaps"]
    rows = [
        ("GPU idle", percent(found["idle_fraction"]), f"busy {_ms(found['busy_ns'])} of {_ms(found['window_ns'])}"),
        ("… with neither kernel nor copy", percent(found["idle_fraction_with_copies"]), ""),
        ("Gaps", f"{gaps['count']:,}", f"{gaps['over_10us_count']:,} over 10 us"),
        ("Mean gap", _us(gaps["mean_us"]), f"p50 {_us(gaps['p50_us'])}, p99 {_us(gaps['p99_us'])}"),
        ("Longest gap", _us(gaps["max_us"]), ""),
    ]
    rows += [
        (
            f"Gaps {row['class']}",
            f"{row['count']:,}",
            f"{_ms(row['total_ns'])}, {percent(row['fraction'])} of the window",
        )
        for row in classes
    ]
    return pd.DataFrame(rows, columns=["What", "Value", "More"])


def categories(found: Mapping[str, Any]) -> pd.DataFrame:
    """The brief's breakdown by category, a row a workload and category."""
    rows = [
        (name, row["category"], f"{row['kernel_count']:,}", _ms(row["kernel_time_ns"]), percent(row["fraction"]))
        for name, workload in found["workloads"].items()
        for row in workload["categories"]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Category", "Kernels", "Time", "Share of kernel time"])


def top_kernels(found: Mapping[str, Any]) -> pd.DataFrame:
    """The kernels with most time."""
    rows = [
        (name, printable(row["name"], NAME_WIDTH), f"{row['kernel_count']:,}", _ms(row["kernel_time_ns"]),
         percent(row["fraction"]), _us(row["mean_us"]), _number(row["mean_blocks"]))
        for name, workload in found["workloads"].items()
        for row in workload["top_kernels"]
    ]  # fmt: skip
    columns = ["Workload", "Kernel", "Count", "Time", "Share", "Mean", "Mean blocks"]
    return pd.DataFrame(rows, columns=columns)


def copies(found: Mapping[str, Any]) -> pd.DataFrame:
    """Memory copies and sets, a class of their own."""
    rows = [
        (name, row["kind"], f"{row['count']:,}", _ms(row["time_ns"]), f"{row['bytes'] / 2**20:,.2f} MiB")
        for name, workload in found["workloads"].items()
        for row in workload["copies"]["kinds"]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Kind", "Count", "Summed time", "Bytes"])


def shift(found: Sequence[Mapping[str, Any]], most: int = 12) -> pd.DataFrame:
    """Durations alone against shared, the total first."""
    rows = []
    for item in found:
        covered = f"names that ran on both sides: {percent(item['covered'])} of the time alone"
        total = NONE if item["total_shift"] is None else f"{round(item['total_shift'], 3) + 0.0:+.1%}"
        rows.append((item["workload"], f"all, weighted by time alone; {covered}", NONE, NONE, total))
        rows += [
            (item["workload"], printable(row["name"], NAME_WIDTH), _us(row["alone_us"]), _us(row["shared_us"]),
             NONE if row["shift"] is None else f"{round(row['shift'], 3) + 0.0:+.1%}")
            for row in item["kernels"][:most]
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Workload", "Kernel", "Mean alone", "Mean shared", "Shift"])


def one_sided(found: Sequence[Mapping[str, Any]], most: int = 8) -> pd.DataFrame:
    """Names that ran on one side only: listed, not averaged."""
    rows = [
        (item["workload"], side, printable(row["name"], NAME_WIDTH), f"{row['count']:,}", _ms(row["time_ns"]))
        for item in found
        for side, key in (("alone", "only_alone"), ("shared", "only_shared"))
        for row in item[key][:most]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Only when", "Kernel", "Count", "Time"])


def overlap_words(found: Mapping[str, Any]) -> str:
    """The timeline in words."""
    if found["overlap_ns"] is None:
        return f"Kernels over time. No overlap: {without_overlap(found)}."
    bound = ", at most" if found["overlap_is_upper_bound"] else ""
    return (
        f"Kernels of gen and embed over time, in two rows. Both ran at once for {_ms(found['overlap_ns'])}{bound}: "
        f"{percent(found['overlap_of_gen'])} of gen's busy time, {percent(found['overlap_of_embed'])} of embed's."
    )


def _by_workload(found: Mapping[str, Any], rows: Mapping[str, Any]) -> pd.DataFrame:
    names = list(found["workloads"])
    table = [(what, *(cell(found["workloads"][name]) for name in names)) for what, cell in rows.items()]
    return pd.DataFrame(table, columns=["Measure", *names])


def _busy(found: Mapping[str, Any], name: str) -> str:
    return _ms(found["workloads"][name]["busy_ns"])


def _ms(value_ns: float) -> str:
    return f"{value_ns / 1e6:,.2f} ms"


def _us(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f} us"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


PARTS = {
    "window_ns": "In the capture (ms)", "busy_ns": "Its kernels run (ms)", "switched_out_ns": "Switched out (ms)",
    "waiting_ns": "Waiting for the device (ms)", "host_ns": "Host (ms)", "unattributed_ns": "Launch unknown (ms)",
}  # fmt: skip
COLUMNS = ["Cell", "Step", "In flight", "Tokens seen", "A token in trials (ms)", *PARTS.values()]


def token_times(found: pd.DataFrame) -> pd.DataFrame:
    """`SweepAnalysis.token_times` as shown: a row a captured step that ran gen on one device, ms per token."""
    rows = [
        {"Cell": row["cell"], "Step": STEPS[row["step"]].name, "In flight": str(row["concurrency"]),
         "Tokens seen": f"{row['tokens']:.1f}", "A token in trials (ms)": f"{row['trials_ns'] / 1e6:.2f}"}
        | {title: f"{row[part] / 1e6:.2f}" for part, title in PARTS.items()}
        for row in found.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
