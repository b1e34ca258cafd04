"""Two devices: gen's rate from one device to both shared, and how far apart its ranks arrive at a collective."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from colo_lib.plot.latency import STEP_COLOURS, STEP_LINES
from colo_lib.plot.style import GEN_COLOUR, MECHANISM_HATCHES, WIDTH_IN, apply_style

STEPS = ("configA", "tp2-alone", "tp2-mps-alone", "configB-one", "configB")
SHADES = (1.0, 0.6, 0.3)
LABELS = {
    "configA": "one GPU\n(config A)", "tp2-alone": "sharded", "tp2-mps-alone": "sharded,\nMPS client",
    "configB-one": "embed\non one", "configB": "embed on both\n(config B)",
}  # fmt: skip


def two_devices(rates: pd.DataFrame, mechanisms: Mapping[str, str], skews_us: Mapping[str, np.ndarray]) -> Figure:
    """Left: gen's tokens/s over config A's with 95 % intervals, a bar a step and concurrency; right: arrivals.

    `rates`: step, concurrency, ratio, low, high (config A itself is 1); `skews_us`: step -> |difference of the ranks'
    arrivals| of each collective, empty where nothing was captured.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _bars(left, rates, mechanisms)
    _arrivals(right, skews_us)
    return figure


def _bars(axes: Axes, rates: pd.DataFrame, mechanisms: Mapping[str, str]) -> None:
    concurrencies = sorted(rates["concurrency"].unique())
    shown = [step for step in STEPS if step in set(rates["step"])]
    width = 0.8 / max(1, len(concurrencies))
    for place, concurrency in enumerate(concurrencies):
        mine = rates[rates["concurrency"] == concurrency].set_index("step")
        for where, step in enumerate(shown):
            if step not in mine.index:
                continue
            row = mine.loc[step]
            x = where + (place - (len(concurrencies) - 1) / 2) * width
            hatch = MECHANISM_HATCHES.get(mechanisms.get(step, "none"), "")
            shade = SHADES[place % len(SHADES)]
            axes.bar(x, row["ratio"], width * 0.92, facecolor=(*_rgb(GEN_COLOUR), shade * 0.7), edgecolor=GEN_COLOUR,
                     hatch=hatch)  # fmt: skip
            spread = np.nan_to_num([[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]])
            axes.errorbar(x, row["ratio"], yerr=spread, color="black", capsize=2, linewidth=1)
    axes.axhline(1.0, color="#999999", linestyle="--", linewidth=0.9)
    axes.axhline(2.0, color="#999999", linestyle=":", linewidth=0.9)
    axes.annotate("perfect scaling", (len(shown) - 0.5, 2.0), ha="right", va="bottom", fontsize=8, color="#666666")
    axes.set_xticks(range(len(shown)), [LABELS[step] for step in shown], fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.set(title="gen's rate, one GPU's = 1", ylabel="tokens/s over config A's", ylim=(0, 2.2))
    handles = [
        Patch(facecolor=(*_rgb(GEN_COLOUR), shade * 0.7), edgecolor=GEN_COLOUR, label=f"{count} in flight")
        for count, shade in zip(concurrencies, SHADES, strict=False)
    ]
    handles.append(Patch(facecolor="white", edgecolor=GEN_COLOUR, hatch=MECHANISM_HATCHES["mps"], label="under MPS"))
    axes.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 0.92), fontsize=8)


def _arrivals(axes: Axes, skews_us: Mapping[str, np.ndarray]) -> None:
    axes.set(title="How far apart ranks arrive", xlabel="|difference of arrivals| (us)", ylabel="collectives (%)")
    if not any(len(values) for values in skews_us.values()):
        axes.text(0.5, 0.5, "no capture of both ranks", transform=axes.transAxes, ha="center", color="#666666")
        return
    for step, values in skews_us.items():
        ordered = np.sort(np.maximum(values, 0.01))
        share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
        (line,) = axes.step(
            ordered, share, where="post", color=STEP_COLOURS[step], label=f"{step} (n={len(ordered):,})"
        )
        line.set_linestyle(STEP_LINES[step])
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
