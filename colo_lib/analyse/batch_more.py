"""Why not just batch more: gen alone at rising concurrency against the same device shared with embed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pandas as pd

from colo_lib.analyse.estimate import LEAST_STARTS
from colo_lib.analyse.steps_table import number, with_interval
from colo_lib.analyse.sweep import SweepMeasures, ratio_gain

X = "gen_concurrency"
COLUMNS = ["concurrency", "next", "batch_gain", "batch_low", "batch_high", "share_gain", "share_low", "share_high",
           "arrives", "wasteful", "starts"]  # fmt: skip


def against_sharing(measures: SweepMeasures) -> pd.DataFrame:
    """A row a concurrency c that has a next one c': what more requests add, and what embed beside gen adds.

    batch_gain: gen alone at c' / at c - 1. share_gain: aggregate of step 2 at c - 1, both in units of the device's own
    work alone, so that they compare; running in turns adds 0 at its best. `arrives`: batch_gain / (c'/c - 1), the
    share of the added requests' worth that arrives. `wasteful`: sharing adds more, with the two intervals apart, both
    over starts of the engines.
    """
    alone = measures.of("step1", "gen_tokens_per_s").sort_values(X)
    shared = measures.of("step2", "aggregate").set_index(X)
    rows = []
    for here, after in itertools.pairwise(alone.itertuples()):
        c, more = getattr(here, X), getattr(after, X)
        if c not in shared.index:
            continue
        batch, share = ratio_gain(here, after), shared.loc[c]
        low, high = float(share["low"]) - 1, float(share["high"]) - 1
        starts = min(batch.starts, float(share["starts"]))
        rows.append((c, more, batch.mean, batch.low, batch.high, float(share["mean"]) - 1, low, high,
                     batch.mean / (more / c - 1), low > batch.high and starts >= LEAST_STARTS, starts))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def wasteful_from(frame: pd.DataFrame) -> int | None:
    """The least concurrency from which on sharing adds more than more requests do, at every one measured; or None."""
    found: int | None = None
    for row in frame.sort_values("concurrency", ascending=False).itertuples():
        if not row.wasteful:
            break
        found = int(row.concurrency)
    return found


def within_slo(measures: SweepMeasures, slo_gap_ms: float) -> Mapping[str, list[int]]:
    """step -> the concurrencies whose p99 inter-token gap lies within the SLO with its whole interval."""
    found = {}
    for step in ("step1", "step2"):
        gaps = measures.of(step, "gap_p99_ms")
        found[step] = sorted(
            int(value) for value in gaps.loc[(gaps["high"] <= slo_gap_ms) & (gaps["starts"] >= LEAST_STARTS), X]
        )
    return found


def sentence(measures: SweepMeasures, slo_gap_ms: float) -> str:
    """The point from which batching more is wasteful, and how far the inter-token SLO lets it go."""
    frame = against_sharing(measures)
    if frame.empty:
        return "This sweep has no two concurrencies with gen alone and shared: nothing can be said."
    start = wasteful_from(frame)
    if start is None:
        told = "Within this sweep there is no concurrency from which on sharing surely adds more than more requests do."
    else:
        row = frame[frame["concurrency"] == start].iloc[0]
        share = with_interval(row["share_gain"], row["share_low"], row["share_high"], row["starts"])
        batch = with_interval(row["batch_gain"], row["batch_low"], row["batch_high"], row["starts"])
        told = (
            f"From {start} requests in flight on, batching more is wasteful: at {start}, embed beside gen adds {share} "
            f"of the device's work, going to {row['next']:.0f} requests adds {batch}."
        )
    kept, names = within_slo(measures, slo_gap_ms), {"step1": "alone", "step2": "shared"}
    limits = [f"{name} {f'up to {max(kept[step])}' if kept[step] else 'nowhere'}" for step, name in names.items()]
    return f"{told} The p99 inter-token gap is surely within {number(slo_gap_ms)} ms {' and '.join(limits)}."
