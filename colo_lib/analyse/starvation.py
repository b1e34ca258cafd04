"""Starvation: the longest time without progress inside a window, and the share of work within its bounds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analyse.latency import NS_PER_MS
from colo_lib.analyse.throughput import inside


def longest_silence_ms(events_ns: pd.Series, start_ns: int, end_ns: int) -> float:
    """Longest time without an event in [start_ns, end_ns), ms; the window's own edges count as events.

    A window without any event is one silence as long as itself.
    """
    events = np.sort(events_ns[inside(events_ns, start_ns, end_ns)].to_numpy(dtype="int64"))
    edges = np.concatenate([[start_ns], events, [end_ns]])
    return float(np.diff(edges).max()) / NS_PER_MS


def requests_within(
    requests: pd.DataFrame, gen: pd.DataFrame, start_ns: int, end_ns: int, ttft_ms: float, stall_ms: float
) -> tuple[int, int]:
    """(requests within both bounds, requests alive in the window).

    A request is within when its first token came within `ttft_ms` and no later one took longer than `stall_ms`.
    One that failed is not within; for one still going at the window's end the wait so far counts. Waits that were
    over before the window began belong to the warm-up.
    """
    alive = requests[(requests["submitted_ns"] < end_ns) & (requests["done_ns"].fillna(end_ns) >= start_ns)]
    tokens = gen[gen["arrival_ns"] < end_ns].sort_values(["request_id", "arrival_ns"])
    last_ns = tokens.groupby("request_id")["arrival_ns"].max()
    gaps_ns = tokens.groupby("request_id")["arrival_ns"].diff()[tokens["arrival_ns"] >= start_ns]
    gap_ns = gaps_ns.groupby(tokens["request_id"]).max()
    first_ns = alive["first_token_ns"].astype("Int64")
    first_ns = first_ns.where(first_ns < end_ns).fillna(end_ns).astype("int64")
    waited = (first_ns - alive["submitted_ns"]).clip(lower=0).where(first_ns >= start_ns, 0)
    going = ~(alive["done_ns"].astype("Int64") < end_ns).fillna(False).astype(bool)
    ids = alive["request_id"]
    open_ns = (end_ns - ids.map(last_ns)).where(going, 0).fillna(0)
    longest_ns = np.maximum(ids.map(gap_ns).fillna(0), open_ns)
    within = (waited <= ttft_ms * NS_PER_MS) & (longest_ns <= stall_ms * NS_PER_MS) & alive["error"].isna()
    return int(within.sum()), len(alive)


def share_within(values_ms: np.ndarray, bound_ms: float) -> float:
    """Fraction of `values_ms` at or under `bound_ms`; null without values."""
    values = np.asarray(values_ms, dtype="float64")
    return float((values <= bound_ms).mean()) if len(values) else float("nan")
