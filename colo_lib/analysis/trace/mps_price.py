"""What being an MPS client would cost the LLM, predicted from the launches of one capture of it alone.

Derivation. A decode step replays a CUDA graph in which each kernel waits for the one before it. Chains of such kernels
were timed with MPS and without: straight lines of code of so many KiB on so many blocks, nobody else on the GPU
(`benchmarks/mps_kernel_cost.py`; docs/hardware.md has the tables). What MPS adds to a link is a surface over both,

    added(blocks, KiB),    and a step takes longer by    sum over its kernels of added(blocks, KiB).

Between the measured numbers of blocks it is taken as straight in their logarithm, beyond them as constant; what comes
out below 0 is within the error of 4 % and taken as 0. A capture tells a kernel's blocks and not its code: `CODE_KIB`
guesses that from the kernel's category. So three numbers are told: with the guess, and the least and the most that any
size of code that was measured gives.

What it does not hold: shared memory, registers, clusters and waiting for bytes, which no chain has. Where those decide
the prediction fails, and the sentence names the kernel at which it fails most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import number
from colo_lib.analysis.trace.kernels import OTHER, categorise
from colo_lib.analysis.trace.window import TraceWindow
from colo_lib.gpus import GPUS, find_gpu

CODE_KIB = {"attention": 32, "GEMM": 32, "MoE": 32, "sampling": 16, "norm": 4, "activation": 4, "quantisation": 4,
            "communication": 4, "memory": 1, OTHER: 4}  # fmt: skip
CLASSES = {"1": 1, "2 to 8": 8, "9 to 131": 131, "132": 132, "more": math.inf}
COLUMNS = ["name", "category", "kib", "blocks", "count", "alone_us", "client_us", "predicted_us", "least_us", "most_us"]
NAME_CHARACTERS = 80


@dataclass(frozen=True)
class Surface:
    """us that MPS adds to a kernel of a chain: KiB of code -> one number for each of `blocks`, in that order."""

    blocks: tuple[int, ...]
    added_us: Mapping[int, tuple[float, ...]]
    source: str

    def us(self, blocks: np.ndarray, kib: np.ndarray) -> np.ndarray:
        """Of kernels of so many blocks (1 and more) and of code sizes that were measured; 0 and more."""
        places = np.log(np.asarray(self.blocks, np.float64))
        asked = np.log(np.maximum(blocks, 1).astype(np.float64))
        lines = {size: np.interp(asked, places, added) for size, added in self.added_us.items()}
        return np.maximum(0.0, np.select([kib == size for size in lines], list(lines.values()), np.nan))

    def range_us(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most over all sizes of code."""
        every = [self.us(blocks, np.full(len(blocks), size)) for size in self.added_us]
        return np.min(every, axis=0), np.max(every, axis=0)


# card of `gpus` -> with MPS less without, 2026-11, driver 580.159.04
SURFACES = {
    "h200": Surface(
        (1, 8, 132),
        {1: (0.10, -0.02, 0.07), 4: (0.10, -0.01, 0.07), 16: (0.65, -0.01, 0.07), 32: (1.75, 0.67, 0.79)},
        "one H200, benchmarks/mps_kernel_cost.py",
    ),
    "h100": Surface(
        (1, 8, 132),
        {1: (0.13, -0.01, 0.0), 4: (0.09, -0.03, -0.01), 16: (1.07, -0.01, 0.0), 32: (1.93, 0.02, -0.01)},
        "one H100, a quick probe without repetition",
    ),
}


def surface_of(device_name: str) -> Surface | None:
    """The surface of a card by the driver's name for it; None where none was measured."""
    found = find_gpu(device_name)
    return next((SURFACES[key] for key, gpu in GPUS.items() if gpu is found and key in SURFACES), None)


def durations(view: TraceWindow, workload: str = "gen") -> pd.DataFrame:
    """A row a kernel of a workload in the window: name, blocks, us. Graphs traced whole have no kernels."""
    kernels, rows = view.capture.kernels, view.workloads[workload].rows
    rows = rows[~kernels.graph[rows] & (kernels.blocks[rows] > 0)]
    names = np.array([*view.capture.names, ""], dtype=object)[kernels.name[rows]]
    us = (kernels.end_ns[rows] - kernels.start_ns[rows]) / 1e3
    return pd.DataFrame({"name": names, "blocks": kernels.blocks[rows], "us": us})


def kernel_table(alone: pd.DataFrame, client: pd.DataFrame | None, surface: Surface) -> pd.DataFrame:
    """`COLUMNS`: a row a kernel by name and blocks of `alone` (`durations`), count: how many of them.

    alone_us and client_us are mean durations; client_us is NaN where `client` has no such kernel. predicted_us,
    least_us and most_us are what MPS adds to each of them.
    """
    grouped = alone.groupby(["name", "blocks"], sort=False)["us"]
    table = pd.DataFrame({"count": grouped.size(), "alone_us": grouped.mean()})
    if client is not None:
        table["client_us"] = client.groupby(["name", "blocks"])["us"].mean()
    table = table.reindex(columns=["count", "alone_us", "client_us"]).reset_index()
    table["category"] = categorise(table["name"].tolist())
    table["kib"] = table["category"].map(CODE_KIB)
    blocks = table["blocks"].to_numpy()
    table["predicted_us"] = surface.us(blocks, table["kib"].to_numpy())
    table["least_us"], table["most_us"] = surface.range_us(blocks)
    return table[COLUMNS]


@dataclass(frozen=True)
class Price:
    """A decode step's price as an MPS client, us: predicted with its range, and measured (NaN: not).

    `kernels_us`: by durations of the kernels that both captures have; `trials_us`: by the rates of unprofiled trials.
    `table`: `kernel_table`; `steps`: decode steps that its window held; `tokens`: of a step.
    """

    table: pd.DataFrame
    steps: float
    tokens: int
    predicted_us: float
    least_us: float
    most_us: float
    kernels_us: float
    trials_us: float
    source: str

    def by_blocks(self) -> pd.DataFrame:
        """A row a class of blocks, us a step: kernels (a step), predicted, least, most, measured (captures)."""
        table = self.table
        weights = table["count"] / self.steps
        shown = pd.DataFrame({
            "kernels": weights,
            "predicted": weights * table["predicted_us"],
            "least": weights * table["least_us"],
            "most": weights * table["most_us"],
            "measured": weights * (table["client_us"] - table["alone_us"]),
        })  # fmt: skip
        classes = pd.cut(table["blocks"], [0, *CLASSES.values()], labels=list(CLASSES))
        return shown.groupby(classes, observed=False).sum().rename_axis("blocks").reset_index()

    def worst(self) -> dict[str, Any] | None:
        """The kernel whose prediction is furthest from what captures show, in us of all steps; None without those."""
        known = self.table.dropna(subset=["client_us"])
        if known.empty:
            return None
        off = (known["client_us"] - known["alone_us"] - known["predicted_us"]).abs() * known["count"]
        row: dict[str, Any] = {str(name): value for name, value in known.loc[off.idxmax()].to_dict().items()}
        return row


def price_of(table: pd.DataFrame, steps: float, tokens: int, rates: tuple[float, float], source: str) -> Price:
    """`rates`: tokens/s of unprofiled trials, alone and as a client (NaN: not measured)."""
    weights = table["count"] / steps
    predicted, least, most = (float((weights * table[name]).sum()) for name in ("predicted_us", "least_us", "most_us"))
    change = table["client_us"] - table["alone_us"]
    kernels_us = float((weights * change).sum()) if change.notna().any() else math.nan
    alone, client = rates
    trials_us = tokens * 1e6 * (1 / client - 1 / alone) if alone > 0 and client > 0 else math.nan
    return Price(table, steps, tokens, predicted, least, most, kernels_us, trials_us, source)


def price_sentence(price: Price | None) -> str:
    """The prediction beside what was measured, and where it fails."""
    if price is None:
        return (
            "The price of being an MPS client is not predicted: it takes a node-level capture of the LLM alone, and a "
            "card on which the surface was measured (H100, H200)."
        )
    what = "A token" if price.tokens == 1 else f"A step of {price.tokens} tokens"
    sentence = (
        f"{what} is predicted to take {price.predicted_us:.0f} us longer as an MPS client ({price.least_us:.0f} to "
        f"{price.most_us:.0f} by how much code its kernels have, which no capture tells; surface: {price.source})."
    )
    told = {"trials": price.trials_us, "kernels in the captures": price.kernels_us}
    known = {name: us for name, us in told.items() if math.isfinite(us)}
    if not known:
        return f"{sentence} No step measured it."
    sentence += " Measured: " + ", ".join(f"{us:.0f} us by {name}" for name, us in known.items()) + "."
    measured = next(iter(known.values()))
    if measured > 0:
        sentence += f" The prediction is {number(price.predicted_us / measured)} of {measured:.0f} us"
        sentence += f"; {_against_range(price, measured)}."
    worst = price.worst()
    if worst is not None:
        change = worst["client_us"] - worst["alone_us"]
        sentence += (
            f" It fails most at {worst['name'][:NAME_CHARACTERS]} on {worst['blocks']} blocks: {change:+.2f} us each, "
            f"{worst['predicted_us']:.2f} predicted."
        )
    return sentence


def _against_range(price: Price, measured: float) -> str:
    """Whether the range holds what was measured, and by how much it does not."""
    if price.least_us <= measured <= price.most_us:
        return "its range holds what was measured"
    if measured < price.least_us:
        return f"what was measured is {1 - measured / price.least_us:.0%} under its range"
    over = f"{measured / price.most_us - 1:.0%}" if price.most_us > 0 else "all of it"
    return f"what was measured is {over} over its range"
