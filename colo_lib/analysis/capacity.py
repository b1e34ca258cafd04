"""Capacity: given N GPUs, wanted rates and bounds, dedicate them, co-locate on each, or shard gen wider?

Every layout is made of units: a GPU for gen alone, one for embed alone, and either GPUs that both share (steps 2, 3,
mig, sm-partition) or pairs over which gen is sharded with embed beside it (config B). How many GPUs a layout needs is
told for the mean rates and for both ends of their intervals, all rates at the same end: a cautious range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from colo_lib.analysis.statistics import LEAST_STARTS, RATES, Estimate, by_block, rate
from colo_lib.analysis.trial_metrics import WATTS
from colo_lib.steps import ALONE, CO_LOCATED, CO_LOCATED_ON_ONE, STEPS, names_in, wanted_in_words, with_id

PREDICTED = "configB"  # which layout of two GPUs is predicted where none was measured

TENSOR_PARALLEL_GAIN = (1.0, 2.0)  # what sharding gen over two GPUs may give, until a two-GPU run says
COLUMNS = ["layout", "title", "shared", "gen_only", "embed_only", "gpus", "gpus_best", "gpus_worst", "power_w",
           "predicted", "breaks"]  # fmt: skip


@dataclass(frozen=True)
class Range:
    """A mean with the ends of its interval, null where there is none, from `starts` starts of the engines."""

    mean: float
    low: float
    high: float
    starts: float = LEAST_STARTS

    def times(self, other: Range) -> Range:
        """Product of two independent ranges that are not negative, by relative half-widths."""
        mean = self.mean * other.mean
        if mean == 0:  # nothing to be relative to: the ends multiply
            return Range(mean, 0.0, self.high * other.high)
        sides = [(self.mean - self.low) / self.mean, (other.mean - other.low) / other.mean]
        tops = [(self.high - self.mean) / self.mean, (other.high - other.mean) / other.mean]
        ends = (mean * max(0.0, 1 - math.hypot(*sides)), mean * (1 + math.hypot(*tops)))
        return Range(mean, *ends, min(self.starts, other.starts))

    def scaled(self, factor: float) -> Range:
        """Every end times `factor`."""
        return Range(self.mean * factor, self.low * factor, self.high * factor, self.starts)


@dataclass(frozen=True)
class Unit:
    """What `gpus` GPUs in one layout give: tokens/s and sequences/s, and the power they draw together (W, or null).

    `step`: a step's id, or the key of a workload alone; `title`: for people. `predicted`: not measured, but made of
    single-GPU runs. `breaks`: the bounds that its trials did not keep.
    """

    step: str
    gpus: int
    gen: Range
    embed: Range
    power_w: float
    predicted: bool = False
    breaks: tuple[str, ...] = ()
    title: str = ""

    def in_words(self) -> str:
        """What people read of it."""
        return self.title or (STEPS[self.step].name if self.step in STEPS else self.step)


def range_of(estimated: Estimate) -> Range:
    """An estimate's mean and interval."""
    return Range(estimated.mean, estimated.low, estimated.high, estimated.starts)


def units(counted: pd.DataFrame, kept: pd.DataFrame, bounds: pd.DataFrame, slo_gap_ms: float) -> list[Unit]:
    """Every unit that a run tells of, embed alone and gen alone first; empty without steps 1 and 4 or config A.

    `counted`: trials that count, with `WATTS` where power was sampled; `kept`: `kept_fractions`; `bounds`:
    `thresholds.against_bounds`. Config B is measured where the run has it; its ratio to config A is taken to the rates
    of one GPU, so that cores that stand in for one device and cores that stand in for two do not mix.
    """
    alone = _alone(counted, bounds, slo_gap_ms)
    if alone is None:
        return []
    gen, embed = alone
    every_unit, names = [gen, embed], names_in(counted)
    for step in CO_LOCATED_ON_ONE:
        rates = {workload: _rate(counted, step, column) for workload, column in RATES.items()}
        if rates["gen"] is not None and rates["embed"] is not None:
            broken = _breaks(counted, bounds, step, slo_gap_ms)
            made = (rates["gen"], rates["embed"], _power(counted, step), False, broken)
            every_unit.append(Unit(step, 1, *made, title=names[step]))
    over_two = [name for name in CO_LOCATED if STEPS[name].needs_two]
    pairs = [_measured_pair(counted, kept, step, gen, embed, bounds, slo_gap_ms) for step in over_two]
    if PREDICTED not in {pair.step for pair in pairs if pair}:
        pairs.append(_predicted_pair(kept, gen, embed))
    return [*every_unit, *(pair for pair in pairs if pair)]


def _alone(counted: pd.DataFrame, bounds: pd.DataFrame, slo_gap_ms: float) -> tuple[Unit, Unit] | None:
    zero = Range(0.0, 0.0, 0.0)
    for gen_step, embed_step in ((ALONE["gen"], ALONE["embed"]), ("configA", "configA")):
        gen, embed = (_rate(counted, step, RATES[name]) for step, name in ((gen_step, "gen"), (embed_step, "embed")))
        if gen is not None and embed is not None:
            # Config A's power is of both GPUs, one workload each: it is not told apart.
            powers = [np.nan if step == "configA" else _power(counted, step) for step in (gen_step, embed_step)]
            late = [_breaks(counted, bounds, step, slo_gap_ms) for step in (gen_step, embed_step)]
            return (
                Unit("gen alone", 1, gen, zero, powers[0], breaks=late[0], title="LLM alone"),
                Unit(
                    "embed alone",
                    1,
                    zero,
                    embed,
                    powers[1],
                    breaks=late[1] if embed_step == ALONE["embed"] else (),
                    title="embedder alone",
                ),
            )
    return None


def _rate(counted: pd.DataFrame, step: str, column: str) -> Range | None:
    estimated = rate(counted, step, column)
    return range_of(estimated) if estimated.blocks else None


def _power(counted: pd.DataFrame, step: str) -> float:
    return float(by_block(counted, step, WATTS).mean()) if WATTS in counted else np.nan


def _breaks(counted: pd.DataFrame, bounds: pd.DataFrame, step: str, slo_gap_ms: float) -> tuple[str, ...]:
    mine = bounds[(bounds["step"] == step) & (bounds["worst"] > bounds["bound"])]
    broken = [f"{row.what} {row.worst:,.0f} ms, bound {row.bound:,.0f}" for row in mine.itertuples()]
    gap_ms = float(by_block(counted, step, "gap_p99_ms").mean())
    late = [f"LLM: p99 inter-token gap {gap_ms:,.0f} ms, bound {slo_gap_ms:,.0f}"] if gap_ms > slo_gap_ms else []
    return (*broken, *late)


def _kept(kept: pd.DataFrame, step: str, quantity: str) -> Range | None:
    mine = kept[(kept["step"] == step) & (kept["quantity"] == quantity)]
    return None if mine.empty else Range(*(float(mine[name].iloc[0]) for name in ("mean", "low", "high", "starts")))


def _measured_pair(
    counted: pd.DataFrame,
    kept: pd.DataFrame,
    step: str,
    gen: Unit,
    embed: Unit,
    bounds: pd.DataFrame,
    slo_gap_ms: float,
) -> Unit | None:
    ratios = [_kept(kept, step, name) for name in ("gen", "embed")]
    if ratios[0] is None or ratios[1] is None:
        return None
    broken = _breaks(counted, bounds, step, slo_gap_ms)
    made = (gen.gen.times(ratios[0]), embed.embed.times(ratios[1]))
    return Unit(step, 2, *made, _power(counted, step), False, broken, names_in(counted)[step])


def _predicted_pair(kept: pd.DataFrame, gen: Unit, embed: Unit) -> Unit | None:
    """Config B out of step 2's kept fractions: gen's with a gain between none and perfect, embed's on both GPUs."""
    ratios = [_kept(kept, "step2", name) for name in ("gen", "embed")]
    if ratios[0] is None or ratios[1] is None:
        return None
    low, high = TENSOR_PARALLEL_GAIN
    shared_gen = gen.gen.times(ratios[0])
    made = Range(shared_gen.mean * (low + high) / 2, shared_gen.low * low, shared_gen.high * high, shared_gen.starts)
    return Unit(PREDICTED, 2, made, embed.embed.times(ratios[1]).scaled(2.0), np.nan, True)


def wanted(measured: Sequence[Unit], gpus: int, tokens_per_s: float, sequences_per_s: float) -> tuple[float, float]:
    """The wanted rates; zero stands for what half (tokens) or a quarter (sequences) of the GPUs give alone."""
    if not measured:
        return tokens_per_s, sequences_per_s
    tokens = tokens_per_s or measured[0].gen.mean * gpus / 2
    return tokens, sequences_per_s or measured[1].embed.mean * gpus / 4


def plan(measured: Sequence[Unit], tokens_per_s: float, sequences_per_s: float) -> pd.DataFrame:
    """A row a layout (`COLUMNS`): GPUs needed at the mean rates, at their upper and at their lower ends.

    'dedicated' has no shared units; every other layout has one at least, the rest dedicated: the fewest GPUs that do.
    `power_w`: of all the GPUs at the mean, each under full load, or null.
    """
    want = (tokens_per_s, sequences_per_s)
    rows = []
    for unit in (None, *measured[2:]) if measured else ():
        counts = {end: _fewest(measured[0], measured[1], unit, want, end) for end in ("mean", "high", "low")}
        shared, gen_only, embed_only, gpus = counts["mean"]
        power = gen_only * measured[0].power_w if gen_only else 0.0
        power += embed_only * measured[1].power_w if embed_only else 0.0
        power += shared * unit.power_w if unit else 0.0
        name = unit.step if unit else "dedicated"
        broken = dict.fromkeys((*measured[0].breaks, *measured[1].breaks, *(unit.breaks if unit else ())))
        title = unit.in_words() if unit else "a GPU for each workload"
        rows.append((name, title, shared, gen_only, embed_only, gpus, counts["high"][3], counts["low"][3], power,
                     bool(unit and unit.predicted), "; ".join(broken)))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _fewest(
    gen: Unit, embed: Unit, unit: Unit | None, want: tuple[float, float], end: str
) -> tuple[int, int, int, float]:
    """(shared units, GPUs for gen, GPUs for embed, GPUs in all) with the fewest GPUs; infinite without an interval."""
    alone = (getattr(gen.gen, end), getattr(embed.embed, end))
    both = (getattr(unit.gen, end), getattr(unit.embed, end)) if unit else (0.0, 0.0)
    if not np.isfinite([*alone, *both]).all() or min(alone) <= 0:
        return 0, 0, 0, np.nan
    most = 0
    if unit:
        most = max(1, *(_ceil(need / give) if give > 0 else 1 for need, give in zip(want, both, strict=True)))
    best: tuple[int, int, int, float] | None = None
    for shared in range(1, most + 1) if unit else (0,):
        rest = [
            _ceil(max(0.0, need - shared * give) / rate) for need, give, rate in zip(want, both, alone, strict=True)
        ]
        total = float(shared * (unit.gpus if unit else 0) + sum(rest))
        if best is None or total < best[3]:
            best = (shared, rest[0], rest[1], total)
    assert best is not None
    return best


def _ceil(value: float) -> int:
    """Upwards, a rounding error aside: 3.0000000001 GPUs are three."""
    return math.ceil(value - 1e-9)


def answer(layouts: pd.DataFrame, gpus: int) -> str:
    """The recommendation in a sentence, with what is not settled and what is a prediction."""
    if layouts.empty:
        return (
            f"Nothing to plan with: it needs {wanted_in_words(*ALONE.values())}, or {with_id('configA')}, in one run."
        )
    kept = layouts[(layouts["breaks"] == "") & layouts["gpus_worst"].notna()]
    if kept.empty:
        return "No layout keeps its bounds with an interval to plan with: more blocks, or other bounds."
    sure = kept[kept["gpus_worst"] <= gpus].sort_values(["gpus_worst", "gpus"], kind="stable")
    if sure.empty:
        likely = kept.sort_values("gpus", kind="stable").iloc[0]
        possible = "may do, not surely" if likely["gpus_best"] <= gpus else "does not do"
        return f"No layout surely does it with {gpus} GPUs. The nearest: {_told(likely)}; {gpus} {possible}."
    best = sure.iloc[0]
    others = kept[(kept["layout"] != best["layout"]) & (kept["gpus_best"] <= best["gpus_worst"])]
    rivals = ", ".join(f"'{row.title}' ({_span(row)})" for row in others.itertuples())
    sentence = f"With {gpus} GPUs: {_told(best)}."
    return sentence + (
        f" Not settled against {rivals}: the ranges meet." if rivals else " No other layout may need as few."
    )


def _told(row: pd.Series) -> str:
    kind = " (a prediction)" if row["predicted"] else ""
    makeup = f"{row['shared']} shared units, {row['gen_only']} GPUs for the LLM, {row['embed_only']} for the embedder"
    return f"'{row['title']}'{kind} needs {_span(row)}: {makeup}"


def _span(row: pd.Series) -> str:
    return f"{row.gpus:.0f} GPUs, {row.gpus_best:.0f} to {row.gpus_worst:.0f}"


def assumptions(measured: Sequence[Unit]) -> list[str]:
    """What the plan takes for granted."""
    sentences = [
        "Every GPU is like the measured one, and a unit gives what it gave in the run, whatever runs on other GPUs.",
        "Load is spread evenly and always there (closed loop): arrivals in bursts need room beyond this.",
        "The models, lengths, concurrency and batch sizes are those of the run; another load is another plan.",
        "Ranges take every rate at the same end of its 95 % interval at once: cautious, wider than 95 %.",
        "A layout may mix shared units with dedicated GPUs; a unit that broke a bound in the run is not recommended.",
        "Power is each GPU's under full load; GPUs that stand idle and the host's own power are left out.",
        "The energy of a shared GPU is split between tokens and sequences as their costs alone stand to each other.",
    ]
    if any(min(unit.gen.starts, unit.embed.starts) < LEAST_STARTS for unit in measured):
        sentences.append(
            "Ranges are within fewer than three starts of the engines: engines started anew may give other rates than "
            "these, which a plan for longer than a day should measure (parameter 'starts')."
        )
    if any(unit.predicted for unit in measured):
        low, high = TENSOR_PARALLEL_GAIN
        sentences.append(
            f"'{STEPS[PREDICTED].name}' is a PREDICTION from '{STEPS['step2'].name}' of one GPU: the LLM sharded over "
            f"two gains between {low:g} and {high:g} times (nothing here measured NVLink), and each GPU gives the "
            f"embedder what that one gave. A run of {wanted_in_words('configA', PREDICTED)} replaces it."
        )
    return sentences


def energy_costs(measured: Sequence[Unit]) -> pd.DataFrame:
    """unit, j_per_token, j_per_sequence: energy of a unit / its work; a shared unit's is split by the costs alone.

    With P the unit's power and a, b the joules of a token and a sequence alone, both cost P / (gen a + embed b) times
    as much as alone. Null where power was not sampled, or nothing was done.
    """
    columns = ["unit", "j_per_token", "j_per_sequence"]
    if not measured:
        return pd.DataFrame(columns=columns)
    a, b = _per(measured[0].power_w, measured[0].gen.mean), _per(measured[1].power_w, measured[1].embed.mean)
    rows: list[tuple[str, float, float]] = [("gen alone", a, np.nan), ("embed alone", np.nan, b)]
    for unit in measured[2:]:
        factor = _per(unit.power_w, unit.gen.mean * a + unit.embed.mean * b)
        rows.append((unit.step, a * factor, b * factor))
    return pd.DataFrame(rows, columns=columns)


def _per(value: float, work: float) -> float:
    return value / work if work else np.nan


def reachable(measured: Sequence[Unit], gpus: int) -> pd.DataFrame:
    """layout, tokens_per_s, sequences_per_s: what `gpus` GPUs can give at the mean rates, the best pairs alone.

    A pair is left out where another of its layout gives as much of both and more of one.
    """
    columns = ["layout", "tokens_per_s", "sequences_per_s"]
    if not measured:
        return pd.DataFrame(columns=columns)
    gen, embed = measured[0].gen.mean, measured[1].embed.mean
    rows = []
    for unit in (None, *measured[2:]):
        most = gpus // unit.gpus if unit else 0
        pairs = set()
        for shared in range(1, most + 1) if unit else (0,):
            rest = gpus - shared * (unit.gpus if unit else 0)
            base = (shared * unit.gen.mean, shared * unit.embed.mean) if unit else (0.0, 0.0)
            pairs |= {(base[0] + (rest - e) * gen, base[1] + e * embed) for e in range(rest + 1)}
        reached = -1.0
        for tokens, sequences in sorted(pairs, reverse=True):
            if sequences > reached:
                rows.append((unit.step if unit else "dedicated", tokens, sequences))
                reached = sequences
    return pd.DataFrame(rows, columns=columns)
