"""Where gen's loss went: the time per decode token, alone -> shared, split into causes that sum to the whole loss.

Design: kernel busy time is split into clock (busy alone x (f_alone / f_shared - 1)) and contention (the rest of the
busy change); gap time into waiting for the device (launch to start) and host. What the data cannot tell apart stays
one part. The arithmetic is rational, so the parts sum to the loss exactly and not to a rounding of it.

What a run's trials tell of gen's time per token: totals, clocks, and time in which gen was not let run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import Estimate, by_block, over_starts, with_interval
from colo_lib.analysis.trace.token_time import TokenTime
from colo_lib.steps import GEN_CAN_LOSE, STEPS, names_in, names_of, with_id

CAUSES = ("clock", "contention", "waiting", "host")
LABELS = {
    "clock": "slower clocks",
    "contention": "contention (slower kernels at the same clock)",
    "waiting": "waiting for the device",
    "host": "host",
}
CATEGORY_COLUMNS = ["category", "alone_us", "shared_us", "clock_us", "contention_us"]
COLUMNS = ["part", "label", "us", "start_us", "end_us", "share"]


@dataclass(frozen=True)
class PerToken:
    """One step's device time per decode token, ns: 1 / its token rate, all requests together.

    busy_ns: union of gen's kernels; waiting_ns: gaps between a launch and its kernel's start, or time in which gen was
    not let run; clock_mhz: mean SM clock. None where it is not known. `clipped`: kernel intervals hold no time in which
    their context was switched out (alone, under MPS, or clipped to residency); without it busy time holds waiting too.
    `mechanism`: as recorded, where a trial tells it.
    """

    total_ns: float
    busy_ns: float | None = None
    waiting_ns: float | None = None
    clock_mhz: float | None = None
    clipped: bool = True
    mechanism: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for times that cannot be."""
        for name in ("total_ns", "busy_ns", "waiting_ns", "clock_mhz"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: a time or a clock is finite and not negative")
        inside = (self.busy_ns or 0.0) + (self.waiting_ns or 0.0)
        if inside > self.total_ns * (1 + 1e-9):
            raise ValueError(f"busy and waiting take {inside} ns of {self.total_ns} ns per token")


@dataclass(frozen=True)
class Loss:
    """The loss per token in ns, `parts`: causes -> ns (one entry may name several), summing to `total_ns` exactly.

    `clock_at_most_ns`: the most that slower clocks can explain where they are not a part of their own, else None.
    """

    alone: PerToken
    shared: PerToken
    total_ns: Fraction
    parts: Mapping[tuple[str, ...], Fraction]
    clock_at_most_ns: float | None

    @property
    def merged(self) -> list[tuple[str, ...]]:
        """The parts that hold several causes: what the data at hand cannot tell apart."""
        return [causes for causes in self.parts if len(causes) > 1]


def decompose_loss(alone: PerToken, shared: PerToken) -> Loss:
    """Split the time per token that gen lost; parts are in the order of `CAUSES`."""
    total = Fraction(shared.total_ns) - Fraction(alone.total_ns)
    busy, waiting = _change(alone.busy_ns, shared.busy_ns), _change(alone.waiting_ns, shared.waiting_ns)
    clock = _clock(alone, shared)
    left, parts = list(CAUSES), {}

    def take(causes: tuple[str, ...], value: Fraction) -> None:
        parts[causes] = value
        for cause in causes:
            left.remove(cause)

    if clock is not None:
        take(("clock",), clock)
    busy_causes = tuple(cause for cause in ("clock", "contention") if cause in left)
    if busy is not None and shared.clipped:
        take(busy_causes, busy - (clock or 0))
        if waiting is not None:
            take(("waiting",), waiting)
    elif busy is not None and waiting is not None:
        # Switched-out time inside kernel intervals is waiting that looks like slow kernels.
        take((*busy_causes, "waiting"), busy - (clock or 0) + waiting)
    elif busy is None and waiting is not None:
        take(("waiting",), waiting)
    parts[tuple(left)] = total - sum(parts.values(), Fraction(0))
    ordered = dict(sorted(parts.items(), key=lambda item: CAUSES.index(item[0][0])))
    return Loss(alone, shared, total, ordered, None if clock is not None else _most_clock(alone, shared))


def _change(alone: float | None, shared: float | None) -> Fraction | None:
    return None if alone is None or shared is None else Fraction(shared) - Fraction(alone)


def _clock(alone: PerToken, shared: PerToken) -> Fraction | None:
    if not alone.clock_mhz or not shared.clock_mhz:
        return None
    if alone.clock_mhz == shared.clock_mhz:
        return Fraction(0)  # whatever the busy time was
    if alone.busy_ns is None or shared.busy_ns is None:
        return None
    return Fraction(alone.busy_ns) * (Fraction(alone.clock_mhz) / Fraction(shared.clock_mhz) - 1)


def _most_clock(alone: PerToken, shared: PerToken) -> float | None:
    """All of the time alone slowed by the clocks: busy time is at most that."""
    if not alone.clock_mhz or not shared.clock_mhz:
        return None
    busy_ns = alone.total_ns if alone.busy_ns is None else alone.busy_ns
    return busy_ns * (alone.clock_mhz / shared.clock_mhz - 1)


def cause_in_words(causes: tuple[str, ...]) -> str:
    """A part in words; several causes are one part that nothing here tells apart."""
    return " or ".join(LABELS[cause] for cause in causes)


def waterfall(loss: Loss) -> pd.DataFrame:
    """A row a part with `COLUMNS`: us per token, where its bar starts and ends, share of the whole loss.

    The first bar starts at the time alone, the last one ends at the time shared. `share` is null for a loss of zero.
    """
    rows, reached = [], Fraction(loss.alone.total_ns)
    for causes, value in loss.parts.items():
        share = float(value / loss.total_ns) if loss.total_ns else float("nan")
        ends = (float(reached) / 1e3, float(reached + value) / 1e3)
        rows.append(("+".join(causes), cause_in_words(causes), float(value) / 1e3, *ends, share))
        reached += value
    return pd.DataFrame(rows, columns=COLUMNS)


def by_category(
    alone: Mapping[str, float],
    shared: Mapping[str, float],
    busy: tuple[float, float],
    clocks: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """The change of gen's busy time per token by kernel category.

    Columns: category, alone_us, shared_us, clock_us, contention_us.
    `alone`, `shared`: category -> summed kernel time, ns per token; `busy`: the union alone and shared; `clocks`: mean
    MHz alone and shared. Without clocks, clock_us is null and contention_us is the whole change. The last row is the
    time in which gen's own kernels overlap each other (the union less the sum), so that the columns sum to the union.
    """
    names = list(dict.fromkeys([*alone, *shared]))
    pairs = {name: (float(alone.get(name, 0.0)), float(shared.get(name, 0.0))) for name in names}
    sums = [math.fsum(pair[side] for pair in pairs.values()) for side in (0, 1)]
    pairs["(the LLM's kernels over each other)"] = (busy[0] - sums[0], busy[1] - sums[1])
    slower = clocks[0] / clocks[1] - 1 if clocks else float("nan")
    rows = []
    for name, (before, after) in pairs.items():
        clock = before * slower
        rest = after - before - (clock if clocks else 0.0)
        rows.append((name, before / 1e3, after / 1e3, clock / 1e3, rest / 1e3))
    return pd.DataFrame(rows, columns=CATEGORY_COLUMNS)


def loss_sentence(loss: Loss, step: str) -> str:
    """The loss in one sentence: how much, and where it went as far as the data tell."""
    alone_us, shared_us = loss.alone.total_ns / 1e3, loss.shared.total_ns / 1e3
    if loss.total_ns <= 0:
        return f"{step}: the LLM lost nothing: {alone_us:,.0f} us per token alone, {shared_us:,.0f} us shared."
    parts = [f"{row.us:+,.0f} us {row.label} ({row.share:.0%})" for row in waterfall(loss).itertuples()]
    sentence = f"{step}: a token took {alone_us:,.0f} us alone and {shared_us:,.0f} us shared: {'; '.join(parts)}."
    if loss.merged:
        sentence += " Causes joined by 'or' are one part: these data do not tell them apart."
    if loss.clock_at_most_ns is not None and loss.clock_at_most_ns > 0:
        most = loss.clock_at_most_ns / float(loss.total_ns)
        sentence += f" Slower clocks explain at most {loss.clock_at_most_ns / 1e3:,.0f} us of it ({most:.0%})."
    return sentence


GetFrame = Callable[[str, int, str], pd.DataFrame | None]

RATE = "gen_tokens_per_s"
UNKNOWN_SHARE = 0.02  # of the time may have no recorded launch for the rest to be split


def per_token(counted: pd.DataFrame, telemetry: pd.DataFrame, get_frame: GetFrame) -> dict[str, PerToken]:
    """step -> its device time per token from unprofiled trials: 1 / mean rate; clock and waiting where they are known.

    `telemetry`: `telemetry_summary`. Busy time needs a capture. Waiting is known where we took the turns ourselves
    (`slices`): the share of the window outside gen's own turns; a step that runs gen alone waits for nobody.
    """
    times = {}
    for step, trials in counted[counted[RATE] > 0].groupby("step"):
        total_ns = 1e9 / float(by_block(trials, str(step), RATE).mean())
        clocks = telemetry[(telemetry["step"] == step) & (telemetry["metric"] == "sm_clock_mhz")]
        clock = float(clocks["mean"].mean()) if len(clocks) else None
        share = _stopped_share(trials, get_frame) if step in GEN_CAN_LOSE else 0.0
        waiting = None if share is None else share * total_ns
        times[str(step)] = PerToken(total_ns, None, waiting, clock, mechanism=str(trials["mechanism"].iloc[0]))
    return times


def with_captures(
    unprofiled: Mapping[str, PerToken], times: Mapping[str, TokenTime | None], least_ratio: float
) -> dict[str, PerToken]:
    """`unprofiled` with the busy and waiting time that captures tell (`token_time.gen_times`), where a step has one.

    The rates stay those of unprofiled trials. Where a capture's busy and waiting time are more than an unprofiled token
    takes, the profiler lengthened its gaps: they are not split, since the host's part would be 0 by construction. A
    capture whose gen ran at less than `least_ratio` of its unprofiled rate, or at more than the inverse, shows another
    load and is not used.
    """
    split = dict(unprofiled)
    for step, captured in times.items():
        if (
            captured is None
            or step not in unprofiled
            or not _alike(profiled_ratio(unprofiled[step], captured), least_ratio)
        ):
            continue
        total_ns = unprofiled[step].total_ns
        busy_ns = min(captured.busy_ns, total_ns)
        waiting_ns = captured.waiting_ns + captured.switched_out_ns
        unknown = captured.unattributed_ns > UNKNOWN_SHARE * captured.window_ns or busy_ns + waiting_ns > total_ns
        split[step] = replace(
            unprofiled[step], busy_ns=busy_ns, waiting_ns=None if unknown else waiting_ns, clipped=captured.clipped
        )
    return split


def _alike(ratio: float, least_ratio: float) -> bool:
    return least_ratio <= ratio and ratio * least_ratio <= 1


def profiled_ratio(unprofiled: PerToken, captured: TokenTime) -> float:
    """gen's rate while it was captured / its rate in the unprofiled trials."""
    return unprofiled.total_ns / float(captured.window_ns)


def captures_sentence(
    unprofiled: Mapping[str, PerToken], times: Mapping[str, TokenTime | None], least_ratio: float
) -> str:
    """Which captures the split uses, each with its profiled / unprofiled rate, and which it does not."""
    ratios = {
        step: profiled_ratio(unprofiled[step], captured)
        for step, captured in times.items()
        if captured and step in unprofiled
    }
    names = names_of((step, None) for step in ratios)  # captures are of GPUs
    used = ", ".join(f"{names[step]} ({ratio:.2f})" for step, ratio in ratios.items() if _alike(ratio, least_ratio))
    left = ", ".join(f"{names[step]} ({ratio:.2f})" for step, ratio in ratios.items() if not _alike(ratio, least_ratio))
    sentence = (
        f"Busy time and waiting are from the captures of {used or 'no step'} (the LLM's profiled / unprofiled rate)."
    )
    if left:
        sentence += (
            f" Not used, because the LLM's rate was another one (less than {least_ratio:.0%}, or its inverse): {left}."
        )
    if not used:
        sentence += " What only a capture tells apart is one part: on a GPU host with Nsight Systems, set capture_s."
    return sentence


def category_rows(both: Mapping[str, tuple[PerToken, PerToken]], times: Mapping[str, TokenTime | None]) -> pd.DataFrame:
    """`by_category` of every pair whose two captures are used, with a column step."""
    parts = []
    for step, (alone, shared) in both.items():
        alone_time, shared_time = times.get(str(STEPS[step].gen_baseline)), times.get(step)
        if alone_time and shared_time and alone.busy_ns is not None and shared.busy_ns is not None:
            clocks = (alone.clock_mhz, shared.clock_mhz) if alone.clock_mhz and shared.clock_mhz else None
            sums = (alone_time.busy_by_category_ns, shared_time.busy_by_category_ns)
            parts.append(by_category(*sums, (alone_time.busy_ns, shared_time.busy_ns), clocks).assign(step=step))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["step", *CATEGORY_COLUMNS])


def pairs(times: dict[str, PerToken]) -> dict[str, tuple[PerToken, PerToken]]:
    """step -> (alone, shared) for every shared step whose baseline was measured too."""
    return {
        step: (times[str(STEPS[step].gen_baseline)], times[step])
        for step in GEN_CAN_LOSE
        if step in times and STEPS[step].gen_baseline in times
    }


@dataclass(frozen=True)
class GenLoss:
    """Where gen's loss went. `losses`, `wholes`: step -> its loss, and the whole of it with its interval, us a token.

    `categories`: `category_rows`. `mechanism`, `captures`: sentences on what the mechanism costs, and what was used.
    """

    losses: dict[str, Loss]
    wholes: dict[str, Estimate]
    categories: pd.DataFrame
    mechanism: str
    captures: str


def gen_loss(
    counted: pd.DataFrame,
    telemetry: pd.DataFrame,
    get_frame: GetFrame,
    times: Mapping[str, TokenTime | None],
    least_ratio: float,
) -> GenLoss:
    """Split gen's loss in every shared step that has its baseline; arguments as `per_token` and `with_captures`."""
    unprofiled = per_token(counted, telemetry, get_frame)
    both = pairs(with_captures(unprofiled, times, least_ratio))
    return GenLoss(
        losses={step: decompose_loss(*sides) for step, sides in both.items()},
        wholes={step: loss_estimate(counted, step) for step in both},
        categories=category_rows(both, times),
        mechanism=mechanism_sentence(counted),
        captures=captures_sentence(unprofiled, times, least_ratio),
    )


def mechanism_sentence(counted: pd.DataFrame) -> str:
    """How much of step 2's loss is there with the embedder idle already: what the mechanism itself costs the LLM."""
    whole, by_itself = (loss_estimate(counted, step) for step in ("step2", "mps-alone"))
    if not whole.blocks or not by_itself.blocks:
        return (
            "Whether the mechanism itself costs the LLM anything was not measured: it needs the step "
            f"{with_id('mps-alone')}."
        )
    idle, both = (with_interval(lost.mean, lost.low, lost.high, lost.starts) for lost in (by_itself, whole))
    shared = names_in(counted)["step2"]
    return (
        f"With the embedder idle the mechanism itself costs {idle} us a token, of {both} us lost in all with {shared}."
    )


def loss_estimate(counted: pd.DataFrame, step: str) -> Estimate:
    """Time per token lost in `step` against its baseline, us: mean over blocks with its 95 % interval."""
    both = (step, STEPS[step].gen_baseline)
    times = [1e6 / by_block(counted, name, RATE) for name in both]
    lost = (times[0] - times[1]).dropna()
    return over_starts(counted, lost[np.isfinite(lost)], both, ["gen"], positive=False)


def _stopped_share(trials: pd.DataFrame, get_frame: GetFrame) -> float | None:
    """Share of the windows in which gen was stopped, None where nobody took turns."""
    stopped_ns, window_ns = 0, 0
    for trial in trials.to_dict("records"):
        turns = get_frame(trial["step"], trial["trial"], "slices")
        if turns is None:
            return None
        start_ns, end_ns = int(trial["window_start_ns"]), int(trial["window_end_ns"])
        gen_turns = turns[turns["workload"] == "gen"]
        ran = (gen_turns["end_ns"].clip(upper=end_ns) - gen_turns["start_ns"].clip(lower=start_ns)).clip(lower=0).sum()
        stopped_ns += end_ns - start_ns - int(ran)
        window_ns += end_ns - start_ns
    return stopped_ns / window_ns if window_ns else None
