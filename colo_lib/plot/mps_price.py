"""What being an MPS client was predicted to cost, beside what it did: by blocks of a kernel, and in all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.analysis.trace.mps_price import Price
from colo_lib.plot.style import BOTH_COLOUR, GEN_COLOUR, WIDTH_IN, apply_style

PREDICTED_COLOUR = "#9CC9E8"
BAR = 0.27


def predicted_and_measured(prices: Mapping[str, Price]) -> Figure:
    """A panel a run by its title: us a decode step, by class of blocks and in all.

    Light bars are predicted, their whiskers from the least to the most that any size of code gives.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 2.1 + 1.7 * math.ceil(len(prices) / 2)), layout="constrained")
    columns = min(2, len(prices))
    places = figure.subplots(math.ceil(len(prices) / columns), columns, squeeze=False).ravel()
    for axes, (title, price) in zip(places, prices.items(), strict=False):
        _panel(axes, title, price)
    for axes in places[len(prices) :]:
        axes.axis("off")
    handles: dict[str, Any] = {}
    for axes in places:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles=list(handles.values()), labels=list(handles), loc="outside lower center", ncols=3)
    return figure


def _panel(axes: Axes, title: str, price: Price) -> None:
    rows = price.by_blocks()
    names = [f"{row.blocks}\n({row.kernels:.0f})" for row in rows.itertuples()]
    names.append(f"all\n({rows['kernels'].sum():.0f})")
    predicted = np.append(rows["predicted"], price.predicted_us)
    least = np.append(rows["least"], price.least_us)
    most = np.append(rows["most"], price.most_us)
    place = np.arange(len(names))
    known = math.isfinite(price.kernels_us)
    axes.bar(place - BAR, predicted, BAR, color=PREDICTED_COLOUR, label="predicted from launches (whiskers: any code)")
    axes.errorbar(place - BAR, predicted, [predicted - least, most - predicted], fmt="none", ecolor=BOTH_COLOUR,
                  elinewidth=1.0, capsize=2)  # fmt: skip
    if known:
        measured = np.append(rows["measured"], price.kernels_us)
        axes.bar(place, measured, BAR, color=GEN_COLOUR, label="kernels in the captures")
    if math.isfinite(price.trials_us):
        axes.bar(place[-1:] + BAR, [price.trials_us], BAR, color=BOTH_COLOUR, label="trials without a profiler")
    axes.set_xticks(place, names)
    axes.set_title(title, fontsize=10)
    axes.set(ylabel="us a decode step", xlabel="blocks of a kernel (kernels a step)")
    axes.axhline(0, color=BOTH_COLOUR, linewidth=0.8)
