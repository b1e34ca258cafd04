"""Telemetry over the run, both workloads, a panel a metric with its unit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import BOTH_COLOUR, WIDTH_IN, WORKLOAD_COLOURS, apply_style

# Names of steps under their windows, where their own would not fit.
SHORT = {"mps-alone": "1m", "mig": "g", "sm-partition": "p"}
DEVICE_LOOKS = [("#4D4D4D", "-"), ("#A6761D", "--"), ("#7570B3", "-."), ("#66A61E", ":")]
MOST_POINTS = 1500  # of one line on the page


def over_time(samples: pd.DataFrame, metrics: Mapping[str, tuple[str, str, float]]) -> Figure:
    """A panel for each metric that was sampled, over the seconds of the run; windows that count are shaded.

    `samples`: `analyse.telemetry.series`; `metrics`: column -> (label, unit, factor), `analyse.telemetry.METRICS`.
    """
    apply_style()
    shown = [name for name in metrics if len(samples) and samples[name].notna().any()]
    figure = Figure(figsize=(WIDTH_IN, 1.0 + 1.75 * max(len(shown), 1)), layout="constrained")
    panels = figure.subplots(max(len(shown), 1), 1, sharex=True, squeeze=False)[:, 0]
    if not shown:
        panels[0].text(0.5, 0.5, "no telemetry in this run", transform=panels[0].transAxes, ha="center")
        return figure
    for axes, name in zip(panels, shown, strict=True):
        label, unit, factor = metrics[name]
        _lines(axes, samples, name, factor)
        _windows(axes, samples)
        axes.set(title=label, ylabel=unit, ylim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _step_names(panels[0], samples)
    panels[-1].set_xlabel("time since the run's first sample (s); shaded: windows that count")
    return figure


def _lines(axes: Axes, samples: pd.DataFrame, name: str, factor: float) -> None:
    devices = itertools.cycle(DEVICE_LOOKS)
    for (scope, entity), group in samples.groupby(["scope", "name"]):
        if group[name].notna().sum() == 0:
            continue
        colour, line = (WORKLOAD_COLOURS.get(entity, BOTH_COLOUR), "-") if scope == "workload" else next(devices)
        label = entity if scope == "workload" else f"device {entity}"
        seconds, values = [], []
        every = max(1, len(group) // MOST_POINTS)
        for _, trial in group.sort_values("t_ns").groupby(["step", "trial"], sort=False):
            # A break between trials: nothing was sampled there, so no line crosses it.
            means = trial[["run_s", name]].groupby(pd.RangeIndex(len(trial)) // every).mean()
            seconds += [*means["run_s"], float("nan")]
            values += [*(means[name] * factor), float("nan")]
        axes.plot(seconds, values, color=colour, linestyle=line, linewidth=1.1, label=label, gid=f"{name}-{entity}")


def _windows(axes: Axes, samples: pd.DataFrame) -> None:
    counted = samples[samples["in_window"] & (samples["status"] == "done")]
    for _, trial in counted.groupby(["step", "trial"]):
        axes.axvspan(trial["run_s"].min(), trial["run_s"].max(), color="#F0E442", alpha=0.22, linewidth=0)


def _step_names(axes: Axes, samples: pd.DataFrame) -> None:
    for (step, _), trial in samples.groupby(["step", "trial"]):
        middle = (trial["run_s"].min() + trial["run_s"].max()) / 2
        short = SHORT.get(step) or step.replace("step", "").replace("config", "")
        axes.annotate(
            short, (middle, 0.03), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color="#333333"
        )
