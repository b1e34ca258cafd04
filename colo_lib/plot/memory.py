"""Memory: the stacked budget beside what the trials used, GiB."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOUND_COLOUR, EMBED_COLOUR, GEN_COLOUR, WIDTH_IN, apply_style

# part -> colour, hatch: a colour a workload, a hatch a kind of memory
PART_LOOK = {
    "gen weights": (GEN_COLOUR, ""),
    "gen KV cache": (GEN_COLOUR, "///"),
    "gen activations": (GEN_COLOUR, "..."),
    "embed weights": (EMBED_COLOUR, ""),
    "embed activations": (EMBED_COLOUR, "..."),
    "reserve": ("#999999", "xxx"),
}


def budget_and_use(budget: pd.DataFrame, measured: pd.DataFrame) -> Figure:
    """A bar a budget and a bar a step: parts of the budget, and the most that gen and embed used.

    `budget`: `analyse.memory.budget_frame`; `measured`: `analyse.memory.measured_frame`.
    """
    apply_style()
    devices = list(dict.fromkeys(budget["device"]))
    labels = [f"budget, device {device}" for device in devices]
    labels += [f"{row.step} (n={row.trials} trials)" for row in measured.itertuples()]
    figure = Figure(figsize=(WIDTH_IN, 1.9 + 0.36 * max(len(labels), 2)), layout="constrained")
    axes = figure.subplots()
    drawn: dict[str, Any] = {}
    for place, device in enumerate(devices):
        _budget_bar(axes, place, budget[budget["device"] == device], drawn)
    for place, row in enumerate(measured.itertuples(), start=len(devices)):
        gen, embed = np.nan_to_num([row.gen_gib, row.embed_gib])
        drawn["gen, measured"] = axes.barh(place, gen, 0.62, facecolor=GEN_COLOUR, alpha=0.85)
        drawn["embed, measured"] = axes.barh(place, embed, 0.62, left=gen, facecolor=EMBED_COLOUR, alpha=0.85)
        _annotate(axes, gen + embed, place)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    axes.set(title="Memory: budget and most used", xlabel="memory (GiB)")
    axes.set_xlim(left=0)
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4)
    return figure


def _budget_bar(axes: Axes, place: int, parts: pd.DataFrame, drawn: dict[str, Any]) -> None:
    left = 0.0
    for row in parts.itertuples():
        colour, hatch = PART_LOOK.get(row.part, ("#DDDDDD", ""))
        drawn[row.part] = axes.barh(
            place, row.gib, 0.62, left=left, facecolor=colour, alpha=0.45, edgecolor=colour, hatch=hatch
        )
        left += row.gib
    _annotate(axes, left, place)
    available = parts["available_gib"].iloc[0]
    if np.isfinite(available):
        (line,) = axes.plot([available] * 2, [place - 0.42, place + 0.42], color=BOUND_COLOUR, linewidth=2.2)
        drawn["available"] = line


def _annotate(axes: Axes, gib: float, place: int) -> None:
    axes.annotate(f"{gib:.1f}", (gib, place), xytext=(4, 0), textcoords="offset points", va="center")
