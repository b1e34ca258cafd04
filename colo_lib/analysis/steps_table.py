"""The table of steps: what each step's trials measured, with intervals and counts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import LEAST_STARTS
from colo_lib.analysis.trial_metrics import ENOUGH_FOR_P99
from colo_lib.steps import KEPT_AGAINST_OTHERS, STEPS, mechanism_in_words, mechanisms_in, names_in, with_id

COLUMNS = ["row", "unit", "step", "mean", "low", "high", "count", "starts", "text", "mechanism"]

KEPT_ROWS = {
    "gen": "Gen kept fraction",
    "embed": "Embed kept fraction",
    "aggregate": "Aggregate (gen + embed kept)",
    "aggregate_per_device": "Aggregate per device",
}
NONE = "—"

LATENCY_ROWS = {"gap": "Inter-token gap", "ttft": "Time to first token", "batch": "Embed batch time"}


def steps_table(
    trials: pd.DataFrame,
    throughput: pd.DataFrame,
    kept: pd.DataFrame,
    latencies: pd.DataFrame,
    telemetry: pd.DataFrame,
) -> pd.DataFrame:
    """A tidy frame with the columns of `COLUMNS`; `text` is the cell as shown, with interval or count; `starts` of the
    engines are null where a row has no interval.

    `trials`: every measured trial; `throughput`: `statistics.rates`; `kept`: `kept_fractions`; `latencies`:
    `trial_metrics.by_step`; `telemetry`: `telemetry_summary`.
    """
    counted = trials[trials["status"] == "done"]
    rows = _trial_rows(trials) + _rate_rows(throughput) + _kept_rows(kept) + _latency_rows(latencies)
    rows += _stall_rows(counted) + _telemetry_rows(telemetry)
    table = pd.DataFrame(rows, columns=COLUMNS[:-1])
    return table.assign(mechanism=table["step"].map(mechanisms_in(trials)))


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`steps_table` as it is read: a row a measure with its unit, a column a step."""
    labels = [f"{row.row} ({row.unit})" if row.unit else row.row for row in table.itertuples()]
    return by_step(table.assign(label=labels), "label", "text", "Measure", ids=True)


def by_step(table: pd.DataFrame, rows: str, cells: str, head: str, ids: bool = False) -> pd.DataFrame:
    """A tidy frame with a column step as it is read: a row a value of `rows`, a column a step, `cells` in them.

    A column is headed by the step's name; `ids`: with its id, for those who have to type it.
    """
    steps, names = [step for step in STEPS if step in set(table["step"])], names_in(table)
    order = list(dict.fromkeys(table[rows]))
    wide = table.pivot_table(index=rows, columns="step", values=cells, aggfunc="first")
    wide = wide.reindex(index=order, columns=steps).fillna(NONE).rename_axis(None, axis=1).reset_index()
    heads = {step: capital(with_id(step, names[step]) if ids else names[step]) for step in steps}
    return wide.rename(columns={rows: head, **heads})


def capital(name: str) -> str:
    """A name at the head of a row or column."""
    return name[0].upper() + name[1:]


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not np.isfinite(value):
        return "—"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:,.{min(digits, 3)}f}"


def with_interval(mean: float, low: float, high: float, starts: float) -> str:
    """'0.80 [0.76, 0.84]'; where fewer than three starts of the engines stand behind it, that is said; or no interval.

    `starts`: starts of the engines behind the estimate (`estimate.Estimate.starts`).
    """
    if not np.isfinite([low, high]).all():
        return f"{number(mean)} (no interval)"
    return f"{number(mean)} [{number(low)}, {number(high)}{within_starts(starts)}]"


def within_starts(starts: float) -> str:
    """', within one start' where an interval tells nothing of engines started anew, else nothing.

    Nothing either where `starts` is null: what is no estimate of ours has no starts.
    """
    if starts >= LEAST_STARTS or np.isnan(starts):
        return ""
    return ", within one start" if starts <= 1 else f", within {starts:.0f} starts"


def _row(
    row: str,
    unit: str,
    step: str,
    values: tuple[float, float, float],
    count: int,
    text: str,
    starts: float = np.nan,
) -> dict[str, object]:
    return dict(zip(COLUMNS[:-1], (row, unit, step, *values, count, starts, text), strict=True))


def _trial_rows(trials: pd.DataFrame) -> list[dict[str, object]]:
    rows, none = [], (np.nan, np.nan, np.nan)
    for step, group in trials.groupby("step"):
        mechanism = next((str(name) for name in group["mechanism"] if name), "—")
        rows.append(_row("Mechanism", "", step, none, len(group), mechanism_in_words(mechanism)))
    for step, group in trials.groupby("step"):
        good = int((group["status"] == "done").sum())
        rows.append(
            _row("Trials that count / all", "", step, (good, np.nan, np.nan), len(group), f"{good} / {len(group)}")
        )
    return rows


def _rate_rows(throughput: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for made in throughput.itertuples():
        unit = "tokens/s" if made.workload == "gen" else "sequences/s"
        values = (made.mean, made.low, made.high)
        label, text = f"{made.workload.capitalize()} throughput", with_interval(*values, made.starts)
        rows.append(_row(label, unit, made.step, values, made.blocks, text, made.starts))
    return rows


def _kept_rows(kept: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    for quantity, label in KEPT_ROWS.items():
        for item in kept[kept["quantity"] == quantity].itertuples():
            values = (item.mean, item.low, item.high)
            # Its own baseline (config A): 1 by definition, not by measurement.
            own = item.step not in KEPT_AGAINST_OTHERS
            text = (
                ("2" if quantity == "aggregate" else "1") + " (baseline)"
                if own
                else with_interval(*values, item.starts)
            )
            rows.append(_row(label, "", item.step, values, item.blocks, text, item.starts))
    return rows


def _latency_rows(latencies: pd.DataFrame) -> list[dict[str, object]]:
    rows, nan = [], np.nan
    for kind, label in LATENCY_ROWS.items():
        mine = latencies[latencies["kind"] == kind]
        for name, column in (("p50", "p50_ms"), ("p99", "p99_ms"), ("longest", "max_ms")):
            for item in mine.to_dict("records"):
                count = int(item["count"])
                few = f" (n={count:,})" if name == "p99" and count < ENOUGH_FOR_P99 else ""
                value = item[column]
                if count:
                    rows.append(
                        _row(f"{label}, {name}", "ms", item["step"], (value, nan, nan), count, number(value) + few)
                    )
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
                rows.append(_row(label, "ms", step, (worst, np.nan, np.nan), values.notna().sum(), number(worst)))
    return rows


def _telemetry_rows(telemetry: pd.DataFrame) -> list[dict[str, object]]:
    rows = []
    devices = telemetry[telemetry["scope"] == "device"]
    for (label, unit), group in devices.groupby(["label", "unit"], sort=False):
        for step, values in group.groupby("step"):
            mean = float(values["mean"].mean())
            text = number(mean)
            rows.append(
                _row(f"{label}, mean of devices", unit, step, (mean, np.nan, np.nan), values["samples"].sum(), text)
            )
    workloads = telemetry[
        (telemetry["scope"] == "workload") & telemetry["metric"].isin(["cpu_cores", "memory_used_gib"])
    ]
    for (label, unit, name), group in workloads.groupby(["label", "unit", "name"], sort=False):
        for item in group.itertuples():
            values = (item.mean, item.low, item.high)
            rows.append(_row(f"{label} by {name}", unit, item.step, values, item.samples, number(item.mean)))
    return rows
