"""What kind of work a kernel is, by its name; and the kernels that take most time.

`PATTERNS` is the one table: the first category whose pattern is found in the name, whatever the case, is the
kernel's. Put your own in front of it: `categorise(names, [("mine", "my_kernel"), *PATTERNS])`, or
`colo trace --category mine=REGEX`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from colo_lib.analyse.view import Active
from colo_lib.errors import InputError

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
    found = []
    for name, pattern in patterns:
        try:
            found.append((name, re.compile(pattern, re.IGNORECASE | re.DOTALL)))
        except re.error as error:
            raise InputError(f"category {name!r}: {pattern!r} is no regular expression: {error}") from None
    return found


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


def summarise(table: Table, patterns: Patterns = PATTERNS) -> list[dict[str, Any]]:
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
