"""What a run's trials tell of gen's time per token: totals, clocks, and time in which gen was not let run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analyse.estimate import Estimate
from colo_lib.analyse.kept import by_block, over_starts
from colo_lib.analyse.loss import CATEGORY_COLUMNS, PerToken, by_category
from colo_lib.analyse.steps_table import with_interval
from colo_lib.schema import BASELINES

GetFrame = Callable[[str, int, str], pd.DataFrame | None]
SHARED = ("mps-alone", "step2", "step3", "mig", "sm-partition", "configB")
RATE = "gen_tokens_per_s"
UNKNOWN_SHARE = 0.02  # of the time may have no recorded launch for the rest to be split


def per_token(counted: pd.DataFrame, telemetry: pd.DataFrame, get_frame: GetFrame) -> dict[str, PerToken]:
    """step -> its device time per token from unprofiled trials: 1 / mean rate; clock and waiting where they are known.

    `telemetry`: `telemetry.summary`. Busy time needs a capture. Waiting is known where we took the turns ourselves
    (`slices`): the share of the window outside gen's own turns; a step that runs gen alone waits for nobody.
    """
    found = {}
    for step, trials in counted[counted[RATE] > 0].groupby("step"):
        total_ns = 1e9 / float(by_block(trials, str(step), RATE).mean())
        clocks = telemetry[(telemetry["step"] == step) & (telemetry["metric"] == "sm_clock_mhz")]
        clock = float(clocks["mean"].mean()) if len(clocks) else None
        share = _stopped_share(trials, get_frame) if step in SHARED else 0.0
        waiting = None if share is None else share * total_ns
        found[str(step)] = PerToken(total_ns, None, waiting, clock)
    return found


def with_captures(
    found: Mapping[str, PerToken], times: Mapping[str, Mapping[str, Any] | None], least_ratio: float
) -> dict[str, PerToken]:
    """`found` with the busy and waiting time that captures tell (`chosen.gen_times`), where a step has one.

    The rates stay those of unprofiled trials. Where a capture's busy and waiting time are more than an unprofiled token
    takes, the profiler lengthened its gaps: they are not split, since the host's part would be 0 by construction. A
    capture whose gen ran at less than `least_ratio` of its unprofiled rate, or at more than the inverse, shows another
    load and is not used.
    """
    told = dict(found)
    for step, own in times.items():
        if own is None or step not in found or not _alike(profiled_ratio(found[step], own), least_ratio):
            continue
        total_ns = found[step].total_ns
        busy_ns = min(own["busy_ns"], total_ns)
        waiting_ns = own["waiting_ns"] + own["switched_out_ns"]
        unknown = own["unattributed_ns"] > UNKNOWN_SHARE * own["window_ns"] or busy_ns + waiting_ns > total_ns
        waiting_ns = None if unknown else waiting_ns
        told[step] = replace(found[step], busy_ns=busy_ns, waiting_ns=waiting_ns, clipped=own["clipped"])
    return told


def _alike(ratio: float, least_ratio: float) -> bool:
    return least_ratio <= ratio and ratio * least_ratio <= 1


def profiled_ratio(unprofiled: PerToken, own: Mapping[str, Any]) -> float:
    """gen's rate while it was captured / its rate in the unprofiled trials."""
    return unprofiled.total_ns / float(own["window_ns"])


def captures_sentence(
    found: Mapping[str, PerToken], times: Mapping[str, Mapping[str, Any] | None], least_ratio: float
) -> str:
    """Which captures the split uses, each with its profiled / unprofiled rate, and which it does not."""
    ratios = {step: profiled_ratio(found[step], own) for step, own in times.items() if own and step in found}
    used = ", ".join(f"{step} ({ratio:.2f})" for step, ratio in ratios.items() if _alike(ratio, least_ratio))
    left = ", ".join(f"{step} ({ratio:.2f})" for step, ratio in ratios.items() if not _alike(ratio, least_ratio))
    told = f"Busy time and waiting are from the captures of {used or 'no step'} (gen's profiled / unprofiled rate)."
    if left:
        told += f" Not used, because gen's rate was another one (less than {least_ratio:.0%}, or its inverse): {left}."
    if not used:
        told += " What only a capture tells apart is one part: on a GPU host with Nsight Systems, set capture_s."
    return told


def category_rows(
    both: Mapping[str, tuple[PerToken, PerToken]], times: Mapping[str, Mapping[str, Any] | None]
) -> pd.DataFrame:
    """`loss.by_category` of every pair whose two captures are used, with a column step."""
    parts = []
    for step, (alone, shared) in both.items():
        own, other = times.get(str(BASELINES[step][0])), times.get(step)
        if own and other and alone.busy_ns is not None and shared.busy_ns is not None:
            clocks = (alone.clock_mhz, shared.clock_mhz) if alone.clock_mhz and shared.clock_mhz else None
            sums = (own["busy_by_category_ns"], other["busy_by_category_ns"])
            parts.append(by_category(*sums, (own["busy_ns"], other["busy_ns"]), clocks).assign(step=step))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["step", *CATEGORY_COLUMNS])


def pairs(found: dict[str, PerToken]) -> dict[str, tuple[PerToken, PerToken]]:
    """step -> (alone, shared) for every shared step whose baseline was measured too."""
    return {
        step: (found[str(BASELINES[step][0])], found[step])
        for step in SHARED
        if step in found and BASELINES[step][0] in found
    }


def mechanism_sentence(counted: pd.DataFrame) -> str:
    """How much of step 2's loss is there with embed idle already: what the mechanism itself costs gen."""
    whole, own = (loss_estimate(counted, step) for step in ("step2", "mps-alone"))
    if not whole.blocks or not own.blocks:
        return "Whether the mechanism itself costs gen anything was not measured: it needs the step mps-alone."
    idle, both = (with_interval(one.mean, one.low, one.high, one.starts) for one in (own, whole))
    return f"With embed idle the mechanism itself costs {idle} us a token, of {both} us that step 2 loses in all."


def loss_estimate(counted: pd.DataFrame, step: str) -> Estimate:
    """Time per token lost in `step` against its baseline, us: mean over blocks with its 95 % interval."""
    both = (step, BASELINES[step][0])
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
        own = turns[turns["workload"] == "gen"]
        ran = (own["end_ns"].clip(upper=end_ns) - own["start_ns"].clip(lower=start_ns)).clip(lower=0).sum()
        stopped_ns += end_ns - start_ns - int(ran)
        window_ns += end_ns - start_ns
    return stopped_ns / window_ns if window_ns else None
