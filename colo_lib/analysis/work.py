"""Is a rate backed by work? What a rate demands of the tensor cores against what they did.

Derivation. A token costs a number of floating-point operations that follows from the architecture (`token_flops`). A
rate of tokens is then a rate of operations, F (BF16 or FP16) and F8 (in FP8). Tensor cores that are active in every
clock cycle do P(f) = SMs x operations a clock and SM x f at clock f, P8(f) in FP8 (`gpus`, dense). So the rate demands
that they are active for at least the part

    demanded = F / P(f) + F8 / P8(f)

of the cycles, and GPM's `tensor_active` says for which part they were. Kernels cannot do with less. They often take
more: a product of few rows fills tiles of 8 to 128 rows with nothing, so that a decoder with one request in flight is
active for many times what it demands. Activity under half of the demand means that operations were not done: texts that
repeat and are answered from a cache, prompts whose prefix is in one, a server that answers without computing. Half
leaves room for a clock that moved and for layers that skip padding; recorded runs lie at 1.0 and above.

What it does not see: work that is wasted beside work that is left out, on one device; and rates so small that products
may as well run on the CUDA cores. A product with one vector reads each weight of 2 bytes for 2 operations, so that all
the bandwidth there is gives 0.3 to 0.7 % of what tensor cores can: a demand under `LEAST_DEMANDED` is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from colo_lib.gpus import Gpu
from colo_lib.models.catalog import Config, looks_back_only, token_flops
from colo_lib.params import Params
from colo_lib.steps import names_in

UNBACKED, BACKED = "rate not backed by work", "backed"
TOO_LITTLE, NOT_KNOWN = "too little work to tell", "not known"
LEAST_RATIO = 0.5
LEAST_DEMANDED = 0.01
COLUMNS = ["step", "mechanism", "trial", "device", "gen_tflops", "embed_tflops", "clock_mhz", "demanded", "measured",
           "ratio", "said"]  # fmt: skip
RATE = {"gen": "gen_tokens_per_s", "embed": "embed_sequences_per_s"}


@dataclass(frozen=True)
class Flops:
    """Operations of a piece of work, by the number format whose tensor cores do them."""

    half: float = 0.0
    fp8: float = 0.0

    def times(self, rate: float) -> Flops:
        """Of so many pieces a second."""
        return Flops(self.half * rate, self.fp8 * rate)

    def plus(self, other: Flops) -> Flops:
        """Both together."""
        return Flops(self.half + other.half, self.fp8 + other.fp8)

    @property
    def total(self) -> float:
        """In whatever format."""
        return self.half + self.fp8


def gen_flops(config: Config, prompt_tokens: int, output_tokens: int, fp8: bool = False) -> Flops:
    """What one token of output costs, with its part of the prompt; `fp8`: linear layers are multiplied in FP8.

    The first token of output comes out of the prompt's own pass; each of the others passes the layers once.
    """
    token = token_flops(config, "gen")
    passes = prompt_tokens + output_tokens - 1
    linear = token.linear * passes / output_tokens
    attention = token.context * passes * (passes + 1) / 2 / output_tokens
    return Flops(token.head + attention, linear) if fp8 else Flops(token.head + attention + linear)


def embed_flops(config: Config, tokens: int) -> Flops:
    """What one sequence of `tokens` tokens costs."""
    token = token_flops(config, "embed")
    return Flops(tokens * token.attended(tokens, causal=looks_back_only(config)))


def demanded_activity(work: Flops, gpu: Gpu, clock_mhz: float) -> float:
    """The part of the cycles (0 to 1, or above where it cannot be) for which tensor cores must be active.

    `work`: operations a second on this device. NaN for a card without figures.
    """
    half, fp8 = gpu.tensor_flops(clock_mhz), gpu.tensor_flops(clock_mhz, fp8=True)
    return work.half / half + work.fp8 / fp8 if half > 0 and fp8 > 0 else math.nan


def judged(demanded: float, measured: float) -> str:
    """What activity says of a demand: BACKED, UNBACKED, TOO_LITTLE or NOT_KNOWN."""
    if not (math.isfinite(demanded) and math.isfinite(measured)):
        return NOT_KNOWN
    if demanded < LEAST_DEMANDED:
        return TOO_LITTLE
    return UNBACKED if measured < LEAST_RATIO * demanded else BACKED


@dataclass(frozen=True)
class Cost:
    """What a token of the LLM and a sequence of the embedder cost; None where tensor cores do not do it."""

    gen: Flops | None
    embed: Flops | None


def cost_of(params: Params, configs: Mapping[str, Config], gpu: Gpu | None) -> Cost:
    """By the run's models, lengths and number formats; `configs`: workload -> config.json.

    float32 is multiplied on CUDA cores. FP8 weights on a card without FP8 are multiplied as BF16.
    """
    fp8 = params.gen_quantization == "fp8" and gpu is not None and gpu.native_fp8
    gen = gen_flops(configs["gen"], params.gen_prompt_tokens, params.gen_output_tokens, fp8)
    embed = embed_flops(configs["embed"], params.embed_sequence_tokens)
    return Cost(None if params.gen_dtype == "float32" else gen, None if params.embed_dtype == "float32" else embed)


def work_of_trials(trials: pd.DataFrame, samples: pd.DataFrame, cost: Cost, gpu: Gpu | None) -> pd.DataFrame:
    """A row a trial that counts and a device of its: `COLUMNS`; activities 0 to 1, 10^12 operations a second.

    `trials`: `Measured.counted`; `samples`: `telemetry_series`. A workload on several devices puts an equal part on
    each. Rates that cannot be told from a device's own work (an instance of MIG, an embedder of which no process is
    known) are not known.
    """
    if gpu is None or samples.empty:
        return pd.DataFrame(columns=COLUMNS)
    inside = samples[samples["in_window"] & (samples["scope"] == "device")]
    means = inside.groupby(["step", "trial", "name"])[["tensor_active", "sm_clock_mhz"]].mean()
    rows = []
    for trial in trials.to_dict("records"):
        work = _work_by_device(trial, cost)
        for device, (gen, embed) in work.items():
            activity, clock_mhz = _means_of(means, trial, device)
            both = None if gen is None or embed is None else gen.plus(embed)
            demanded = math.nan if both is None else demanded_activity(both, gpu, clock_mhz)
            ratio = activity / demanded if demanded > 0 else math.nan
            told = [math.nan if one is None else one.total / 1e12 for one in (gen, embed)]
            place = [trial["step"], trial["mechanism"], trial["trial"], device]
            rows.append([*place, *told, clock_mhz, demanded, activity, ratio, judged(demanded, activity)])
    return pd.DataFrame(rows, columns=COLUMNS)


def _work_by_device(trial: Mapping[str, Any], cost: Cost) -> dict[str, tuple[Flops | None, Flops | None]]:
    """Device -> operations a second of the LLM and of the embedder there; None where they cannot be told."""
    shares: dict[str, Flops | None] = {}
    placed: dict[str, list[str]] = {}
    for name, piece in (("gen", cost.gen), ("embed", cost.embed)):
        rate, listed = trial.get(RATE[name]), trial.get(f"{name}_devices")
        placed[name] = [str(device) for device in listed] if isinstance(listed, list | tuple) else []
        rate = rate if isinstance(rate, int | float) and rate > 0 else 0.0  # NaN is no rate either
        unproved = name == "embed" and isinstance(trial.get("embed_unproved"), str)
        if rate and (piece is None or unproved or trial.get("mechanism") == "mig"):
            shares[name] = None
        else:
            shares[name] = piece.times(rate / len(placed[name])) if rate and piece and placed[name] else Flops()
    devices = dict.fromkeys([*placed["gen"], *placed["embed"]])
    return {
        device: (
            shares["gen"] if device in placed["gen"] else Flops(),
            shares["embed"] if device in placed["embed"] else Flops(),
        )
        for device in devices
    }


def _means_of(means: pd.DataFrame, trial: Mapping[str, Any], device: str) -> tuple[float, float]:
    key = (trial["step"], trial["trial"], device)
    if key not in means.index:
        return math.nan, math.nan
    row = means.loc[key]
    return float(row["tensor_active"]), float(row["sm_clock_mhz"])


def by_step(work: pd.DataFrame) -> pd.DataFrame:
    """A row a step and device: trials, judged (how many could be), means, the least ratio, unbacked (how many).

    demanded, measured, gen_tflops, embed_tflops are means over the trials; ratio is the least of those judged.
    """
    rows = []
    for (step, device), group in work.groupby(["step", "device"], sort=False):
        told = group[group["said"].isin([BACKED, UNBACKED])]
        means = [group[name].mean() for name in ("gen_tflops", "embed_tflops", "demanded", "measured")]
        least = told["ratio"].min() if len(told) else math.nan
        said = NOT_KNOWN if (group["said"] == NOT_KNOWN).all() else BACKED if len(told) else TOO_LITTLE
        unbacked = int((group["said"] == UNBACKED).sum())
        mechanism = group["mechanism"].iloc[0]
        rows.append((step, mechanism, device, len(group), len(told), *means, least, unbacked,
                     UNBACKED if unbacked else said))  # fmt: skip
    columns = ["step", "mechanism", "device", "trials", "judged", "gen_tflops", "embed_tflops", "demanded", "measured",
               "ratio", "unbacked", "said"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def unbacked_sentences(work: pd.DataFrame) -> list[str]:
    """A sentence a step with trials whose rate is not backed by work; none where all are."""
    bad = work[work["said"] == UNBACKED]
    names = names_in(work) if len(bad) else {}
    sentences = []
    for step, group in bad.groupby("step", sort=False):
        worst = group.loc[group["ratio"].idxmin()]
        numbers = ", ".join(str(number) for number in _trials(group["trial"]))
        sentences.append(
            f"{names[step]}, trial {numbers}: {UNBACKED}: tensor cores were active for {worst['measured']:.1%} of the "
            f"time, the rate demands {worst['demanded']:.1%}; look for repeated texts and caches"
        )
    return sentences


def _trials(numbers: Iterable[Any]) -> list[int]:
    return sorted({int(number) for number in numbers})


def work_sentence(work: pd.DataFrame) -> str:
    """Whether rates are backed by work, over all trials, in a sentence."""
    if work.empty or (work["said"] == NOT_KNOWN).all():
        return (
            "Whether rates are backed by work is not known: it takes a listed card, its tensor activity (GPM: Hopper "
            "and later) and known models in 8 or 16 bits."
        )
    judged_rows = work[work["said"].isin([BACKED, UNBACKED])]
    little = int((work["said"] == TOO_LITTLE).sum())
    rest = f"; {little} demand under {LEAST_DEMANDED:.0%} of the tensor cores, too little to tell" if little else ""
    if judged_rows.empty:
        return f"No rate demands enough of the tensor cores to tell whether work backs it{rest}."
    bad = int((judged_rows["said"] == UNBACKED).sum())
    counted = f"{len(judged_rows) - bad} of {len(judged_rows)} trials that can be judged did the work of their rates"
    return f"{counted} (tensor activity over what is demanded: least {judged_rows['ratio'].min():.2f}){rest}."
