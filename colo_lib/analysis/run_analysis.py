"""Every answer about one run, each computed once: what notebooks, pages, comparisons and plans ask.

The chain trials -> kept fractions -> verdict -> what moved is written here and nowhere else. The functions behind it
are pure; files are opened by the run. Frames and records are shared by all who ask: nobody changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from colo_lib.analysis import drift, kept, loss, telemetry, trial_metrics, two_devices, verdict
from colo_lib.analysis.capacity import Unit, units
from colo_lib.analysis.published import all_points, conditions_of, differences, own_points
from colo_lib.analysis.statistics import RATES, rates
from colo_lib.analysis.steps_table import shown, steps_table
from colo_lib.analysis.telemetry import Memory
from colo_lib.analysis.trace.capture_analysis import CaptureAnalysis
from colo_lib.analysis.trial_metrics import Measured, measure_trials
from colo_lib.data.run import Run
from colo_lib.params import Params

TOKEN_COLUMNS = ["step", "concurrency", "tokens", "trials_ns", "window_ns", "busy_ns", "switched_out_ns", "waiting_ns",
                 "host_ns", "unattributed_ns"]  # fmt: skip


class RunAnalysis:
    """`bounds`: what the run is judged by; `params`: those of the notebook that asks, which may name a capture's
    processes and window and set bounds away from their defaults (`verdict.thresholds`). Without either the run's own.
    """

    def __init__(self, run: Run, params: Params | None = None, bounds: Params | None = None) -> None:
        self.run = run
        self.params = run.params if params is None else params
        own = run.params if params is None else verdict.thresholds(run.params, params)
        self.bounds = own if bounds is None else bounds
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
        """Kept fractions and aggregates by block (`kept.block_ratios`)."""
        return kept.block_ratios(self.counted)

    @cached_property
    def kept(self) -> pd.DataFrame:
        """Kept fractions and aggregates with their intervals (`kept.kept_fractions`)."""
        return kept.kept_fractions(self.ratios)

    @cached_property
    def null(self) -> dict[str, float]:
        """Step 1 against itself (`kept.null_check`)."""
        return kept.null_check(self.counted)

    @cached_property
    def pays(self) -> pd.DataFrame:
        """Whether a shared step does more work a device than dedicated ones (`verdict.pays`)."""
        return verdict.pays(self.kept)

    @cached_property
    def against_bounds(self) -> pd.DataFrame:
        """Worst stalls and latencies against the SLOs (`verdict.against_bounds`)."""
        return verdict.against_bounds(self.counted, self.bounds)

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
        found = drift.trends(self.counted), drift.bad_blocks(self.ratios), drift.moved_clocks(self.samples)
        return drift.apart(self.counted) + drift.warnings(*found)

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the verdict must not overlook."""
        told = verdict.starved(self.against_bounds) + verdict.unsteady(self.null)
        return told + self.drift + verdict.disagreements(self.trials)

    @cached_property
    def steps_table(self) -> pd.DataFrame:
        """A row a measure and step, with the text of its cell (`steps_table.COLUMNS`)."""
        return steps_table(self.trials, self.throughput, self.kept, self.latency, self.telemetry)

    @property
    def steps_shown(self) -> pd.DataFrame:
        """The table of steps as it is read: a row a measure, a column a step."""
        return shown(self.steps_table)

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
            own = self.counted[self.counted["step"] == step]
            unprofiled = {name: float(own[name].mean()) for name in RATES.values()}
            many = self.run.params.gen_concurrency
            self._captures[step] = CaptureAnalysis(self.run.capture(step), self.params, unprofiled, {}, many)
        return self._captures[step]

    @property
    def captures(self) -> dict[str, CaptureAnalysis]:
        """What each captured step shows, in the order of the steps."""
        found = {step: self.capture(step) for step in self.run.captured_steps}
        return {step: one for step, one in found.items() if one is not None}

    def overlap(self, step: str) -> dict[str, Any] | None:
        """How much of gen's time overlapped embed's in a step's capture (`overlap.verdict_overlap`), or None."""
        one = self.capture(step)
        return None if one is None else one.overlap

    def token_time(self, step: str) -> dict[str, Any] | None:
        """Where a decoded token's time went in a step's capture (`token_time.gen_times`); None without gen in it."""
        one = self.capture(step)
        return None if one is None else one.token_time

    @cached_property
    def token_times(self) -> pd.DataFrame:
        """A row a captured step with gen on one device: `TOKEN_COLUMNS`, ns per decoded token.

        trials_ns: 1 / the mean rate that the step's trials recorded.
        """
        rows = []
        for step in self.run.captured_steps:
            times = self.token_time(step)
            if times is not None:
                own = self.run.trials[(self.run.trials["step"] == step) & (self.run.trials["status"] == "done")]
                rate = own["recorded_gen_tokens_per_s"].mean()
                place = {"step": step, "concurrency": self.run.params.gen_concurrency, "trials_ns": 1e9 / rate}
                rows.append(times | place)
        return pd.DataFrame(rows, columns=TOKEN_COLUMNS)

    @cached_property
    def loss(self) -> loss.GenLoss:
        """Where gen's loss went in every shared step, as far as trials and captures tell it apart."""
        times = {step: one.token_time for step, one in self.captures.items()}
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
