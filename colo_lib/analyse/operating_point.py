"""Where to run embed beside gen: what every setting of a sweep keeps, which are worth having, which bound fails.

A setting is worth having when no other at its concurrency keeps more of both. The bounds are the verdict's: gen keeps
`min_gen_kept` of its rate, its p99 inter-token gap grows by `max_gap_growth` at most. All settings are judged at once:
the best of many equal ones looks good by luck, so that each has to be surer the more there are (Holm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pandas as pd

from colo_lib.analyse import telemetry
from colo_lib.analyse.estimate import LEAST_STARTS, holm
from colo_lib.analyse.steps_table import with_interval
from colo_lib.analyse.sweep import Cell, SweepMeasures
from colo_lib.params import Params
from colo_lib.schema import BASELINES, CO_LOCATED

# parameter -> how a value of it is told; one that is at its default is not told.
LEVERS: Mapping[str, Callable[[Any], str]] = {
    "mps_gen_thread_percentage": lambda value: f"gen capped at {value} % of the SMs",
    "mps_embed_thread_percentage": lambda value: f"embed capped at {value} % of the SMs",
    "mps_embed_priority": lambda value: f"embed {value}",
    "mps_gen_priority": lambda value: f"gen {value}",
    "sm_partition_embed_sms": lambda value: f"embed held to {value} SMs",
    "embed_micro_batch_size": lambda value: f"passes of {value} sequences",
    "embed_pacing": lambda value: f"paced by {value}",
    "embed_duty": lambda value: f"duty {value:g}",
}
STEPS = tuple(step for step in CO_LOCATED if BASELINES[step] == ("step1", "step4"))
MPS = ("mps", "sm-partition")
TELEMETRY = ("sm_clock_mhz", "power_w", "dram_active", "sm_active")
COLUMNS = [
    "number", "cell", "step", "mechanism", "setting", "concurrency", "gen", "gen_low", "gen_high", "embed", "embed_low",
    "embed_high", "aggregate", "aggregate_low", "aggregate_high", "gap_growth", "gap_low", "gap_high",
    "idle_neighbour", "idle_low", "idle_high", "starts", "doubt", *TELEMETRY, "worth_having", "meets",
]  # fmt: skip


def settings(
    measures: SweepMeasures, cells: Iterable[Cell], min_gen_kept: float, max_gap_growth: float
) -> pd.DataFrame:
    """A row a cell and shared step with both kept fractions: `COLUMNS`; numbered by concurrency, most of gen first.

    gen, embed: kept fractions with 95 % intervals; gap_growth: p99 inter-token gap in the step / alone - 1, paired by
    block; starts: of the engines, the least behind any of them; doubt: the larger one-sided p-value of the two bounds,
    null under three starts; meets: which settings keep both bounds, all judged at once; idle_*: what gen keeps in
    `mps-alone` (null where it was not measured or the step is not MPS); telemetry: means over the step's windows and
    devices.
    """
    rows = []
    for cell in cells:
        if cell.run is None:
            continue
        mine = measures.values[measures.values["cell"] == cell.name]
        told = {(row.step, row.measure): row for row in mine.itertuples()}
        seen = telemetry.summary(telemetry.series(cell.run.trials, cell.run.frame))
        shared = [step for step in STEPS if {(step, "gen_kept"), (step, "embed_kept")} <= set(told)]
        rows += [_setting(cell, step, told, seen, (min_gen_kept, max_gap_growth)) for step in shared]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame = frame.sort_values(["concurrency", "gen"], ascending=[True, False], ignore_index=True)
    frame["number"] = range(1, len(frame) + 1)
    frame["worth_having"] = [_undominated(row, frame) for row in frame.itertuples()]
    frame["meets"] = holm(list(frame["doubt"].astype("float64")))
    return frame


def _setting(
    cell: Cell, step: str, told: Mapping[tuple[str, str], Any], seen: pd.DataFrame, bounds: tuple[float, float]
) -> dict[str, Any]:
    params, mechanism = cell.run.params, told[step, "gen_kept"].mechanism
    row: dict[str, Any] = {
        "cell": cell.name, "step": step, "mechanism": mechanism, "setting": words(params, step),
        "concurrency": params.gen_concurrency, "starts": told[step, "gen_kept"].starts, "doubt": None,
    }  # fmt: skip
    for name, measure in (("gen", "gen_kept"), ("embed", "embed_kept"), ("aggregate", "aggregate")):
        own = told.get((step, measure), SimpleNamespace(mean=None, low=None, high=None, starts=row["starts"]))
        row |= {name: own.mean, f"{name}_low": own.low, f"{name}_high": own.high}
        row["starts"] = min(row["starts"], own.starts)
    ratio = told.get((step, "gap_p99_ratio"))
    if ratio is not None:
        row |= {"gap_growth": ratio.mean - 1, "gap_low": ratio.low - 1, "gap_high": ratio.high - 1}
        gen = told[step, "gen_kept"].estimate
        if gen.across_starts and ratio.estimate.across_starts:
            row["doubt"] = max(gen.doubt(bounds[0], True), ratio.estimate.doubt(1 + bounds[1], False))
    idle = told.get(("mps-alone", "gen_kept"))
    if idle is not None and mechanism in MPS:
        row |= {"idle_neighbour": idle.mean, "idle_low": idle.low, "idle_high": idle.high}
    means = seen[(seen["step"] == step) & (seen["scope"] == "device")].groupby("metric")["mean"].mean()
    return row | {name: means.get(name) for name in TELEMETRY}


def words(params: Params, step: str) -> str:
    """What a setting does about embed: its levers that are not at their defaults, or 'flat out'."""
    left_out = {"embed_pacing"} if params.embed_pacing == "duty" else {"embed_duty"}
    left_out |= set() if step == "sm-partition" else {"sm_partition_embed_sms"}
    left_out |= set() if step in ("step2", "sm-partition") else {name for name in LEVERS if name.startswith("mps_")}
    told = []
    for name, say in LEVERS.items():
        value = getattr(params, name)
        always = name in ("embed_duty", "sm_partition_embed_sms")
        if name not in left_out and (always or value != Params.model_fields[name].default):
            told.append(say(value))
    return ", ".join(told) or "flat out"


def _undominated(row: Any, frame: pd.DataFrame) -> bool:
    same = frame[frame["concurrency"] == row.concurrency]
    better = (same["gen"] >= row.gen) & (same["embed"] >= row.embed)
    return not (better & ((same["gen"] > row.gen) | (same["embed"] > row.embed))).any()


def sentence(found: pd.DataFrame, min_gen_kept: float, max_gap_growth: float) -> str:
    """The best setting with its interval, or how near any comes and what already rules the bound out."""
    if found.empty:
        return "No cell measured both kept fractions: nothing can be said."
    good = found[found["meets"]]
    bounds = f"gen keeps {min_gen_kept:.0%}, its p99 gap grows by {max_gap_growth:.0%} at most"
    most = found.loc[found["aggregate"].idxmax()]
    work = f" The most work in all, {told(most, 'aggregate')}, comes with {place(most)}."
    if len(good):
        best = good.loc[good["embed"].idxmax()]
        head = f"{len(good)} of {len(found)} settings surely meet the bounds ({bounds}); of these embed keeps most, "
        head += f"{told(best, 'embed')}, with {place(best)}, and gen keeps {told(best, 'gen')}."
        return f"{head} It was chosen by the trials that it is judged by: a run of its own has to confirm it.{work}"
    near = found.loc[found["gen"].idxmax()]
    head = (
        f"None of {len(found)} settings surely meets the bounds ({bounds}). Gen keeps most, {told(near, 'gen')}, with "
    )
    head += f"{place(near)}; there embed keeps {told(near, 'embed')}."
    return head + _ruled_out(found, min_gen_kept) + work


def _ruled_out(found: pd.DataFrame, min_gen_kept: float) -> str:
    """At which concurrencies MPS with embed idle already takes more than the bound leaves, and how surely."""
    idle = found[found["idle_neighbour"].notna()].drop_duplicates("concurrency")
    out = idle[idle["idle_high"] < min_gen_kept]
    if out.empty:
        return ""
    kept = ", ".join(
        f"{with_interval(row.idle_neighbour, row.idle_low, row.idle_high, row.starts)} at {row.concurrency}"
        for row in out.itertuples()
    )
    told = f" As an MPS client with embed idle it keeps {kept} in flight"
    if (out["starts"] >= LEAST_STARTS).all():
        return f"{told}: there no lever on embed under MPS meets the bound."
    return f"{told}: on these engines no lever on embed under MPS could meet the bound."


def place(row: Any) -> str:
    """A setting in words, its mechanism and concurrency included."""
    many = "1 request" if row["concurrency"] == 1 else f"{row['concurrency']} requests"
    return f"embed {row['setting']} ({row['mechanism']}, {many} in flight)".replace("embed embed", "embed")


def told(row: Any, name: str) -> str:
    """'0.80 [0.76, 0.84]' of a row of `settings`."""
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], row["starts"])
