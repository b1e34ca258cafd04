"""Every answer about one sweep, each computed once: the analyses of its runs, and what they say side by side."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from colo_lib.analysis import bound, operating_point, two_devices
from colo_lib.analysis.capacity import Unit
from colo_lib.analysis.run_analysis import TOKEN_COLUMNS, RunAnalysis
from colo_lib.analysis.sweep import SweepMeasures, collect
from colo_lib.analysis.thresholds import judged_by
from colo_lib.analysis.trace.token_time import StepCollectives
from colo_lib.data.run import Run
from colo_lib.data.sweep import Sweep
from colo_lib.params import Params


class SweepAnalysis:
    """`bounds`: what all of its runs are judged by: the sweep's own, with those that `params` sets otherwise."""

    def __init__(self, sweep: Sweep, params: Params | None = None) -> None:
        self.sweep = sweep
        self.params = sweep.params if params is None else params
        self.bounds = judged_by(sweep.params, self.params)
        self._runs: dict[Path, RunAnalysis] = {}

    def of(self, run: Run) -> RunAnalysis:
        """The analysis of one of its runs."""
        if run.folder not in self._runs:
            self._runs[run.folder] = RunAnalysis(run, self.params, self.bounds)
        return self._runs[run.folder]

    @cached_property
    def cells(self) -> dict[str, RunAnalysis]:
        """Cell -> the analysis of its run, of those that are done."""
        return {name: self.of(run) for name, run in self.sweep.runs.items()}

    @cached_property
    def measures(self) -> SweepMeasures:
        """Rates and kept fractions, a row a cell and measure (`collect`)."""
        return collect(self.sweep.cells, self.sweep.names, self.of)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """A row a cell and shared step with what it keeps (`operating_point.settings`)."""
        bounds = (self.bounds.min_gen_kept, self.bounds.max_gap_growth)
        return operating_point.settings(self.measures, self.sweep.cells, *bounds, self.of)

    @cached_property
    def frontiers(self) -> dict[int, list[tuple[float, float]]]:
        """Requests in flight -> what both could at best keep, by its first cell alone (`bound.frontier`)."""
        frontiers: dict[int, list[tuple[float, float]]] = {}
        for analysis in self.cells.values():
            uses = bound.of_kinds(analysis.uses_alone, bound.AT_BEST)
            if uses and analysis.run.params.gen_concurrency not in frontiers:
                frontiers[analysis.run.params.gen_concurrency] = bound.frontier(uses)
        return frontiers

    @cached_property
    def token_times(self) -> pd.DataFrame:
        """`RunAnalysis.token_times` of every cell, with a column cell."""
        parts = [
            analysis.token_times.assign(cell=name) for name, analysis in self.cells.items() if len(analysis.token_times)
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["cell", *TOKEN_COLUMNS])

    @cached_property
    def collectives(self) -> dict[str, StepCollectives]:
        """step -> how gen's two ranks met, of the first run that captured it with two ranks."""
        collectives: dict[str, StepCollectives] = {}
        for analysis in self.cells.values():
            for step in [step for step in analysis.run.captured_steps if step not in collectives]:
                capture = analysis.capture(step)
                met = None if capture is None else capture.collectives
                if met is not None:
                    collectives[step] = met
        return collectives

    # By requests in flight: what two devices are used for.

    @cached_property
    def by_concurrency(self) -> dict[int, RunAnalysis]:
        """Requests in flight -> the analysis of the run with so many."""
        return {analysis.run.params.gen_concurrency: analysis for analysis in self.cells.values()}

    @property
    def first(self) -> RunAnalysis:
        """The analysis of the first run."""
        return next(iter(self.by_concurrency.values()))

    @cached_property
    def counted(self) -> dict[int, pd.DataFrame]:
        """Requests in flight -> the trials that count."""
        return {many: analysis.counted for many, analysis in self.by_concurrency.items()}

    @cached_property
    def chains(self) -> dict[int, pd.DataFrame]:
        """Requests in flight -> gen's rate from one device to two, shared (`two_devices.chain`)."""
        return {many: analysis.chain for many, analysis in self.by_concurrency.items()}

    @cached_property
    def over_config_a(self) -> pd.DataFrame:
        """gen's rate in each step over config A's (`two_devices.all_over_config_a`)."""
        return two_devices.all_over_config_a(self.counted)

    @cached_property
    def outcomes(self) -> list[str]:
        """The brief's expected outcomes, a sentence each (`two_devices.outcomes`)."""
        kept = {many: analysis.kept for many, analysis in self.by_concurrency.items()}
        met = {step: analysis.summary for step, analysis in self.collectives.items()}
        return two_devices.outcomes(self.first.chain, kept, met)

    def prediction(self, single: Run | None) -> pd.DataFrame:
        """Config B as a run of one GPU predicts it, beside the first run's (`two_devices.prediction`)."""
        predicted: Unit | None = None
        if single is not None:
            units = RunAnalysis(single, self.params, self.bounds).capacity_units
            predicted = next((unit for unit in units if unit.predicted), None)
        return two_devices.prediction(predicted, self.first.counted)
