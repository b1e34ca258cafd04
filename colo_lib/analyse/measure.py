"""Every trial's frames to one row of measures, and to the latency samples behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analyse import latency, starvation, throughput
from colo_lib.params import Params

GetFrame = Callable[[str, int, str], pd.DataFrame | None]
NUMBERS = [
    "gen_tokens",
    "gen_tokens_per_s",
    "embed_sequences",
    "embed_sequences_per_s",
    "gap_count",
    "gap_p50_ms",
    "gap_p99_ms",
    "gap_max_ms",
    "ttft_count",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "ttft_max_ms",
    "batch_count",
    "batch_p50_ms",
    "batch_p99_ms",
    "batch_max_ms",
    "gen_stall_ms",
    "embed_stall_ms",
    "requests",
    "requests_within",
    "requests_failed",
    "batches_within",
]


@dataclass(frozen=True)
class Measured:
    """`trials`: the run's trials with the columns of `NUMBERS` added, null where a trial has none or failed.

    `samples`: step, trial, kind (gap, ttft, batch), ms; a row an event of a trial that counts.
    """

    trials: pd.DataFrame
    samples: pd.DataFrame

    @property
    def counted(self) -> pd.DataFrame:
        """The trials that count: every estimate is made from these alone."""
        return self.trials[self.trials["status"] == "done"]


def measure(trials: pd.DataFrame, get_frame: GetFrame, params: Params) -> Measured:
    """Measure every trial that has a window; `get_frame(step, trial, name)` gives a frame or None."""
    rows, samples = [], []
    for trial in trials.to_dict("records"):
        measured, own = _measure_trial(trial, get_frame, params)
        rows.append(measured)
        if trial["status"] == "done":
            samples += own
    numbers = pd.DataFrame(rows, columns=NUMBERS, index=trials.index).astype("float64")
    empty = pd.DataFrame({"step": [], "trial": [], "kind": [], "ms": np.array([], dtype="float64")})
    return Measured(trials.join(numbers), pd.concat(samples, ignore_index=True) if samples else empty)


def _measure_trial(
    trial: dict[str, Any], get_frame: GetFrame, params: Params
) -> tuple[dict[str, float], list[pd.DataFrame]]:
    start_ns, end_ns = trial["window_start_ns"], trial["window_end_ns"]
    if pd.isna(start_ns) or pd.isna(end_ns) or end_ns <= start_ns or trial["status"] == "failed":
        return {}, []
    window = (int(start_ns), int(end_ns))
    gen, requests, embed = (get_frame(trial["step"], trial["trial"], name) for name in ("gen", "requests", "embed"))
    measured: dict[str, float] = {}
    kinds: dict[str, np.ndarray] = {}
    if gen is not None:
        measured |= _measure_gen(gen, requests, window, params)
        kinds["gap"] = latency.inter_token_gaps_ms(gen, *window)
    if requests is not None:
        kinds["ttft"] = latency.first_token_ms(requests, *window)
    if embed is not None:
        kinds["batch"] = latency.batch_ms(embed, *window)
        sequences, rate = throughput.sequence_rate(embed, *window)
        measured |= {"embed_sequences": sequences, "embed_sequences_per_s": rate}
        measured["embed_stall_ms"] = starvation.longest_silence_ms(embed["done_ns"], *window)
        measured["batches_within"] = starvation.share_within(kinds["batch"], params.slo_embed_batch_ms)
    for kind, values in kinds.items():
        measured |= {f"{kind}_{name}": value for name, value in latency.describe_ms(values).items()}
    place = {"step": trial["step"], "trial": trial["trial"]}
    return measured, [pd.DataFrame({**place, "kind": kind, "ms": values}) for kind, values in kinds.items()]


def _measure_gen(
    gen: pd.DataFrame, requests: pd.DataFrame | None, window: tuple[int, int], params: Params
) -> dict[str, float]:
    tokens, rate = throughput.token_rate(gen, requests, *window)
    measured = {"gen_tokens": tokens, "gen_tokens_per_s": rate}
    measured["gen_stall_ms"] = starvation.longest_silence_ms(gen["arrival_ns"], *window)
    if requests is not None:
        bounds = (params.slo_gen_ttft_ms, params.slo_gen_stall_ms)
        within, alive = starvation.requests_within(requests, gen, *window, *bounds)
        measured |= {"requests": alive, "requests_within": within / alive if alive else np.nan}
        measured["requests_failed"] = int((requests["error"].notna() & (requests["submitted_ns"] < window[1])).sum())
    return measured
