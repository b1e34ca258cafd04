"""How gen's two ranks met, of every captured step of some runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from colo_lib.analyse.collectives import Meetings, meetings, rank_times, summarise
from colo_lib.analyse.two_devices import TOKEN_PARTS
from colo_lib.parse.captures import captured_steps, read_capture
from colo_lib.parse.run_folder import Run


@dataclass(frozen=True)
class StepMeetings:
    """A step's collectives and their numbers (`collectives.summarise`), with the means over the ranks where known.

    `ranks`: where a token's time went on each (`collectives.rank_times`); empty without a rate while profiling.
    """

    found: Meetings
    summary: Mapping[str, float]
    ranks: list[dict[str, float]]
    concurrency: int

    @property
    def apart_us(self) -> np.ndarray:
        """|difference of the ranks' arrivals| of each collective, us."""
        return np.abs(self.found.skew_ns) / 1e3


def meetings_of(runs: Iterable[Run]) -> dict[str, StepMeetings]:
    """step -> its meetings, of the first run that captured it with two ranks of gen."""
    told: dict[str, StepMeetings] = {}
    for run in runs:
        for step in captured_steps(run.folder):
            if step in told:
                continue
            one = read_capture(run.folder, step)
            pids = (one.facts.get("pids") or {}).get("gen") or []
            found = meetings(one.capture, pids, one.window_s)
            if found is not None:
                rate = (one.facts.get("profiled") or {}).get("gen_tokens_per_s")
                numbers = summarise(found, rate, run.params.gen_concurrency)
                ranks = rank_times(found, numbers["tokens"]) if rate else []
                means = {name: float(np.mean([rank[name] for rank in ranks])) for name in TOKEN_PARTS if ranks}
                told[step] = StepMeetings(found, {**numbers, **means}, ranks, run.params.gen_concurrency)
    return told
