"""Figures over a run's time: telemetry, memory against its budget, and the controller that paces the embedder."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colo_lib.plot.style import (
    BOTH_COLOUR,
    BOUND_COLOUR,
    EMBED_COLOUR,
    GEN_COLOUR,
    WIDTH_IN,
    WORKLOAD_COLOURS,
    apply_style,
    wrapped,
)
from colo_lib.steps import STEPS, WORKLOADS, names_in, part_in_words

DEVICE_LOOKS = [("#4D4D4D", "-"), ("#A6761D", "--"), ("#7570B3", "-."), ("#66A61E", ":")]

KEY_CHARACTERS = 100  # of a line of the marks' key

MOST_POINTS = 1500  # of one line on the page


def telemetry_over_time(samples: pd.DataFrame, metrics: Mapping[str, tuple[str, str, float]]) -> Figure:
    """A panel for each metric that was sampled, over the seconds of the run; windows that count are shaded.

    `samples`: `telemetry_series`; `metrics`: column -> (label, unit, factor), `telemetry.METRICS`.
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
    key = "; ".join(f"{STEPS[step].mark}: {name}" for step, name in names_in(samples).items())
    key = textwrap.fill(f"At the windows' feet, {key}", KEY_CHARACTERS)
    panels[-1].set_xlabel(f"time since the run's first sample (s); shaded: windows that count\n{key}")
    return figure


def _lines(axes: Axes, samples: pd.DataFrame, name: str, factor: float) -> None:
    devices = itertools.cycle(DEVICE_LOOKS)
    for (scope, entity), group in samples.groupby(["scope", "name"]):
        if group[name].notna().sum() == 0:
            continue
        colour, line = (WORKLOAD_COLOURS.get(entity, BOTH_COLOUR), "-") if scope == "workload" else next(devices)
        label = WORKLOADS.get(entity, entity) if scope == "workload" else f"device {entity}"
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
        axes.annotate(
            STEPS[step].mark,
            (middle, 0.03),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
            color="#333333",
        )


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

    `budget`: `telemetry.budget_frame`; `measured`: `telemetry.measured_frame`.
    """
    apply_style()
    devices = list(dict.fromkeys(budget["device"]))
    labels = [f"budget, device {device}" for device in devices]
    names = names_in(measured)
    labels += [f"{wrapped(names[row.step], 24)} (n={row.trials} trials)" for row in measured.itertuples()]
    figure = Figure(figsize=(WIDTH_IN, 1.9 + 0.42 * max(len(labels), 2)), layout="constrained")
    axes = figure.subplots()
    drawn: dict[str, Any] = {}
    for place, device in enumerate(devices):
        _budget_bar(axes, place, budget[budget["device"] == device], drawn)
    for place, row in enumerate(measured.itertuples(), start=len(devices)):
        gen, embed = np.nan_to_num([row.gen_gib, row.embed_gib])
        drawn["LLM, measured"] = axes.barh(place, gen, 0.62, facecolor=GEN_COLOUR, alpha=0.85)
        drawn["embedder, measured"] = axes.barh(place, embed, 0.62, left=gen, facecolor=EMBED_COLOUR, alpha=0.85)
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
        drawn[part_in_words(row.part)] = axes.barh(
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


MOST_TRIALS = 4


def pacing_over_time(ticks: pd.DataFrame, slo_gap_ms: float) -> Figure:
    """Two panels a trial (the first four): gaps of gen in ms and duty of embed in %, over the trial's seconds.

    `ticks`: `pacing_series`. The window is shaded; before it lies the warm-up.
    """
    apply_style()
    trials = list(ticks.groupby(["step", "trial"], sort=False))[:MOST_TRIALS] if len(ticks) else []
    figure = Figure(figsize=(WIDTH_IN, 0.6 + 3.6 * max(len(trials), 1)), layout="constrained")
    panels = figure.subplots(2 * max(len(trials), 1), 1, squeeze=False)[:, 0]
    if not trials:
        panels[0].text(0.5, 0.5, "no trial was paced by the LLM's gaps", transform=panels[0].transAxes, ha="center")
        return figure
    names = names_in(ticks)
    for number, ((step, trial), trial_ticks) in enumerate(trials):
        upper, lower = panels[2 * number], panels[2 * number + 1]
        _gaps(upper, trial_ticks, slo_gap_ms)
        upper.set_title(f"{names[step]}, trial {trial}: the LLM's gaps between tokens")
        _duty(lower, trial_ticks)
        for axes in (upper, lower):
            axes.axvspan(*_window(trial_ticks), color="#F0E442", alpha=0.22, linewidth=0)
            axes.set_xlim(trial_ticks["trial_s"].min(), trial_ticks["trial_s"].max())
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[-1].set_xlabel("time since the window began (s); shaded: the window")
    return figure


def _window(ticks: pd.DataFrame) -> tuple[float, float]:
    inside = ticks.loc[ticks["in_window"], "trial_s"]
    return (float(inside.min()), float(inside.max())) if len(inside) else (0.0, 0.0)


def _gaps(axes: Axes, ticks: pd.DataFrame, slo_gap_ms: float) -> None:
    seconds = ticks["trial_s"]
    axes.plot(seconds, ticks["gap_max_ms"], ".", color=GEN_COLOUR, alpha=0.35, markersize=3, label="longest of a tick")
    axes.plot(seconds, ticks["gap_p99_ms"], color=GEN_COLOUR, label="p99 of 2 s", gid="gap-p99")
    axes.axhline(slo_gap_ms, color=BOUND_COLOUR, linestyle="--", label=f"SLO, {slo_gap_ms:g} ms", gid="slo")
    axes.set(ylabel="ms", yscale="log")


def _duty(axes: Axes, ticks: pd.DataFrame) -> None:
    axes.plot(
        ticks["trial_s"], ticks["duty"] * 100, color=EMBED_COLOUR, drawstyle="steps-post", label="asked", gid="duty"
    )
    axes.plot(
        ticks["trial_s"], ticks["embed_duty"] * 100, color=EMBED_COLOUR, linestyle=":", label="worked", gid="worked"
    )
    axes.set(title="the embedder's duty", ylabel="% of the time", ylim=(0, 105))
