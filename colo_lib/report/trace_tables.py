"""The answers of a capture as tables to read: every table of the brief's section on traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from colo_lib.analysis.trace.kernels import DurationShifts
from colo_lib.analysis.trace.occupancy import GapClass
from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.residency import Basis
from colo_lib.report.trace_text import THE, clocks_moved, percent, without_overlap
from colo_lib.steps import STEPS, WORKLOADS, capital, mechanism_in_words

NONE = "—"
NAME_WIDTH = 90


def device(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What was looked at, on what, and how sure it is (`analysis.trace.summary`)."""
    gpu, alignment = summary["device"], summary["alignment"]
    start, end = summary["window_s"]
    clocks = alignment["method"]
    if alignment["uncertainty_us"]:
        apart = max(alignment["offsets_ms"]) - min(alignment["offsets_ms"])
        clocks += f", {apart:.3f} ms apart; uncertainty {alignment['uncertainty_us']:.0f} us (assumed)"
    overhead = summary["profiler_overhead"]
    rows = [
        ("GPU", f"{gpu['name']}, {gpu['sm_count'] or 'unknown number of'} SMs"),
        ("Window", f"{summary['window_ns'] / 1e6:,.2f} ms, from {start:.4f} to {end:.4f} s"),
        (
            "Granularity",
            f"{summary['granularity']} (graph: launches whole; node: a graph's kernels; kernel: no graphs)",
        ),
        ("Basis", Basis(summary["basis"], summary["overlap_is_upper_bound"]).words),
        ("Mechanism", mechanism_in_words(summary["mechanism"] or "not recorded")),
        ("Clocks", clocks),
        ("Profiler's own rows", f"{overhead['count']:,}, {percent(overhead['fraction'])} of the window"),
        ("Other processes on the GPU", percent(summary["other_processes"]["fraction_of_window"])),
        *((capital(WORKLOADS[name]), f"absent: it {why}") for name, why in summary["absent"].items()),
    ]
    return pd.DataFrame(rows, columns=["What", "Value"])


def overlap(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Kernel overlap, each share with its denominator."""
    if summary["overlap_ns"] is None:
        return pd.DataFrame([("Kernel overlap", NONE, without_overlap(summary))], columns=["What", "Value", "Of"])
    rows = [
        ("Both at once", _ms(summary["overlap_ns"]), "|U(LLM) ∩ U(embedder)|"),
        *(
            (f"Overlap of {who}", percent(summary[f"overlap_of_{name}"]), f"{who}'s busy {_busy(summary, name)}")
            for name, who in THE.items()
        ),
    ]
    for what, words in clocks_moved(summary["alignment"]).items():
        rows.append((f"{what}, clocks moved by their uncertainty", words, ""))
    return pd.DataFrame(rows, columns=["What", "Value", "Of"])


def occupancy(summary: Mapping[str, Any]) -> pd.DataFrame:
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
    return _by_workload(summary, rows)


def idle(summary: Mapping[str, Any], classes: Sequence[GapClass]) -> pd.DataFrame:
    """Idle share and gaps of the device, then the size classes."""
    gaps = summary["gaps"]
    rows = [
        (
            "GPU idle",
            percent(summary["idle_fraction"]),
            f"busy {_ms(summary['busy_ns'])} of {_ms(summary['window_ns'])}",
        ),
        ("… with neither kernel nor copy", percent(summary["idle_fraction_with_copies"]), ""),
        ("Gaps", f"{gaps['count']:,}", f"{gaps['over_10us_count']:,} over 10 us"),
        ("Mean gap", _us(gaps["mean_us"]), f"p50 {_us(gaps['p50_us'])}, p99 {_us(gaps['p99_us'])}"),
        ("Longest gap", _us(gaps["max_us"]), ""),
    ]
    rows += [
        (
            f"Gaps {row.name}",
            f"{row.count:,}",
            f"{_ms(row.total_ns)}, {percent(row.fraction)} of the window",
        )
        for row in classes
    ]
    return pd.DataFrame(rows, columns=["What", "Value", "More"])


def categories(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The brief's breakdown by category, a row a workload and category."""
    rows = [
        (
            WORKLOADS[name],
            row["category"],
            f"{row['kernel_count']:,}",
            _ms(row["kernel_time_ns"]),
            percent(row["fraction"]),
        )
        for name, workload in summary["workloads"].items()
        for row in workload["categories"]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Category", "Kernels", "Time", "Share of kernel time"])


def top_kernels(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The kernels with most time."""
    rows = [
        (WORKLOADS[name], printable(row["name"], NAME_WIDTH), f"{row['kernel_count']:,}", _ms(row["kernel_time_ns"]),
         percent(row["fraction"]), _us(row["mean_us"]), _number(row["mean_blocks"]))
        for name, workload in summary["workloads"].items()
        for row in workload["top_kernels"]
    ]  # fmt: skip
    columns = ["Workload", "Kernel", "Count", "Time", "Share", "Mean", "Mean blocks"]
    return pd.DataFrame(rows, columns=columns)


def copies(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Memory copies and sets, a class of their own."""
    rows = [
        (WORKLOADS[name], row["kind"], f"{row['count']:,}", _ms(row["time_ns"]), f"{row['bytes'] / 2**20:,.2f} MiB")
        for name, workload in summary["workloads"].items()
        for row in workload["copies"]["kinds"]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Kind", "Count", "Summed time", "Bytes"])


def shift(durations: Sequence[DurationShifts], most: int = 12) -> pd.DataFrame:
    """Durations alone against shared, the total first."""
    rows = []
    for item in durations:
        covered = f"names that ran on both sides: {percent(item.covered)} of the time alone"
        total = NONE if item.total_shift is None else f"{round(item.total_shift, 3) + 0.0:+.1%}"
        rows.append((WORKLOADS[item.workload], f"all, weighted by time alone; {covered}", NONE, NONE, total))
        rows += [
            (WORKLOADS[item.workload], printable(row.name, NAME_WIDTH), _us(row.alone_us),
             _us(row.shared_us), NONE if row.shift is None else f"{round(row.shift, 3) + 0.0:+.1%}")
            for row in item.kernels[:most]
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Workload", "Kernel", "Mean alone", "Mean shared", "Shift"])


def one_sided(durations: Sequence[DurationShifts], most: int = 8) -> pd.DataFrame:
    """Names that ran on one side only: listed, not averaged."""
    rows = [
        (
            WORKLOADS[item.workload],
            side,
            printable(row.name, NAME_WIDTH),
            f"{row.count:,}",
            _ms(row.time_ns),
        )
        for item in durations
        for side, key in (("alone", "only_alone"), ("shared", "only_shared"))
        for row in getattr(item, key)[:most]
    ]
    return pd.DataFrame(rows, columns=["Workload", "Only when", "Kernel", "Count", "Time"])


def overlap_words(summary: Mapping[str, Any]) -> str:
    """The timeline in words."""
    if summary["overlap_ns"] is None:
        return f"Kernels over time. No overlap: {without_overlap(summary)}."
    bound = ", at most" if summary["overlap_is_upper_bound"] else ""
    return (
        f"Kernels of the LLM and the embedder over time, in two rows. Both ran at once for {_ms(summary['overlap_ns'])}"
        f"{bound}: {percent(summary['overlap_of_gen'])} of the LLM's busy time, "
        f"{percent(summary['overlap_of_embed'])} of the embedder's."
    )


def _by_workload(summary: Mapping[str, Any], rows: Mapping[str, Any]) -> pd.DataFrame:
    names = list(summary["workloads"])
    table = [(what, *(cell(summary["workloads"][name]) for name in names)) for what, cell in rows.items()]
    return pd.DataFrame(table, columns=["Measure", *(WORKLOADS[name] for name in names)])


def _busy(summary: Mapping[str, Any], name: str) -> str:
    return _ms(summary["workloads"][name]["busy_ns"])


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


def token_times(times: pd.DataFrame) -> pd.DataFrame:
    """`SweepAnalysis.token_times` as shown: a row a captured step that ran gen on one device, ms per token."""
    rows = [
        {"Cell": row["cell"], "Step": STEPS[row["step"]].name, "In flight": str(row["concurrency"]),
         "Tokens seen": f"{row['tokens']:.1f}", "A token in trials (ms)": f"{row['trials_ns'] / 1e6:.2f}"}
        | {title: f"{row[part] / 1e6:.2f}" for part, title in PARTS.items()}
        for row in times.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
