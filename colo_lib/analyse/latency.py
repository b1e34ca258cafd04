"""Latencies of one trial's window in ms: inter-token gaps, time to first token, embedding batch times."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analyse.throughput import inside

NS_PER_MS = 1_000_000
ENOUGH_FOR_P99 = 1000  # fewer events leave under ten beyond the 99th percentile


def inter_token_gaps_ms(gen: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from each request's token to its next, ms; a gap belongs to the window in which its later token arrived."""
    ordered = gen.sort_values(["request_id", "sequence_number"], kind="stable")
    gaps_ns = ordered.groupby("request_id", sort=False)["arrival_ns"].diff()
    counted = gaps_ns.notna() & inside(ordered["arrival_ns"], start_ns, end_ns)
    return gaps_ns[counted].to_numpy(dtype="float64") / NS_PER_MS


def first_token_ms(requests: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from submission to the first token, ms, of requests without error whose first token came in the window."""
    came = requests[requests["first_token_ns"].notna() & requests["error"].isna()]
    first_ns = came["first_token_ns"].astype("int64")
    waits_ns = (first_ns - came["submitted_ns"])[inside(first_ns, start_ns, end_ns)]
    return waits_ns.to_numpy(dtype="float64") / NS_PER_MS


def batch_ms(embed: pd.DataFrame, start_ns: int, end_ns: int) -> np.ndarray:
    """Time from start to end, ms, of embedding batches that ended in the window."""
    took_ns = (embed["done_ns"] - embed["started_ns"])[inside(embed["done_ns"], start_ns, end_ns)]
    return took_ns.to_numpy(dtype="float64") / NS_PER_MS


def describe_ms(values_ms: np.ndarray) -> dict[str, float]:
    """count, p50_ms, p99_ms and max_ms; null without events. Whoever shows p99_ms shows the count."""
    values = np.asarray(values_ms, dtype="float64")
    if not len(values):
        return {"count": 0, "p50_ms": np.nan, "p99_ms": np.nan, "max_ms": np.nan}
    p50, p99 = np.percentile(values, [50, 99])
    return {"count": len(values), "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(values.max())}


def by_step(samples: pd.DataFrame) -> pd.DataFrame:
    """A row a step and kind: count, p50_ms, p99_ms, max_ms, pooled over trials; `samples` as in `measure.Measured`."""
    rows = [
        {"step": step, "kind": kind, **describe_ms(group["ms"].to_numpy())}
        for (step, kind), group in samples.groupby(["step", "kind"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["step", "kind", "count", "p50_ms", "p99_ms", "max_ms"])
