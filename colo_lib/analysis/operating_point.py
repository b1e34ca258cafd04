"""Where to run embed beside gen: what every setting of a sweep keeps, which are worth having, which bound fails.

A setting is worth having when no other at its concurrency keeps more of both. The bounds are the verdict's: gen keeps
`min_gen_kept` of its rate, its p99 inter-token gap grows by `max_gap_growth` at most. All settings are judged at once:
the best of many equal ones looks good by luck, so that each has to be surer the more there are (Holm).

Why not just batch more: gen alone at rising concurrency against the same device shared with embed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pandas as pd

from colo_lib import steps as steps_of
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.statistics import LEAST_STARTS, holm, number, with_interval
from colo_lib.analysis.sweep import SweepMeasures, ratio_gain
from colo_lib.data.run import Run
from colo_lib.data.sweep import SweepCell
from colo_lib.params import PURPOSES, Params, sm_sizes
from colo_lib.steps import MECHANISMS, mechanism_in_words

PACED: Mapping[str, str] = {"duty": "a share of the time", "slo": "the LLM's inter-token gap"}
CHOSEN_BY: Mapping[str, str] = {
    "fixed": "always", "phase": "not beside prompts", "slo": "on as many SMs as the LLM's gap leaves",
}  # fmt: skip
# parameter -> what a value of it does to the embedder, or to the LLM; one that is at its default is not told.
LEVERS: Mapping[str, Callable[[Any], str]] = {
    "mps_embed_thread_percentage": lambda value: f"capped at {value} % of the SMs",
    "mps_embed_priority": lambda value: f"of {value} priority",
    "sm_partition_embed_sms": lambda value: f"held to {value} SMs",
    "inproc_embed_sms": lambda value: f"on {' or '.join('all' if n == 0 else str(n) for n in sm_sizes(value))} SMs",
    "inproc_policy": lambda value: CHOSEN_BY[value],
    "inproc_gen_priority": lambda value: f"beside an LLM of {value} priority",
    "embed_micro_batch_size": lambda value: f"in passes of {value} sequence{'' if value == 1 else 's'}",
    "embed_pacing": lambda value: f"paced by {PACED[value]}",
    "embed_duty": lambda value: f"working {value:.0%} of the time",
    "mps_gen_thread_percentage": lambda value: f"the LLM capped at {value} % of the SMs",
    "mps_gen_priority": lambda value: f"the LLM of {value} priority",
}

STEPS = steps_of.CO_LOCATED_ON_ONE

TELEMETRY = ("sm_clock_mhz", "power_w", "dram_active", "sm_active")

SETTING_COLUMNS = [
    "number", "cell", "step", "mechanism", "setting", "concurrency", "gen", "gen_low", "gen_high", "embed", "embed_low",
    "embed_high", "aggregate", "aggregate_low", "aggregate_high", "gap_growth", "gap_low", "gap_high",
    "idle_neighbour", "idle_low", "idle_high", "starts", "doubt", *TELEMETRY, "worth_having", "meets",
]  # fmt: skip


def settings(
    measures: SweepMeasures,
    cells: Iterable[SweepCell],
    min_gen_kept: float,
    max_gap_growth: float,
    analysis: Callable[[Run], RunAnalysis] = RunAnalysis,
) -> pd.DataFrame:
    """A row a cell and shared step with both kept fractions: `COLUMNS`; numbered by concurrency, most of gen first.

    gen, embed: kept fractions with 95 % intervals; gap_growth: p99 inter-token gap in the step / alone - 1, paired by
    block; starts: of the engines, the least behind any of them; doubt: the larger one-sided p-value of the two bounds,
    null under three starts; meets: which settings keep both bounds, all judged at once; idle_*: what gen keeps in
    `mps-alone` or `inproc-alone` (null where it was not measured or the step is of neither kind); telemetry: means
    over the step's windows and devices.
    """
    rows = []
    for cell in cells:
        if cell.run is None:
            continue
        mine = measures.values[measures.values["cell"] == cell.name]
        measured = {(row.step, row.measure): row for row in mine.itertuples()}
        seen = analysis(cell.run).telemetry
        shared = [step for step in STEPS if {(step, "gen_kept"), (step, "embed_kept")} <= set(measured)]
        place = (cell.name, cell.run.params)
        rows += [_setting(place, step, measured, seen, (min_gen_kept, max_gap_growth)) for step in shared]
    frame = pd.DataFrame(rows, columns=SETTING_COLUMNS)
    frame = frame.sort_values(["concurrency", "gen"], ascending=[True, False], ignore_index=True)
    frame["number"] = range(1, len(frame) + 1)
    frame["worth_having"] = [_undominated(row, frame) for row in frame.itertuples()]
    frame["meets"] = holm(list(frame["doubt"].astype("float64")))
    return frame


def _setting(
    cell: tuple[str, Params],
    step: str,
    measured: Mapping[tuple[str, str], Any],
    seen: pd.DataFrame,
    bounds: tuple[float, float],
) -> dict[str, Any]:
    (name_of_cell, params), mechanism = cell, measured[step, "gen_kept"].mechanism
    row: dict[str, Any] = {
        "cell": name_of_cell, "step": step, "mechanism": mechanism, "setting": levers_in_words(params, step),
        "concurrency": params.gen_concurrency, "starts": measured[step, "gen_kept"].starts, "doubt": None,
    }  # fmt: skip
    for name, measure in (("gen", "gen_kept"), ("embed", "embed_kept"), ("aggregate", "aggregate")):
        kept = measured.get((step, measure), SimpleNamespace(mean=None, low=None, high=None, starts=row["starts"]))
        row |= {name: kept.mean, f"{name}_low": kept.low, f"{name}_high": kept.high}
        row["starts"] = min(row["starts"], kept.starts)
    ratio = measured.get((step, "gap_p99_ratio"))
    if ratio is not None:
        row |= {"gap_growth": ratio.mean - 1, "gap_low": ratio.low - 1, "gap_high": ratio.high - 1}
        gen = measured[step, "gen_kept"].estimate
        if gen.across_starts and ratio.estimate.across_starts:
            row["doubt"] = max(gen.doubt(bounds[0], True), ratio.estimate.doubt(1 + bounds[1], False))
    kind = MECHANISMS[mechanism]
    idle = measured.get(("mps-alone" if kind.mps else "inproc-alone" if kind.in_gen else "", "gen_kept"))
    if idle is not None:
        row |= {"idle_neighbour": idle.mean, "idle_low": idle.low, "idle_high": idle.high}
    means = seen[(seen["step"] == step) & (seen["scope"] == "device")].groupby("metric")["mean"].mean()
    return row | {name: means.get(name) for name in TELEMETRY}


def levers_in_words(params: Params, step: str) -> str:
    """What a setting makes of the embedder: its levers that are not at their defaults, or 'flat out'."""
    left_out = {"embed_pacing"} if params.embed_pacing == "duty" else {"embed_duty"}
    left_out |= {name for name in LEVERS if not PURPOSES[name].under(steps_of.STEPS[step].mechanism)}
    words = []
    for name, say in LEVERS.items():
        value = getattr(params, name)
        always = name in ("embed_duty", "sm_partition_embed_sms")
        if name not in left_out and (always or value != Params.model_fields[name].default):
            words.append(say(value))
    return ", ".join(words) or "flat out"


def _undominated(row: Any, frame: pd.DataFrame) -> bool:
    same = frame[frame["concurrency"] == row.concurrency]
    better = (same["gen"] >= row.gen) & (same["embed"] >= row.embed)
    return not (better & ((same["gen"] > row.gen) | (same["embed"] > row.embed))).any()


def operating_sentence(settings: pd.DataFrame, min_gen_kept: float, max_gap_growth: float) -> str:
    """The best setting with its interval, or how near any comes and what already rules the bound out."""
    if settings.empty:
        return "No cell measured both kept fractions: nothing can be said."
    good = settings[settings["meets"]]
    bounds = f"the LLM keeps {min_gen_kept:.0%}, its p99 gap grows by {max_gap_growth:.0%} at most"
    most = settings.loc[settings["aggregate"].idxmax()]
    work = f" The most work in all, {kept_in_words(most, 'aggregate')}, comes with {setting_in_words(most)}."
    if len(good):
        best = good.loc[good["embed"].idxmax()]
        head = (
            f"{len(good)} of {len(settings)} settings surely meet the bounds ({bounds}); of these the embedder keeps "
        )
        head += f"most, {kept_in_words(best, 'embed')}, with {setting_in_words(best)}, "
        head += f"and the LLM keeps {kept_in_words(best, 'gen')}."
        return f"{head} It was chosen by the trials that it is judged by: a run of its own has to confirm it.{work}"
    near = settings.loc[settings["gen"].idxmax()]
    head = f"None of {len(settings)} settings surely meets the bounds ({bounds}). The LLM keeps most, "
    head += f"{kept_in_words(near, 'gen')}, with {setting_in_words(near)}; "
    head += f"there the embedder keeps {kept_in_words(near, 'embed')}."
    return head + _ruled_out(settings, min_gen_kept) + work


def _ruled_out(settings: pd.DataFrame, min_gen_kept: float) -> str:
    """At which concurrencies MPS with embed idle already takes more than the bound leaves, and how surely."""
    idle = settings[settings["idle_neighbour"].notna()].drop_duplicates("concurrency")
    out = idle[idle["idle_high"] < min_gen_kept]
    if out.empty:
        return ""
    kept = ", ".join(
        f"{with_interval(row.idle_neighbour, row.idle_low, row.idle_high, row.starts)} at {row.concurrency}"
        for row in out.itertuples()
    )
    sentence = f" As an MPS client with the embedder idle it keeps {kept} in flight"
    if (out["starts"] >= LEAST_STARTS).all():
        return f"{sentence}: there no lever on the embedder under MPS meets the bound."
    return f"{sentence}: on these engines no lever on the embedder under MPS could meet the bound."


def setting_in_words(row: Any) -> str:
    """A setting in words, its mechanism and concurrency included."""
    many = "1 request" if row["concurrency"] == 1 else f"{row['concurrency']} requests"
    return f"the embedder {row['setting']} ({mechanism_in_words(row['mechanism'])}, {many} in flight)"


def kept_in_words(row: Any, name: str) -> str:
    """'0.80 [0.76, 0.84]' of a row of `settings`."""
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], row["starts"])


X = "gen_concurrency"

BATCHING_COLUMNS = ["concurrency", "next", "batch_gain", "batch_low", "batch_high", "share_gain", "share_low",
                    "share_high", "arrives", "wasteful", "starts"]  # fmt: skip


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
    return pd.DataFrame(rows, columns=BATCHING_COLUMNS)


def wasteful_from(frame: pd.DataFrame) -> int | None:
    """The least concurrency from which on sharing adds more than more requests do, at every one measured; or None."""
    least: int | None = None
    for row in frame.sort_values("concurrency", ascending=False).itertuples():
        if not row.wasteful:
            break
        least = int(row.concurrency)
    return least


def within_slo(measures: SweepMeasures, slo_gap_ms: float) -> Mapping[str, list[int]]:
    """step -> the concurrencies whose p99 inter-token gap lies within the SLO with its whole interval."""
    concurrencies = {}
    for step in ("step1", "step2"):
        gaps = measures.of(step, "gap_p99_ms")
        concurrencies[step] = sorted(
            int(value) for value in gaps.loc[(gaps["high"] <= slo_gap_ms) & (gaps["starts"] >= LEAST_STARTS), X]
        )
    return concurrencies


def batching_sentence(measures: SweepMeasures, slo_gap_ms: float) -> str:
    """The point from which batching more is wasteful, and how far the inter-token SLO lets it go."""
    frame = against_sharing(measures)
    if frame.empty:
        return "This sweep has no two concurrencies with the LLM alone and shared: nothing can be said."
    start = wasteful_from(frame)
    if start is None:
        sentence = (
            "Within this sweep there is no concurrency from which on sharing surely adds more than more requests do."
        )
    else:
        row = frame[frame["concurrency"] == start].iloc[0]
        share = with_interval(row["share_gain"], row["share_low"], row["share_high"], row["starts"])
        batch = with_interval(row["batch_gain"], row["batch_low"], row["batch_high"], row["starts"])
        sentence = (
            f"From {start} requests in flight on, batching more is wasteful: at {start}, the embedder beside the LLM "
            f"adds {share} of the device's work, going to {row['next']:.0f} requests adds {batch}."
        )
    kept, names = within_slo(measures, slo_gap_ms), {"step1": "alone", "step2": "shared"}
    limits = [f"{name} {f'up to {max(kept[step])}' if kept[step] else 'nowhere'}" for step, name in names.items()]
    return f"{sentence} The p99 inter-token gap is surely within {number(slo_gap_ms)} ms {' and '.join(limits)}."
