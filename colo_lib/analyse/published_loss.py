"""The published runs' own explanations of gen's loss, held against their own figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analyse.loss import Loss, PerToken, decompose
from colo_lib.analyse.published import figure

RUNS = ("run1", "run2", "run3")
COLUMNS = ["run", "where", "explanation", "figures_say"]


def losses(figures: pd.DataFrame) -> dict[tuple[str, str], Loss]:
    """(run, step) -> the decomposition as far as its figures allow; ranges enter by their middle.

    Run 2 printed mean kernel durations but no kernels per token: busy time alone is taken as all of the time alone,
    the most that it can be, so that what is called gap time is the least that it can be. Under time-slicing its
    kernel intervals hold switched-out time. The other runs printed no kernel durations in shared steps.
    """
    found = {}
    for run in RUNS:
        for step in ("step2", "step3"):
            alone, shared = (_per_token(figures, run, which) for which in ("step1", step))
            found[run, step] = decompose(alone, shared)
    return found


def _per_token(figures: pd.DataFrame, run: str, step: str) -> PerToken:
    total_ns = 1e9 / _middle(figures, run, "gen_tokens_per_s", step)
    mean_us, alone_us = (_middle(figures, run, "gen_kernel_mean_us", which) for which in (step, "step1"))
    alone_ns = 1e9 / _middle(figures, run, "gen_tokens_per_s", "step1")
    busy_ns = None if np.isnan(mean_us) else alone_ns * mean_us / alone_us
    return PerToken(total_ns, busy_ns, None, _middle(figures, run, "sm_clock_mhz", step), clipped=step != "step3")


def _middle(figures: pd.DataFrame, run: str, metric: str, step: str) -> float:
    return float(np.mean(figure(figures, run, metric, step)))


def explanations(figures: pd.DataFrame) -> pd.DataFrame:
    """A row an explanation that the published runs give and that their figures do not bear out: `COLUMNS`."""
    found = losses(figures)
    rows = [*_clock_rows(figures, found), *_capture_rows(figures), *_run3_rows(figures, found)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _clock_rows(figures: pd.DataFrame, found: dict[tuple[str, str], Loss]) -> list[tuple[str, ...]]:
    one, two = found["run1", "step2"], found["run2", "step2"]
    fell = 1 - _middle(figures, "run1", "sm_clock_mhz", "step2") / _middle(figures, "run1", "sm_clock_mhz", "step1")
    most = (one.clock_at_most_ns or 0.0) / float(one.total_ns)
    fell_2 = 1 - _middle(figures, "run2", "sm_clock_mhz", "step2") / _middle(figures, "run2", "sm_clock_mhz", "step1")
    clock, busy = float(two.parts[("clock",)]), float(two.parts[("clock",)] + two.parts[("contention",)])
    total = float(two.total_ns)
    grew = figure(figures, "run2", "gen_kernel_mean_us", "step2")[0]
    grew = grew / figure(figures, "run2", "gen_kernel_mean_us", "step1")[0] - 1
    return [
        ("run1", "finding 2", "Lower clocks destroyed generative throughput.",
         f"Under MPS the clock fell by {fell:.0%} (middle of the ranges). If all of a token scaled with it, "
         f"that is {most:.0%} of the time lost per token; no figure of this run names the cause of the rest."),
        ("run2", "finding 3, conclusion", "The throughput drop comes from power-limited clock reduction.",
         f"The clock fell by {fell_2:.0%} and a token took {total / two.alone.total_ns:.0%} longer: clocks explain at "
         f"most {clock / 1e6:.1f} of {total / 1e6:.1f} ms ({clock / total:.0%})."),
        ("run2", "finding 4", "Fewer kernels ran because of lower clocks; single kernels barely slowed.",
         f"Both cannot be: a lower clock shows in the kernels' own durations. These grew by {grew:.0%}, at most "
         f"{busy / 1e6:.1f} ms a token; {1 - busy / total:.0%} of the loss or more is time in which no kernel of gen "
         "ran: waiting for the device or host, which these figures do not tell apart."),
    ]  # fmt: skip


def _capture_rows(figures: pd.DataFrame) -> list[tuple[str, ...]]:
    def ratio(metric: str, step: str) -> float:
        return figure(figures, "run2", metric, step)[0] / figure(figures, "run2", metric, "step1")[0]

    kernels = [ratio("gen_kernels", step) for step in ("step2", "step3")]
    rates = [ratio("gen_tokens_per_s", step) for step in ("step2", "step3")]
    return [
        ("run2", "results table", "The captures stand beside the throughputs as if both showed the same run.",
         f"A token takes the same kernels in every step, yet kernels fell to {kernels[0]:.0%} and {kernels[1]:.0%}, "
         f"tokens/s fell to {rates[0]:.0%} (MPS) and {rates[1]:.0%} (time-sliced), and both shared captures hold the "
         "same number: captures and throughputs come from unlike windows, profiled and not."),
        ("run2", "finding 2", "Kernels overlapped by 96.7 % under time-slicing.",
         "Under time-slicing a kernel's interval holds the time in which its context was switched out: an upper bound, "
         "not concurrency. It needs context-switch rows."),
    ]  # fmt: skip


def _run3_rows(figures: pd.DataFrame, found: dict[tuple[str, str], Loss]) -> list[tuple[str, ...]]:
    loss = float(found["run3", "step2"].total_ns) / 1e6
    kept = [figure(figures, "run3", "gen_tokens_per_s", step)[0] for step in ("step1", "step2", "step3")]
    return [
        ("run3", "conclusion", "The loss comes from SM scheduling contention.",
         f"Clocks stayed at 1980 MHz, so they explain none of it. Of the {loss:.2f} ms that a token took longer under "
         "MPS nothing more can be told: no kernel durations of a shared step were printed, so contention, waiting for "
         "the device and host are one part."),
        ("run3", "finding 2", "MPS preserves 2.3x more gen throughput than time-slicing.",
         f"It preserves {kept[1] / kept[2]:.2f} times as much ({kept[1]} against {kept[2]} tokens/s); 2.3 is the ratio "
         f"of the losses ({(kept[0] - kept[2]) / (kept[0] - kept[1]):.2f})."),
        ("trace", "key insight", "The idle fraction of 90.7 % shows what embed could have filled in run 3.",
         "The trace is of an eager engine under the profiler, run 3 used CUDA graphs and no profiler, and the trace's "
         "token rate was not printed: an idle fraction of one is not that of the other."),
        ("trace", "top kernels", "fused_moe_kernel is the only kernel that saturates the SMs.",
         "The same list gives flash attention a mean of 132 blocks on 132 SMs, and the table lists 11.6 % of all "
         "kernels as filling every SM."),
    ]  # fmt: skip
