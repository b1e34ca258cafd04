"""Rates inside a window: what happened in the half-open [start, end) ns / its seconds (design: throughput)."""

from __future__ import annotations

import pandas as pd

from colo_lib.batches import done_inside, tokens_inside

NS_PER_S = 1_000_000_000


def inside(times_ns: pd.Series, start_ns: int, end_ns: int) -> pd.Series:
    """A boolean mask of the times in [start_ns, end_ns)."""
    return (times_ns >= start_ns) & (times_ns < end_ns)


def token_rate(gen: pd.DataFrame, requests: pd.DataFrame | None, start_ns: int, end_ns: int) -> tuple[int, float]:
    """(tokens that arrived in the window, tokens per second); columns of `schema.GEN` and `schema.REQUESTS`.

    The rate counts a token that the window cuts by the part of its time inside (`batches.tokens_inside`).
    """
    tokens = int(inside(gen["arrival_ns"], start_ns, end_ns).sum())
    known = requests if requests is not None else pd.DataFrame({"request_id": [], "submitted_ns": []})
    submitted = dict(zip(known["request_id"].astype(int), known["submitted_ns"].astype(int), strict=True))
    of, arrival = (gen[name].to_numpy() for name in ("request_id", "arrival_ns"))
    return tokens, tokens_inside(of, arrival, submitted, start_ns, end_ns) / _seconds(start_ns, end_ns)


def sequence_rate(embed: pd.DataFrame, start_ns: int, end_ns: int) -> tuple[int, float]:
    """(sequences of batches that ended in the window, sequences per second); columns of `schema.EMBED`.

    The rate counts a batch that the window cuts by the part of its time inside (`batches.done_inside`).
    """
    sequences = int(embed.loc[inside(embed["done_ns"], start_ns, end_ns), "sequences"].sum())
    started, done, sizes = (embed[name].to_numpy() for name in ("started_ns", "done_ns", "sequences"))
    return sequences, done_inside(started, done, sizes, start_ns, end_ns) / _seconds(start_ns, end_ns)


def _seconds(start_ns: int, end_ns: int) -> float:
    if end_ns <= start_ns:
        raise ValueError(f"an empty window: [{start_ns}, {end_ns})")
    return (end_ns - start_ns) / NS_PER_S
