"""Every answer about one capture, each computed once: what the notebooks of traces and the analysis of a run ask.

The capture was opened by `data`; the functions behind the answers are pure. A window is looked at as the notebook's
parameters and the capture's own record say.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from colo_lib.analysis.trace import downsample, kernels, occupancy
from colo_lib.analysis.trace import overlap as trace_overlap
from colo_lib.analysis.trace import summary as trace_summary
from colo_lib.analysis.trace.token_time import StepCollectives, TokenTime, gen_times, step_collectives
from colo_lib.analysis.trace.window import Asked, TraceWindow, view_of, views_alone
from colo_lib.data.capture import StepCapture
from colo_lib.params import Params
from colo_lib.trace import Union

TYPICAL_NS = 4_000_000  # of the window are drawn kernel by kernel


class CaptureAnalysis:
    """`unprofiled`: mean rates of the same step's trials, by their name in capture.json; `alone`: captures of one
    workload alone to set beside it; `concurrency`: requests in flight.
    """

    def __init__(
        self,
        captured: StepCapture,
        params: Params,
        unprofiled: Mapping[str, float] | None = None,
        alone: Mapping[str, StepCapture] | None = None,
        concurrency: int = 1,
    ) -> None:
        self.captured = captured
        self.params = params
        self.unprofiled = unprofiled or {}
        self.alone = alone or {}
        self.concurrency = concurrency

    @cached_property
    def window(self) -> TraceWindow:
        """gen and embed on one device in one window."""
        captured = self.captured
        return view_of(captured.capture, captured.facts, Asked.of(self.params), captured.window_s)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The object of `colo trace --json` (`summary.summary_of`)."""
        return trace_summary.summary_of(self.window)

    @cached_property
    def profiled(self) -> str:
        """Rates while profiling over those of the trials, in words."""
        return trace_summary.profiled_words(self.captured.facts, self.unprofiled)

    @property
    def notes(self) -> str:
        """What a reader must know to take the numbers for what they are."""
        return " ".join([self.profiled, *self.summary["notes"], *self.summary["omissions"]])

    @cached_property
    def overlap(self) -> trace_overlap.MeasuredOverlap | None:
        """What the verdict takes as the overlap (`overlap.verdict_overlap`)."""
        rate = self.unprofiled.get("gen_tokens_per_s")
        return trace_overlap.verdict_overlap(self.window, self.captured.facts, rate)

    @cached_property
    def stretch(self) -> tuple[int, int]:
        """A typical part of the window, ns."""
        return downsample.typical_stretch(self.window, TYPICAL_NS)

    @cached_property
    def rectangles(self) -> downsample.Rectangles:
        """The kernels of `stretch`, to draw (`downsample.rectangles`)."""
        return downsample.rectangles(self.window, self.stretch)

    @cached_property
    def busy_over_time(self) -> downsample.BusyOverTime:
        """Busy share of the device by workload over the window (`downsample.busy_over_time`)."""
        return downsample.busy_over_time(self.window)

    @cached_property
    def over_time(self) -> occupancy.FilledOverTime:
        """Busy and filled share of the device over the window (`occupancy.occupancy_over_time`)."""
        return occupancy.occupancy_over_time(self.window)

    @cached_property
    def occupancy_classes(self) -> dict[str, occupancy.OccupancyClasses | None]:
        """workload -> its kernels by class of SM occupancy (`occupancy.distribution`)."""
        return {
            name: occupancy.distribution(active, self.window.device) for name, active in self.window.workloads.items()
        }

    @cached_property
    def gaps(self) -> Union:
        """The holes between all kernels."""
        return occupancy.find_gaps(self.window)

    @cached_property
    def gap_classes(self) -> list[occupancy.GapClass]:
        """The holes by size (`occupancy.by_class`)."""
        return occupancy.by_class(self.gaps, self.window.window_ns)

    @cached_property
    def idle_over_time(self) -> occupancy.IdleOverTime:
        """Where in the window the holes lie (`occupancy.idle_over_time`)."""
        return occupancy.idle_over_time(self.gaps, self.window.window)

    @cached_property
    def categories(self) -> dict[str, list[dict[str, Any]]]:
        """workload -> its kernel time by category."""
        return {name: workload["categories"] for name, workload in self.summary["workloads"].items()}

    @cached_property
    def shifts(self) -> list[kernels.DurationShifts]:
        """Durations of each workload alone against here (`kernels.duration_shifts`)."""
        looked = {name: (captured.capture, captured.facts, captured.window_s) for name, captured in self.alone.items()}
        return [kernels.duration_shifts(alone, self.window, name) for name, alone in views_alone(looked).items()]

    @cached_property
    def token_time(self) -> TokenTime | None:
        """Where a decoded token's time went (`token_time.gen_times`); None without gen or its rate."""
        return gen_times(self.window, self.captured.facts, self.captured.launches(), self.concurrency)

    @cached_property
    def collectives(self) -> StepCollectives | None:
        """How gen's two ranks met; None where gen has one rank."""
        captured = self.captured
        pids = (captured.facts.pids or {}).get("gen") or []
        rate = captured.facts.profiled.gen_tokens_per_s if captured.facts.profiled else None
        return step_collectives(captured.capture, pids, captured.window_s, rate, self.concurrency)
