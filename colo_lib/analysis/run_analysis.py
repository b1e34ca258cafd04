"""Every answer about one run, each computed once: what notebooks, pages, comparisons and plans ask.

The chain trials -> kept fractions -> verdict -> what moved is written here and nowhere else, and so is the table of
steps, which puts side by side what each measured. The functions behind it are pure; files are opened by the run. Frames
and records are shared by all who ask: nobody changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis import bound, drift, loss, statistics, telemetry, thresholds, trial_metrics, two_devices, verdict
from colo_lib.analysis.capacity import Unit, units
from colo_lib.analysis.published import (
    LATER_CONDITIONS,
    all_points,
    alone_by_load,
    conditions_of,
    differences,
    later_points,
    own_points,
)
from colo_lib.analysis.statistics import RATES, number, rates, with_interval
from colo_lib.analysis.telemetry import Memory
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace.capture_analysis import CaptureAnalysis
from colo_lib.analysis.trace.overlap import MeasuredOverlap
from colo_lib.analysis.trace.token_time import TokenTime
from colo_lib.analysis.trial_metrics import ENOUGH_FOR_P99, Measured, measure_trials
from colo_lib.data.run import Run
from colo_lib.params import Params
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

TOKEN_PARTS = ("window_ns", "busy_ns", "switched_out_ns", "waiting_ns", "host_ns", "unattributed_ns")
TOKEN_COLUMNS = ["step", "concurrency", "tokens", "trials_ns", *TOKEN_PARTS]


class RunAnalysis:
    """`bounds`: what the run is judged by; `params`: those of the notebook that asks, which may name a capture's
    processes and window and set bounds away from their defaults (`judged_by`). Without either the run's own.
    """

    def __init__(self, run: Run, params: Params | None = None, bounds: Thresholds | None = None) -> None:
        self.run = run
        self.params = run.params if params is None else params
        self.bounds = thresholds.judged_by(run.params, self.params) if bounds is None else bounds
        self._captures: dict[str, CaptureAnalysis] = {}

    # What was measured.

    @cached_property
    def measured(self) -> Measured:
        """Every trial's numbers, and the latency samples behind them."""
        return measure_trials(self.run.trials, self.run.frame, self.bounds)

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial with the columns of `trial_metrics.NUMBERS`; those that do not count too."""
        return self.measured.trials

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The trials that count."""
        return self.measured.counted

    @cached_property
    def throughput(self) -> pd.DataFrame:
        """A row a workload and step: its rate with its interval (`statistics.rates`)."""
        return rates(self.counted)

    @cached_property
    def latency(self) -> pd.DataFrame:
        """A row a step and kind: count, p50_ms, p99_ms, max_ms (`trial_metrics.by_step`)."""
        return trial_metrics.by_step(self.measured.samples)

    @cached_property
    def mechanisms(self) -> dict[str, str]:
        """step -> how its workloads shared the device."""
        return dict(zip(self.run.trials["step"], self.run.trials["mechanism"], strict=True))

    # What each keeps, and the verdict.

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """Kept fractions and aggregates by block (`statistics.block_ratios`)."""
        return statistics.block_ratios(self.counted)

    @cached_property
    def kept(self) -> pd.DataFrame:
        """Kept fractions and aggregates with their intervals (`statistics.kept_fractions`)."""
        return statistics.kept_fractions(self.ratios)

    @cached_property
    def null(self) -> dict[str, float]:
        """Step 1 against itself (`statistics.null_check`)."""
        return statistics.null_check(self.counted)

    @cached_property
    def pays(self) -> pd.DataFrame:
        """Whether a shared step does more work a device than dedicated ones (`verdict.pays`)."""
        return verdict.pays(self.kept)

    @cached_property
    def against_bounds(self) -> pd.DataFrame:
        """Worst stalls and latencies against the SLOs (`thresholds.against_bounds`)."""
        return thresholds.against_bounds(self.counted, self.bounds)

    @cached_property
    def clauses(self) -> list[verdict.Clause]:
        """The clauses that trials alone can settle, with what was measured (`verdict.clauses_asked`)."""
        return verdict.clauses_asked(self.counted, self.bounds)

    @cached_property
    def verdict(self) -> verdict.Verdict:
        """The verdict on the hypothesis, clause by clause."""
        return verdict.judge(self.counted, self.bounds, self.run.stand_in, self.overlap("step2"))

    @cached_property
    def headline(self) -> str:
        """The verdict and step 2's work per device in a few sentences."""
        return verdict.headline(self.verdict, self.pays)

    @cached_property
    def drift(self) -> list[str]:
        """Sentences naming what moved while the run went on: steps apart in time, trends, odd blocks, clocks."""
        moved = drift.trends(self.counted), drift.bad_blocks(self.ratios), drift.moved_clocks(self.samples)
        return drift.apart(self.counted) + drift.warnings(*moved)

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the verdict must not overlook."""
        sentences = thresholds.starved(self.against_bounds) + drift.unsteady(self.null)
        return sentences + self.drift + drift.disagreements(self.trials)

    @cached_property
    def steps_table(self) -> pd.DataFrame:
        """A row a measure and step, with the text of its cell (`TABLE_COLUMNS`)."""
        return steps_table(self.trials, self.throughput, self.kept, self.latency, self.telemetry)

    @property
    def steps_shown(self) -> pd.DataFrame:
        """The table of steps as it is read: a row a measure, a column a step."""
        return shown(self.steps_table)

    # What could at best be had.

    @cached_property
    def uses_alone(self) -> list[bound.Use]:
        """What each workload takes of one GPU alone (`bound.uses_alone`)."""
        machine = self.run.manifest.machine
        clock = None if machine.gpu is None else machine.gpu.sm_clock_max_mhz
        return bound.uses_alone(self.counted, self.samples, self.telemetry, machine.power_limit_w, clock)

    @cached_property
    def against_best(self) -> pd.DataFrame:
        """What sharing could at best give beside what was reached (`bound.against_best`)."""
        return bound.against_best(self.uses_alone, self.kept, self.mechanisms)

    @property
    def best_sentence(self) -> str:
        """The same in a sentence (`bound.bound_sentence`)."""
        return bound.bound_sentence(self.uses_alone, self.against_best)

    # What the devices did.

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Every sample of telemetry (`telemetry_series`)."""
        return telemetry.telemetry_series(self.run.trials, self.run.frame)

    @cached_property
    def telemetry(self) -> pd.DataFrame:
        """Means inside the windows that count (`telemetry_summary`)."""
        return telemetry.telemetry_summary(self.samples)

    @cached_property
    def memory(self) -> Memory:
        """The budget, the most that was used, and the parts of it, GiB."""
        return telemetry.memory_of(self.run.manifest.budget, self.run.trials)

    @cached_property
    def pacing_ticks(self) -> pd.DataFrame:
        """Every tick of every trial that was paced by gen's gaps (`telemetry.pacing_series`)."""
        return telemetry.pacing_series(self.run.trials, self.run.frame)

    @cached_property
    def pacing(self) -> pd.DataFrame:
        """By step and trial what the pacing saw and asked for (`telemetry.pacing_summary`)."""
        return telemetry.pacing_summary(self.pacing_ticks)

    # What captures show.

    def capture(self, step: str) -> CaptureAnalysis | None:
        """What the capture of a step shows; None where the run has none of it."""
        if step not in self._captures:
            if step not in self.run.captured_steps:
                return None
            counted = self.counted[self.counted["step"] == step]
            unprofiled = {name: float(counted[name].mean()) for name in RATES.values()}
            many = self.run.params.gen_concurrency
            self._captures[step] = CaptureAnalysis(self.run.capture(step), self.params, unprofiled, {}, many)
        return self._captures[step]

    @property
    def captures(self) -> dict[str, CaptureAnalysis]:
        """What each captured step shows, in the order of the steps."""
        captures = {step: self.capture(step) for step in self.run.captured_steps}
        return {step: capture for step, capture in captures.items() if capture is not None}

    def overlap(self, step: str) -> MeasuredOverlap | None:
        """How much of gen's time overlapped embed's in a step's capture (`overlap.verdict_overlap`), or None."""
        capture = self.capture(step)
        return None if capture is None else capture.overlap

    def token_time(self, step: str) -> TokenTime | None:
        """Where a decoded token's time went in a step's capture (`token_time.gen_times`); None without gen in it."""
        capture = self.capture(step)
        return None if capture is None else capture.token_time

    @cached_property
    def token_times(self) -> pd.DataFrame:
        """A row a captured step with gen on one device: `TOKEN_COLUMNS`, ns per decoded token.

        trials_ns: 1 / the mean rate that the step's trials recorded.
        """
        rows = []
        for step in self.run.captured_steps:
            time = self.token_time(step)
            if time is not None:
                trials = self.run.trials[(self.run.trials["step"] == step) & (self.run.trials["status"] == "done")]
                rate = trials["recorded_gen_tokens_per_s"].mean()
                parts = [getattr(time, name) for name in TOKEN_PARTS]
                rows.append([step, self.run.params.gen_concurrency, time.pieces, 1e9 / rate, *parts])
        return pd.DataFrame(rows, columns=TOKEN_COLUMNS)

    @cached_property
    def loss(self) -> loss.GenLoss:
        """Where gen's loss went in every shared step, as far as trials and captures tell it apart."""
        times = {step: capture.token_time for step, capture in self.captures.items()}
        ratio = self.bounds.min_profiled_ratio
        return loss.gen_loss(self.counted, self.telemetry, self.run.frame, times, ratio)

    # What follows for whoever has GPUs.

    @cached_property
    def capacity_units(self) -> list[Unit]:
        """What one or two GPUs give in each layout (`capacity.units`), with the power that they draw."""
        counted = trial_metrics.with_power(self.counted, self.samples)
        return units(counted, self.kept, self.against_bounds, self.bounds.slo_gen_gap_ms)

    @cached_property
    def chain(self) -> pd.DataFrame:
        """gen's rate from one device to two, shared (`two_devices.chain`)."""
        return two_devices.chain(self.counted)

    @cached_property
    def activity(self) -> pd.DataFrame:
        """Means of SM, DRAM, tensor and NVLink activity and power by step and device (`two_devices.activity`)."""
        return two_devices.activity(self.telemetry)

    def points(self, label: str) -> pd.DataFrame:
        """The run under `label` on the metrics of the published runs (`published.own_points`)."""
        return own_points(label, self.steps_table, self.kept, self.telemetry)

    def beside_published(self, figures: pd.DataFrame) -> pd.DataFrame:
        """The published runs' figures and this run's, in one frame (`published.all_points`)."""
        return all_points(figures, self.run.run_id, self.steps_table, self.kept, self.telemetry)

    def unlike_published(self, conditions: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """Conditions of the published runs and of this one, and where they differ (`published.differences`)."""
        return differences(conditions, conditions_of(self.run.manifest, self.run.trials))

    def beside_later(self, figures: pd.DataFrame) -> pd.DataFrame:
        """The later published runs' figures and this run's (`published.later_points`)."""
        return later_points(figures, self.run.run_id, self.steps_table, self.kept, self.telemetry)

    def alone_beside_later(self, figures: pd.DataFrame) -> pd.DataFrame:
        """The LLM alone by requests in flight, theirs and here (`published.alone_by_load`)."""
        mine = self.beside_later(figures)
        mine = mine[mine["run"] == self.run.run_id]
        return alone_by_load(figures, mine, self.run.params.gen_concurrency)

    def unlike_later(self, conditions: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """Conditions of the later runs with several steps and of this one, and where they differ."""
        theirs = {run: facts for run, facts in conditions.items() if facts.get("mechanisms")}
        return differences(theirs, conditions_of(self.run.manifest, self.run.trials), LATER_CONDITIONS)


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
    rows += _stall_rows(counted) + _telemetry_rows(telemetry)
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
