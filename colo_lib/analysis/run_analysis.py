"""Every answer about one run, each computed once: what notebooks, pages, comparisons and plans ask.

The chain trials -> kept fractions -> verdict -> what moved is written here and nowhere else, and so is the table of
steps, which puts side by side what each measured. The functions behind it are pure; files are opened by the run. Frames
and records are shared by all who ask: nobody changes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from colo_lib.analysis import (
    bound,
    drift,
    loss,
    statistics,
    telemetry,
    thresholds,
    trial_metrics,
    two_devices,
    verdict,
    work,
)
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
from colo_lib.analysis.statistics import RATES, rates
from colo_lib.analysis.steps_table import shown, steps_table
from colo_lib.analysis.telemetry import Memory
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace import mps_price
from colo_lib.analysis.trace.capture_analysis import CaptureAnalysis
from colo_lib.analysis.trace.mps_price import Price
from colo_lib.analysis.trace.overlap import MeasuredOverlap
from colo_lib.analysis.trace.token_time import TokenTime
from colo_lib.analysis.trial_metrics import Measured, measure_trials
from colo_lib.data.architectures import configs_of
from colo_lib.data.run import Run
from colo_lib.gpus import find_gpu
from colo_lib.params import Params

TOKEN_PARTS = ("window_ns", "busy_ns", "switched_out_ns", "waiting_ns", "host_ns", "unattributed_ns")
TOKEN_COLUMNS = ["step", "concurrency", "tokens", "trials_ns", *TOKEN_PARTS]


class of_run(cached_property[Any]):
    """A property that depends on the run and its bounds alone: computed once for all analyses that hold the run."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        computed, key = instance.run.computed, (self.attrname, instance.bounds)
        if key not in computed:
            computed[key] = self.func(instance)
        return computed[key]


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

    @of_run
    def measured(self) -> Measured:
        """Every trial's numbers, and the latency samples behind them."""
        return measure_trials(self.run.trials, self.run.frame, self.bounds)

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial with the columns of `trial_metrics.NUMBERS`; those that do not count too."""
        return self.measured.trials

    @of_run
    def counted(self) -> pd.DataFrame:
        """The trials that count."""
        return self.measured.counted

    @of_run
    def throughput(self) -> pd.DataFrame:
        """A row a workload and step: its rate with its interval (`statistics.rates`)."""
        return rates(self.counted)

    @of_run
    def latency(self) -> pd.DataFrame:
        """A row a step and kind: count, p50_ms, p99_ms, max_ms (`trial_metrics.by_step`)."""
        return trial_metrics.by_step(self.measured.samples)

    @cached_property
    def mechanisms(self) -> dict[str, str]:
        """step -> how its workloads shared the device."""
        return dict(zip(self.run.trials["step"], self.run.trials["mechanism"], strict=True))

    # What each keeps, and the verdict.

    @of_run
    def ratios(self) -> pd.DataFrame:
        """Kept fractions and aggregates by block (`statistics.block_ratios`); no aggregates where a demand is given.

        Who does what is asked of it keeps all of it, however little that is: such parts are no GPUs' worth of work.
        """
        ratios = statistics.block_ratios(self.counted)
        return ratios[ratios["quantity"].isin(RATES)].reset_index(drop=True) if self.demanded else ratios

    @cached_property
    def demanded(self) -> list[str]:
        """The workloads of which a demand was made (`verdict.demanded`)."""
        return verdict.demanded(self.counted)

    @of_run
    def kept(self) -> pd.DataFrame:
        """Kept fractions and aggregates with their intervals (`statistics.kept_fractions`)."""
        return statistics.kept_fractions(self.ratios)

    @of_run
    def null(self) -> dict[str, float]:
        """Step 1 against itself (`statistics.null_check`)."""
        return statistics.null_check(self.counted)

    @cached_property
    def pays(self) -> pd.DataFrame:
        """Whether a shared step does more work a device than dedicated ones (`verdict.pays`)."""
        return verdict.pays(self.kept)

    @of_run
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
        answer = verdict.demand_answer(self.verdict, self.counted)
        return " ".join(filter(None, [answer, verdict.headline(self.verdict, self.pays)]))

    @cached_property
    def drift(self) -> list[str]:
        """Sentences naming what moved while the run went on: steps apart in time, trends, odd blocks, clocks."""
        moved = drift.trends(self.counted), drift.bad_blocks(self.ratios), drift.moved_clocks(self.samples)
        return drift.apart(self.counted) + drift.warnings(*moved)

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences that a reader of the verdict must not overlook."""
        sentences = work.unbacked_sentences(self.work)
        sentences += thresholds.starved(self.against_bounds) + drift.unsteady(self.null)
        return sentences + self.drift + drift.disagreements(self.trials) + drift.marked(self.trials)

    @of_run
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
        if self.demanded:
            return []  # what it takes at a demand is not what it takes at its full rate
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

    # Whether the rates are backed by work.

    @of_run
    def work(self) -> pd.DataFrame:
        """What each trial's rates demand of the tensor cores, and what those did (`work.work_of_trials`)."""
        facts, configs = self.run.manifest.machine.gpu, configs_of(self.run.params)
        gpu = None if facts is None else find_gpu(str(facts.name))
        if configs is None or gpu is None:
            return pd.DataFrame(columns=work.COLUMNS)
        return work.work_of_trials(self.counted, self.samples, work.cost_of(self.run.params, configs, gpu), gpu)

    # What the devices did.

    @of_run
    def samples(self) -> pd.DataFrame:
        """Every sample of telemetry (`telemetry_series`)."""
        return telemetry.telemetry_series(self.run.trials, self.run.frame)

    @of_run
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

    @cached_property
    def mps_price(self) -> Price | None:
        """What being an MPS client is predicted to cost, beside what it did (`mps_price.price_of`).

        Launches are those of step 1's capture, else of the LLM's as a client, which launches the same. None without
        either, for other cards than those whose surface was measured, and without CUDA graphs, which the surface has.
        """
        facts = self.run.manifest.machine.gpu
        surface = None if facts is None else mps_price.surface_of(str(facts.name))
        step = next((step for step in ("step1", "mps-alone") if step in self.run.captured_steps), None)
        time = None if surface is None or step is None else self.token_time(step)
        if surface is None or step is None or time is None or self.run.params.gen_enforce_eager:
            return None
        views = {name: capture.window for name in (step, "mps-alone") if (capture := self.capture(name)) is not None}
        kernels = {name: mps_price.durations(view) for name, view in views.items() if "gen" in view.workloads}
        if kernels[step].empty:
            return None
        client = kernels.get("mps-alone") if step == "step1" else None
        rates = self.counted.groupby("step")["gen_tokens_per_s"].mean()
        both = float(rates.get("step1", math.nan)), float(rates.get("mps-alone", math.nan))
        many = self.run.params.gen_concurrency
        table = mps_price.kernel_table(kernels[step], client, surface)
        return mps_price.price_of(table, time.pieces / many, many, both, surface.source)

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
