"""What sharing one GPU could at best give, from each workload alone.

Derivation. Alone and at its full rate the LLM uses the part g_r of a resource r, the embedder e_r (0 to 1: 1 is all of
it). Beside each other they keep the parts x and y of those rates. A piece of work takes from r what it took alone, so
that together they take x g_r + y e_r, and nobody can take more than there is:

    x g_r + y e_r <= 1 for every r,    0 <= x <= 1,    0 <= y <= 1.

The work done in all is x + y GPUs' worth. Its largest value under these lines is a linear program in two unknowns: the
allowed region is a convex polygon, and a linear function is largest at a corner of it. For a given x the most of y is

    y(x) = min(1, min over r of (1 - x g_r) / e_r),

which bends only where two of its lines meet; trying these places, 0 and 1 is exact. Since neither takes more than all
of a resource alone, (1, 0) and (0, 1) are always allowed: the answer lies between 1 and 2.

What it is worth depends on whether 'takes what it took alone' holds, and on whether all of the resource can be had:

- DRAM bandwidth and tensor cores: a **bound**. Bytes and products of a piece of work are the same beside another (a
  shared cache makes the bytes more, not fewer). Tensor activity is a share of clock cycles, so it is taken at the clock
  it ran at over the highest clock: at that clock the same products take fewer of the cycles that there are.
- Power, less the idle power: a bound **at the clocks that each had alone**. At a lower clock a piece of work costs less
  energy, so that a pair held by the power limit can do a little more than this line says.
- SM activity: a **guess**. An SM counts as active with one warp on it; another's blocks may still find room there, so
  that the use is overstated and more than this may be reached.
- The device's time, in time slices alone, where kernels of two processes never run at once: a **guess** as well,
  for the driver counts the short pauses between kernels as busy.

Nothing says that the best can be had: caches, the price of being an MPS client and unfair shares come on top. There is
no interval: uses are means over the windows that count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from colo_lib.analysis.statistics import number
from colo_lib.steps import CO_LOCATED_ON_ONE, names_in

BOUND, AT_THESE_CLOCKS, GUESS, GUESS_IN_TURNS = "bound", "bound at these clocks", "guess", "guess, in time slices"
SURE, AT_BEST = (BOUND,), (BOUND, AT_THESE_CLOCKS)
# metric of telemetry -> (what people call it, what its line is worth)
RESOURCES = {
    "dram_active": ("DRAM bandwidth", BOUND),
    "tensor_active": ("tensor cores", BOUND),
    "power_w": ("power", AT_THESE_CLOCKS),
    "sm_active": ("SMs", GUESS),
    "utilization": ("the device's time", GUESS_IN_TURNS),
}
ALONE = {"gen": "step1", "embed": "step4"}
NOTHING = 1e-12  # a part of a resource so small binds nobody, and its reciprocal is no number to reckon with
COLUMNS = ["step", "mechanism", "sure", "best", "binds", "guess", "guess_binds", "reached", "low", "high", "starts",
           "over", "guess_over", "filled"]  # fmt: skip


@dataclass(frozen=True)
class Use:
    """Parts of a resource (0 to 1) that each workload takes alone at its full rate; `resource`: a key of RESOURCES."""

    resource: str
    gen: float
    embed: float

    @property
    def name(self) -> str:
        """What people call the resource."""
        return RESOURCES[self.resource][0]

    @property
    def kind(self) -> str:
        """What a line drawn from it is worth."""
        return RESOURCES[self.resource][1]


@dataclass(frozen=True)
class Best:
    """The best split: parts that each keeps, and the resources that are used up there (none: both keep all)."""

    gen: float
    embed: float
    binds: tuple[str, ...]

    @property
    def aggregate(self) -> float:
        """GPUs' worth of work, 1 to 2."""
        return self.gen + self.embed


def most_of_embed(uses: Iterable[Use], gen: float) -> float:
    """y(x): the most that the embedder can keep where the LLM keeps `gen` (0 to 1)."""
    return max(0.0, min([1.0, *((1 - gen * use.gen) / use.embed for use in uses if use.embed > NOTHING)]))


def frontier(uses: Sequence[Use]) -> list[tuple[float, float]]:
    """Points (x, y(x)) from x = 0 to x = 1 between which y is straight."""
    lines = [(0.0, 1.0), *((use.gen, use.embed) for use in uses)]  # a x + b y = 1; the first is y = 1
    places = {0.0, 1.0}
    for (a, b), (c, d) in itertools.combinations(lines, 2):
        if (turn := a * d - b * c) != 0:
            places.add((d - b) / turn)
    return [(x, most_of_embed(uses, x)) for x in sorted(places) if 0 <= x <= 1]


def best_split(uses: Sequence[Use]) -> Best | None:
    """The split with the most work in all, of several the one that leaves the LLM most; None where nothing is known."""
    if not uses:
        return None
    x, y = max(frontier(uses), key=lambda point: (round(sum(point), 12), point[0]))
    binds = tuple(use.name for use in uses if math.isclose(x * use.gen + y * use.embed, 1, abs_tol=1e-9))
    return Best(x, y, binds)


def of_kinds(uses: Iterable[Use], kinds: Collection[str]) -> list[Use]:
    """Those whose line is worth one of `kinds`."""
    return [use for use in uses if use.kind in kinds]


def uses_alone(
    counted: pd.DataFrame,
    samples: pd.DataFrame,
    summary: pd.DataFrame,
    power_limit_w: float | None,
    max_clock_mhz: float | None,
) -> list[Use]:
    """What each workload takes alone (steps 1 and 4), in the order of RESOURCES; what was not measured is left out.

    `counted`: trials that count; `samples`: `telemetry_series`; `summary`: `telemetry_summary` (% and W). Idle power is
    the least that any sample of the two steps shows, before their load too. Empty where either ran on several devices.
    """
    devices = {name: _devices(counted, step, name) for name, step in ALONE.items()}
    if samples.empty or any(len(names) != 1 for names in devices.values()):
        return []
    means = {}
    for name, step in ALONE.items():
        mine = summary[(summary["step"] == step) & (summary["scope"] == "device")]
        means[name] = mine[mine["name"].isin(devices[name])].set_index("metric")["mean"].to_dict()
    idle_w = samples.loc[(samples["scope"] == "device") & samples["step"].isin(ALONE.values()), "power_w"].min()
    uses = []
    for resource in RESOURCES:
        gen, embed = (_use(resource, means[name], idle_w, power_limit_w, max_clock_mhz) for name in ALONE)
        if math.isfinite(gen) and math.isfinite(embed):
            uses.append(Use(resource, gen, embed))
    return uses


def _devices(counted: pd.DataFrame, step: str, workload: str) -> set[str]:
    listed = counted.loc[counted["step"] == step, f"{workload}_devices"]
    return {str(device) for devices in listed if isinstance(devices, (list, tuple)) for device in devices}


def _use(
    resource: str, means: dict[str, float], idle_w: float, limit_w: float | None, max_clock_mhz: float | None
) -> float:
    """A workload's use of a resource, 0 to 1, or NaN where it cannot be told."""
    value = means.get(resource, math.nan)
    if resource == "power_w":
        room = (limit_w or math.nan) - idle_w
        used = (value - idle_w) / room if room > 0 else math.nan
    elif resource == "tensor_active":
        used = value / 100 * min(1.0, means.get("sm_clock_mhz", math.nan) / (max_clock_mhz or math.nan))
    else:
        used = value / 100
    return min(1.0, max(0.0, used)) if math.isfinite(used) else math.nan


def against_best(uses: Sequence[Use], kept: pd.DataFrame, mechanisms: dict[str, str]) -> pd.DataFrame:
    """A row a shared step on one GPU: `COLUMNS`. Without such a step one row whose step is empty and nothing reached.

    sure, best, guess: GPUs' worth by DRAM and tensor cores, with power, and with the guesses too (the device's time
    in time slices alone); binds: what is used up. reached, low, high, starts: the aggregate and its interval
    (`statistics.kept_fractions`). over: best / reached - 1, the error of the bound. filled: the part of the fullest
    resource of the bound that the split that was reached takes; near 1 only another split could give more work.
    Empty where nothing is known.
    """
    sure, best = best_split(of_kinds(uses, SURE)), best_split(of_kinds(uses, AT_BEST))
    if best is None:
        return pd.DataFrame(columns=COLUMNS)
    reached = kept[(kept["quantity"] == "aggregate") & kept["step"].isin(CO_LOCATED_ON_ONE)]
    parts = kept.set_index(["step", "quantity"])["mean"].to_dict()
    rows = []
    for row in reached.to_dict("records") or [{"step": ""}]:
        mechanism = mechanisms.get(row["step"], "")
        in_turns = mechanism == "time-sliced"
        guess = best_split([use for use in uses if in_turns or use.kind != GUESS_IN_TURNS])
        mean = row.get("mean", math.nan)
        values = [math.nan if made is None else made.aggregate for made in (sure, best, guess)]
        words = ["" if made is None else ", ".join(made.binds) for made in (best, guess)]
        interval = [row.get(name, math.nan) for name in ("low", "high", "starts")]
        split = [parts.get((row["step"], name), math.nan) for name in ALONE]
        filled = max(split[0] * use.gen + split[1] * use.embed for use in of_kinds(uses, AT_BEST))
        rows.append((row["step"], mechanism, *values[:2], words[0], values[2], words[1], mean, *interval,
                     values[1] / mean - 1, values[2] / mean - 1, filled))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def bound_sentence(uses: Sequence[Use], against: pd.DataFrame) -> str:
    """'At best 1.80 GPUs' worth of work ..., bound by power; reached 1.11 (both under MPS).'"""
    best = best_split(of_kinds(uses, AT_BEST))
    if best is None:
        return (
            "What could at best be had is not known: it takes each workload alone on one GPU with its use of memory "
            "bandwidth, tensor cores or power."
        )
    binds = f"bound by {' and '.join(best.binds)}" if best.binds else "for nothing that was measured is used up"
    kept = f"the LLM keeps {best.gen:.2f}, the embedder {best.embed:.2f}"
    measured = against[against["step"] != ""]
    names = names_in(measured)
    reached = [f"{number(row.reached)} ({names[row.step]})" for row in measured.itertuples()]
    done = f"reached {', '.join(reached)}" if reached else "no shared step has been measured yet"
    return f"At best {best.aggregate:.2f} GPUs' worth of work ({kept}), {binds}; {done}."
