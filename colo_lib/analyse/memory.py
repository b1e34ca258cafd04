"""Memory: the budget of the run against what its trials used, in GiB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from colo_lib.params import STEPS

PARTS = ["gen weights", "gen KV cache", "gen activations", "embed weights", "embed activations", "reserve"]


def budget_frame(budget: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """device, part, gib, available_gib: a row a part of the manifest's budget, known parts first."""
    rows = []
    for entry in budget:
        parts = entry.get("parts", {})
        order = [part for part in PARTS if part in parts] + [part for part in parts if part not in PARTS]
        available = float(entry.get("available_gib") or float("nan"))
        rows += [(str(entry.get("device")), part, float(parts[part] or 0.0), available) for part in order]
    return pd.DataFrame(rows, columns=["device", "part", "gib", "available_gib"])


def parts_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """step, workload, part, gib: the median over the trials that count of what the engines themselves told.

    `rest` is what NVML counts beyond those parts: activations and context of gen, the context of embed. Empty where
    nothing was told (cores that stand in for GPUs, runs of an earlier version).
    """
    counted, rows = trials[trials["status"] == "done"], []
    columns = [name for name in trials.columns if name.endswith("_memory_gib") and name.count("_") > 2]
    for step, group in counted.groupby("step", sort=False):
        for name in columns:
            workload, _, part = name.removesuffix("_memory_gib").partition("_")
            if group[name].notna().any():
                rows.append((str(step), workload, part.replace("_", " "), float(group[name].median())))
    return pd.DataFrame(rows, columns=["step", "workload", "part", "gib"])


def measured_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """step, gen_gib, embed_gib, free_gib, trials: the most of each (the least of free) over the trials that count."""
    counted = trials[trials["status"] == "done"]
    grouped = counted.groupby("step", sort=False)
    frame = pd.DataFrame(
        {
            "gen_gib": grouped["gen_memory_gib"].max(),
            "embed_gib": grouped["embed_memory_gib"].max(),
            "free_gib": grouped["free_memory_gib"].min(),
            "trials": grouped.size(),
        }
    )
    frame = frame.reset_index()
    return frame.sort_values("step", key=lambda steps: steps.map(STEPS.index), ignore_index=True)
