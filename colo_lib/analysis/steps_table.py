"""The table of steps: what each measured, side by side, as a tidy frame and as it is read."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import number, with_interval
from colo_lib.analysis.trial_metrics import ENOUGH_FOR_P99
from colo_lib.steps import (
    KEPT_AGAINST_OTHERS,
    STEPS,
    WORKLOADS,
    capital,
    mechanism_in_words,
    mechanisms_in,
    names_in,
    with_id,
)

TABLE_COLUMNS = ["row", "unit", "step", "mean", "low", "high", "count", "starts", "text", "mechanism"]

KEPT_ROWS = {
    "gen": "LLM kept fraction",
    "embed": "Embedder kept fraction",
    "aggregate": "Aggregate (LLM + embedder kept)",
    "aggregate_per_device": "Aggregate per device",
}
NONE = "—"

LATENCY_ROWS = {"gap": "Inter-token gap", "ttft": "Time to first token", "batch": "Embedder batch time"}


def steps_table(
    trials: pd.DataFrame,
    throughput: pd.DataFrame,
    kept: pd.DataFrame,
    latencies: pd.DataFrame,
    telemetry: pd.DataFrame,
) -> pd.DataFrame:
    """A tidy frame with the columns of `TABLE_COLUMNS`; `text` is the cell as shown, with interval or count; `starts`
    of the engines are null where a row has no interval.

    `trials`: every measured trial; `throughput`: `statistics.rates`; `kept`: `kept_fractions`; `latencies`:
    `trial_metrics.by_step`; `telemetry`: `telemetry_summary`.
    """
    counted = trials[trials["status"] == "done"]
    rows = _trial_rows(trials) + _rate_rows(throughput) + _kept_rows(kept) + _latency_rows(latencies)
    rows += _stall_rows(counted) + _load_rows(counted) + _telemetry_rows(telemetry)
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS[:-1])
    return table.assign(mechanism=table["step"].map(mechanisms_in(trials)))


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`steps_table` as it is read: a row a measure with its unit, a column a step."""
    labels = [f"{row.row} ({row.unit})" if row.unit else row.row for row in table.itertuples()]
    return step_columns(table.assign(label=labels), "label", "text", "Measure", ids=True)


def step_columns(table: pd.DataFrame, rows: str, cells: str, head: str, ids: bool = False) -> pd.DataFrame:
    """A tidy frame with a column step as it is read: a row a value of `rows`, a column a step, `cells` in them.

    A column is headed by the step's name; `ids`: with its id, for those who have to type it.
    """
    steps, names = [step for step in STEPS if step in set(table["step"])], names_in(table)
    order = list(dict.fromkeys(table[rows]))
    wide = table.pivot_table(index=rows, columns="step", values=cells, aggfunc="first")
    wide = wide.reindex(index=order, columns=steps).fillna(NONE).rename_axis(None, axis=1).reset_index()
    heads = {step: capital(with_id(step, names[step]) if ids else names[step]) for step in steps}
    return wide.rename(columns={rows: head, **heads})


def _row(
    row: str, unit: str, step: str, values: tuple[float, ...], count: int, text: str, starts: float = np.nan
) -> dict[str, object]:
    """A row of the table; `values`: a mean with its interval, or the mean alone."""
    mean, low, high = (*values, np.nan, np.nan)[:3] if values else (np.nan,) * 3
    return dict(zip(TABLE_COLUMNS[:-1], (row, unit, step, mean, low, high, count, starts, text), strict=True))


def _trial_rows(trials: pd.DataFrame) -> list[dict[str, object]]:
    mechanisms, counts = [], []
    for step, group in trials.groupby("step"):
        mechanism = mechanism_in_words(next((str(name) for name in group["mechanism"] if name), NONE))
        mechanisms.append(_row("Mechanism", "", step, (), len(group), mechanism))
        good = int((group["status"] == "done").sum())
        counts.append(_row("Trials that count / all", "", step, (good,), len(group), f"{good} / {len(group)}"))
    return mechanisms + counts


def _rate_rows(throughput: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for made in throughput.itertuples():
        unit = "tokens/s" if made.workload == "gen" else "sequences/s"
        values = (made.mean, made.low, made.high)
        label, text = f"{capital(WORKLOADS[made.workload])} throughput", with_interval(*values, made.starts)
        rows.append(_row(label, unit, made.step, values, made.blocks, text, made.starts))
    return rows


def _kept_rows(kept: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for quantity, label in KEPT_ROWS.items():
        for item in kept[kept["quantity"] == quantity].itertuples():
            values = (item.mean, item.low, item.high)
            text = with_interval(*values, item.starts)
            if item.step not in KEPT_AGAINST_OTHERS:  # its own (config A): 1 by definition, not by measurement
                text = f"{2 if quantity == 'aggregate' else 1} (baseline)"
            rows.append(_row(label, "", item.step, values, item.blocks, text, item.starts))
    return rows


def _latency_rows(latencies: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for kind, label in LATENCY_ROWS.items():
        mine = latencies[latencies["kind"] == kind]
        for name, column in (("p50", "p50_ms"), ("p99", "p99_ms"), ("longest", "max_ms")):
            for item in mine.to_dict("records"):
                count = int(item["count"])
                few = f" (n={count:,})" if name == "p99" and count < ENOUGH_FOR_P99 else ""
                value = item[column]
                if count:
                    rows.append(_row(f"{label}, {name}", "ms", item["step"], (value,), count, number(value) + few))
    return rows


def _stall_rows(counted: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for column, label in (
        ("gen_stall_ms", "Longest time without a token"),
        ("embed_stall_ms", "Longest time without a finished batch"),
    ):
        for step, values in counted.groupby("step")[column]:
            worst = values.max()
            if np.isfinite(worst):
                rows.append(_row(label, "ms", step, (worst,), values.notna().sum(), number(worst)))
    return rows


def _load_rows(counted: pd.DataFrame) -> list[dict[str, object]]:
    """How the LLM's load stood: where requests run side by side, how their ages lay; how busy the client was."""
    rows = []
    for column, label, unit in (
        ("gen_age_spread", "Spread of running requests' ages (1: even, 0: in lockstep)", ""),
        ("gen_waiting", "Requests in vLLM's queue, mean", ""),
        ("gen_demand_met", "LLM: share of requests due whose first token came within its SLO", ""),
        ("embed_demand_met", "Embedder: share of requests due that were done within its SLO", ""),
        ("gen_client_cores", "Load client: most of a core that a process used", "cores"),
    ):
        for step, values in counted.groupby("step")[column] if column in counted else ():
            worst = values.mean() if column != "gen_client_cores" else values.max()
            if np.isfinite(worst):
                rows.append(_row(label, unit, step, (worst,), values.notna().sum(), number(worst)))
    return rows


def _telemetry_rows(telemetry: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    devices = telemetry[telemetry["scope"] == "device"]
    for (label, unit), group in devices.groupby(["label", "unit"], sort=False):
        for step, values in group.groupby("step"):
            mean = float(values["mean"].mean())
            text = number(mean)
            rows.append(_row(f"{label}, mean of devices", unit, step, (mean,), values["samples"].sum(), text))
    workloads = telemetry[
        (telemetry["scope"] == "workload") & telemetry["metric"].isin(["cpu_cores", "memory_used_gib"])
    ]
    for (label, unit, name), group in workloads.groupby(["label", "unit", "name"], sort=False):
        for item in group.itertuples():
            values = (item.mean, item.low, item.high)
            row = f"{label} by the {WORKLOADS[name]}"
            rows.append(_row(row, unit, item.step, values, item.samples, number(item.mean)))
    return rows
