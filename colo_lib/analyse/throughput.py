"""Rates inside a window: events in the half-open [start, end) ns / its seconds (design: throughput)."""

from __future__ import annotations

import pandas as pd

NS_PER_S = 1_000_000_000


def inside(times_ns: pd.Series, start_ns: int, end_ns: int) -> pd.Series:
    """A boolean mask of the times in [start_ns, end_ns)."""
    return (times_ns >= start_ns) & (times_ns < end_ns)


def token_rate(gen: pd.DataFrame, start_ns: int, end_ns: int) -> tuple[int, float]:
    """(tokens that arrived in the window, tokens per second); `gen` has the columns of `schema.GEN`."""
    tokens = int(inside(gen["arrival_ns"], start_ns, end_ns).sum())
    return tokens, tokens / _seconds(start_ns, end_ns)


def sequence_rate(embed: pd.DataFrame, start_ns: int, end_ns: int) -> tuple[int, float]:
    """(sequences of batches that ended in the window, sequences per second); columns of `schema.EMBED`."""
    sequences = int(embed.loc[inside(embed["done_ns"], start_ns, end_ns), "sequences"].sum())
    return sequences, sequences / _seconds(start_ns, end_ns)


def _seconds(start_ns: int, end_ns: int) -> float:
    if end_ns <= start_ns:
        raise ValueError(f"an empty window: [{start_ns}, {end_ns})")
    return (end_ns - start_ns) / NS_PER_S
