"""Kernels by name: their category, their durations alone against shared; and memory copies.

`PATTERNS` is the one table of categories: the first whose pattern is found in the name, whatever the case, is the
kernel's. Put your own in front of it: `categorise(names, [("mine", "my_kernel"), *PATTERNS])`, or
`colo trace --category mine=REGEX`.

A duration's shift is its mean in the step / mean alone - 1, a kernel name at a time; the total is weighted by the time
each name takes alone. Names that ran on one side only are listed, not averaged: other shapes or another way of
launching make other kernels, and no shift between them means anything. Durations are the time in residence where
context switches are recorded on that side.

Memory copies and sets are a class of their own, in none of the kernel numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.window import Active, Moved, TraceWindow
from colo_lib.errors import InputError
from colo_lib.trace import COPY_KINDS, Ints

Patterns = Sequence[tuple[str, str]]
Table = dict[str, np.ndarray]
OTHER = "other"
# A kernel that the compiler fused carries the names of its neighbours too, products and attention that it calls.
NOT_FUSED = r"^(?!triton_(?:red|poi|per)_fused).*"
PATTERNS: Patterns = (
    ("MoE", NOT_FUSED + r"(?:moe|expert|topk_?gating|grouped_?topk|align_block_size)"),
    (
        "attention",
        NOT_FUSED
        + r"(?:attention|attn|flash_?fwd|flash::|fmha|flashinfer|paged|reshape_and_cache|kv_?cache|rotary|rope\b|_rope|"
        r"split_?kv|mla_|batch_?(prefill|decode)|mha)",
    ),
    (
        "GEMM",
        NOT_FUSED + r"(?:gemm|gemv|nvjet|cutlass|cublas|matmul|scaled_mm|xmma|wgmma|split_?k_?reduce|marlin|machete|"
        r"tensorop)",
    ),
    ("quantisation", r"quant|fp8|int8|per_token_group|e4m3"),
    ("norm", r"norm(?!al)|rsqrt"),
    ("activation", r"silu|gelu|relu|swiglu|act_and_mul|sigmoid|tanh"),
    (
        "sampling",
        r"sampl|argmax|top_?[kp]|multinomial|softmax|logit|penalt|radix_?sort|bitonic|exponential|distribution",
    ),
    ("communication", r"nccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|cross_device|multimem|shot_"),
    (
        "memory",
        r"memcpy|memset|copy|fill_?(functor|kernel)|catarray|concat|gather|scatter|index|embedding|transpose|slice",
    ),
)
CATEGORIES = (*(name for name, _ in PATTERNS), OTHER)


def compiled(patterns: Patterns) -> list[tuple[str, re.Pattern[str]]]:
    """The table, ready for use; raises InputError for a pattern that is no regular expression."""
    table = []
    for name, pattern in patterns:
        try:
            table.append((name, re.compile(pattern, re.IGNORECASE | re.DOTALL)))
        except re.error as error:
            raise InputError(f"category {name!r}: {pattern!r} is no regular expression: {error}") from None
    return table


def categorise(names: Sequence[str], patterns: Patterns = PATTERNS) -> list[str]:
    """The category of each name."""
    table = compiled(patterns)
    return [next((category for category, pattern in table if pattern.search(name)), OTHER) for name in names]


def by_name(active: Active, names: Sequence[str]) -> Table:
    """Columns name, kernel_count, time_ns, blocks (mean of known shapes): a row a name that ran, most time first.

    Graph launches have no kernel names and are not in it.
    """
    shaped = ~active.get("graph")
    place = active.get("name")[shaped] + np.int32(1)  # UNKNOWN becomes 0
    size = len(names) + 1
    count = np.bincount(place, minlength=size)
    time_ns = np.bincount(place, active.active_ns[shaped], minlength=size)
    blocks = active.get("blocks")[shaped]
    known = np.bincount(place, blocks > 0, minlength=size)
    total = np.bincount(place, blocks, minlength=size)
    ran = np.flatnonzero(count)
    shown = np.array(["(unnamed)", *names], object)
    order = sorted(ran.tolist(), key=lambda item: (-time_ns[item], shown[item]))
    with np.errstate(invalid="ignore"):
        mean = np.where(known[order] > 0, total[order] / known[order], np.nan)
    return {"name": shown[order], "kernel_count": count[order], "time_ns": time_ns[order].round().astype(np.int64),
            "blocks": mean}  # fmt: skip


def category_times(table: Table, patterns: Patterns = PATTERNS) -> list[dict[str, Any]]:
    """A row a category that ran, most time first: category, kernel_count, kernel_time_ns, fraction of kernel time.

    `table`: `by_name`.
    """
    total = int(table["time_ns"].sum())
    rows: dict[str, dict[str, Any]] = {}
    for category, count, time_ns in zip(
        categorise([str(name) for name in table["name"]], patterns),
        table["kernel_count"],
        table["time_ns"],
        strict=True,
    ):
        row = rows.setdefault(category, {"category": category, "kernel_count": 0, "kernel_time_ns": 0})
        row["kernel_count"] += int(count)
        row["kernel_time_ns"] += int(time_ns)
    for row in rows.values():
        row["fraction"] = row["kernel_time_ns"] / total if total else None
    return sorted(rows.values(), key=lambda row: (-row["kernel_time_ns"], row["category"]))


def top_kernels(table: Table, most: int = 10) -> list[dict[str, Any]]:
    """Names with most time: name, kernel_count, kernel_time_ns, fraction, mean_us, mean_blocks (None: unknown)."""
    total = int(table["time_ns"].sum())
    rows = []
    for place in range(min(most, len(table["name"]))):
        count, time_ns, blocks = (table[key][place] for key in ("kernel_count", "time_ns", "blocks"))
        rows.append(
            {
                "name": str(table["name"][place]),
                "kernel_count": int(count),
                "kernel_time_ns": int(time_ns),
                "fraction": int(time_ns) / total if total else None,
                "mean_us": int(time_ns) / int(count) / 1e3,
                "mean_blocks": float(blocks) if blocks == blocks else None,
            }
        )
    return rows


GRAPH_NAME = "(CUDA graph launch, whole)"


@dataclass(frozen=True)
class KernelShift:
    """A kernel name that ran on both sides: its mean durations; `shift`: shared / alone - 1, None where alone is 0."""

    name: str
    alone_us: float
    shared_us: float
    shift: float | None
    alone_count: int
    shared_count: int
    alone_time_ns: int


@dataclass(frozen=True)
class KernelTime:
    """A kernel name that ran on one side only."""

    name: str
    count: int
    time_ns: int


@dataclass(frozen=True)
class DurationShifts:
    """A workload's durations alone against shared; `kernels`: names that ran on both sides, most time first.

    `total_shift`: weighted by time alone, None where no name ran on both; `covered`: their share of the time alone.
    """

    workload: str
    kernels: list[KernelShift]
    total_shift: float | None
    covered: float | None
    only_alone: list[KernelTime]
    only_shared: list[KernelTime]


def duration_shifts(alone: TraceWindow, shared: TraceWindow, workload: str) -> DurationShifts:
    """How the durations of a workload's kernels differ between two windows."""
    before, after = _means(alone, workload), _means(shared, workload)
    both = sorted((name for name in before if name in after), key=lambda name: (-before[name][1], name))
    rows = []
    for name in both:
        (count, time_ns), (shared_count, shared_ns) = before[name], after[name]
        alone_us, shared_us = time_ns / count / 1e3, shared_ns / shared_count / 1e3
        shift = shared_us / alone_us - 1 if alone_us else None
        rows.append(KernelShift(name, alone_us, shared_us, shift, count, shared_count, time_ns))
    weights = np.array([row.alone_time_ns for row in rows if row.shift is not None], np.float64)
    shifts = np.array([row.shift for row in rows if row.shift is not None])
    whole = sum(time_ns for _, time_ns in before.values())
    return DurationShifts(
        workload=workload,
        kernels=rows,
        total_shift=float((weights * shifts).sum() / weights.sum()) if weights.sum() else None,
        covered=float(weights.sum() / whole) if whole else None,
        only_alone=_one_sided(before, after),
        only_shared=_one_sided(after, before),
    )


def _means(view: TraceWindow, workload: str) -> dict[str, tuple[int, int]]:
    """Name -> (count, time in residence). Kernels cut by the window's edge are left out: their length is not known."""
    active = view.workloads.get(workload)
    if active is None:
        return {}
    whole = (active.get("start_ns") >= view.window[0]) & (active.get("end_ns") <= view.window[1])
    graph = active.get("graph")
    place = np.where(graph, len(view.capture.names) + 1, active.get("name") + 1)[whole]
    names = ["(unnamed)", *view.capture.names, GRAPH_NAME]
    count = np.bincount(place, minlength=len(names))
    time_ns = np.bincount(place, active.active_ns[whole], minlength=len(names))
    return {names[item]: (int(count[item]), int(time_ns[item])) for item in np.flatnonzero(count).tolist()}


def _one_sided(these: dict[str, tuple[int, int]], others: dict[str, tuple[int, int]]) -> list[KernelTime]:
    missing = sorted((-time_ns, name, count) for name, (count, time_ns) in these.items() if name not in others)
    return [KernelTime(name, count, -negative) for negative, name, count in missing]


def copy_summary(moved: Moved) -> dict[str, Any]:
    """count, time_ns (summed), busy_ns (union) and bytes of one workload's copies, and the same by kind.

    Times are cut as those of kernels are, to the window and to residency where that is known.
    """
    copies, rows = moved.rows, []
    for kind in np.unique(copies.kind).tolist():
        of_kind = copies.kind == kind
        rows.append(
            {
                "kind": COPY_KINDS.get(kind, f"kind {kind}"),
                "count": int(of_kind.sum()),
                "time_ns": int(moved.active_ns[of_kind].sum()),
                "bytes": _bytes(copies.size_bytes[of_kind]),
            }
        )
    return {
        "count": len(copies),
        "time_ns": int(moved.active_ns.sum()),
        "busy_ns": intervals.length(moved.busy),
        "bytes": _bytes(copies.size_bytes),
        "kinds": sorted(rows, key=lambda row: -row["time_ns"]),
    }


def idle_without(view: TraceWindow) -> float:
    """The share of the window with neither a kernel nor a copy of either workload."""
    busy = intervals.join(view.busy, *(moved.busy for moved in view.copies.values()))
    return 1 - intervals.length(busy) / view.window_ns


def _bytes(sizes: Ints) -> int:
    """The sum in whole numbers of any size: a damaged row must not overflow it."""
    return sum(sizes.tolist()) if int(sizes.max(initial=0)) > 2**40 else int(sizes.sum())
