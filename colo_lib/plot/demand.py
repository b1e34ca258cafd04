"""What embedding that is asked for costs the LLM: against the demand, in sequences a second."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from colo_lib.analysis.thresholds import Thresholds
from colo_lib.plot.style import BOUND_COLOUR, MECHANISM_MARKERS, WIDTH_IN, apply_style
from colo_lib.plot.sweep import reach
from colo_lib.steps import STEPS, names_in

X_LABEL = "demand (sequences/s)"


def demand_cost(table: pd.DataFrame, bounds: Thresholds) -> Figure:
    """Three panels against the demand, a line a shared step: what the LLM keeps, its p99 gap, what of it is met.

    `table`: `analysis.demand.demands`. Filled markers: surely nearly free; dashed lines: the bounds.
    """
    apply_style()
    figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("LLM keeps", "Its p99 token gap", "Demand that is met")
    labels = ("kept fraction (alone = 1)", "times that alone", "done within the SLO")
    lines = (bounds.min_gen_kept, 1 + bounds.max_gap_growth, bounds.min_demand_met)
    for axes, name, title, label, bound in zip(panels, ("gen", "gap", "met"), titles, labels, lines, strict=True):
        _against_demand(axes, table, name)
        axes.axhline(bound, color=BOUND_COLOUR, linestyle="--", linewidth=1.2)
        axes.set(title=title, xlabel=X_LABEL, ylabel=label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    panels[2].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(handles=_legend(table), loc="outside lower center", ncols=3)
    return figure


def _against_demand(axes: Axes, table: pd.DataFrame, name: str) -> None:
    for step, group in table.groupby("step", sort=False):
        rows = group.rename(columns={f"{name}_{what}": what for what in ("mean", "low", "high")})
        rows = rows[rows["mean"].notna()].sort_values("rate")
        colour, marker = STEPS[str(step)].colour, MECHANISM_MARKERS.get(group["mechanism"].iloc[0], "o")
        axes.errorbar(rows["rate"], rows["mean"], yerr=reach(rows), color=colour, capsize=3)
        for free, face in ((True, colour), (False, "white")):
            mine = rows[rows["free"] == free]
            axes.plot(mine["rate"], mine["mean"], marker, color=colour, markerfacecolor=face, zorder=4)


def _legend(table: pd.DataFrame) -> list[Line2D]:
    names = names_in(table)
    handles = [
        Line2D([], [], color=STEPS[step].colour, marker=MECHANISM_MARKERS.get(mechanism, "o"), markerfacecolor="white",
               label=names[step])
        for step, mechanism in table.groupby("step", sort=False)["mechanism"].first().items()
    ]  # fmt: skip
    filled = Line2D([], [], color="black", marker="o", linestyle="", label="filled: surely nearly free")
    return [*handles, filled, Line2D([], [], color=BOUND_COLOUR, linestyle="--", label="bound")]
