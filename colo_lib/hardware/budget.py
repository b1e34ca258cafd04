"""The memory budget: do both models, the KV cache and the activations fit at once? Told before anything starts.

A device group is what shares one memory: on a CPU all cores that stand in for devices, on GPU hosts each GPU.
Each group is counted in the fullest placement of the wanted steps: both models side by side in steps 1-4, one
each in config A, gen in shards beside a whole embed in config B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colo_lib.errors import InputError
from colo_lib.models.catalog import (
    DECODERS,
    GIB,
    Config,
    Model,
    activation_bytes,
    kv_bytes_per_token,
    models_of,
    weight_bytes,
)
from colo_lib.params import Params, split_list
from colo_lib.records import BUDGET_PARTS, BudgetRow
from colo_lib.steps import SHARDED, STEPS, TWO_DEVICES

# What a process holds beside its model. CPU: measured, proportional set size of an idle API server, engine core and
# worker of vLLM 0.32 with torch 2.13 (0.6-0.7 GiB each), of a transformers process 0.45 GiB. GPU: a CUDA context
# with loaded kernels, 0.4-0.6 GiB each on Hopper.
PROCESS_GIB = 0.7
CONTEXT_GIB = 0.6
MARGIN_GIB = 1.0  # notebook, client, allocator fragmentation
# vLLM's default max_num_batched_tokens of its OpenAI server (EngineArgs, usage context OPENAI_API_SERVER).
BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192}
_REMEDIES = {
    "gen weights": "Choose a smaller gen_model, set gen_quantization: fp8 (GPU), or free memory",
    "gen KV cache": "Lower gen_kv_cache_gib, or gen_gpu_memory_utilization where it is 0, or free memory",
    "gen activations": "Lower gen_max_model_len, or free memory",
    "embed weights": "Choose a smaller embed_model or embed_dtype: bfloat16, or free memory",
    "embed activations": "Lower embed_batch_size or embed_sequence_tokens, or free memory",
}


@dataclass(frozen=True)
class DeviceBudget:
    """One device group: what is free there and what the run puts there, GiB."""

    device: str
    available_gib: float
    parts: Mapping[str, float]

    @property
    def needed_gib(self) -> float:
        """Sum of the parts, GiB."""
        return sum(self.parts.values())

    def record(self) -> BudgetRow:
        """The group as the run's manifest keeps it."""
        parts = {name: round(gib, 3) for name, gib in self.parts.items()}
        return BudgetRow(device=self.device, available_gib=round(self.available_gib, 3), parts=parts)


@dataclass(frozen=True)
class Budget:
    """The budget of a run, and how many tokens of KV cache a device holds."""

    groups: tuple[DeviceBudget, ...]
    kv_tokens: int
    kv_tokens_wanted: int
    gen: str
    embed: str

    def record(self) -> list[BudgetRow]:
        """The budget as the run's manifest keeps it."""
        return [group.record() for group in self.groups]


@dataclass(frozen=True)
class GenDemand:
    """What of gen decides its memory. `kv_cache_gib` 0: what `gpu_memory_utilization` leaves of a GPU."""

    model: Model
    dtype: str
    quantization: str
    max_model_len: int
    max_num_seqs: int
    concurrency: int
    request_tokens: int
    """Of a prompt and its output."""
    kv_cache_gib: float
    gpu_memory_utilization: float

    def working_bytes(self, device: str, shards: int) -> float:
        """Activations of one rank, bytes."""
        tokens = max(BATCHED_TOKENS[device], self.max_model_len)
        return activation_bytes(self.model.config, tokens, self.dtype, self.max_num_seqs, shards)

    def held_bytes(self, shards: int) -> float:
        """Weights of one rank, bytes."""
        return weight_bytes(self.model.config, "gen", self.dtype, self.quantization, shards)


@dataclass(frozen=True)
class EmbedDemand:
    """What of embed decides its memory."""

    model: Model
    dtype: str
    batch_size: int
    sequence_tokens: int
    engine: str = "transformers"
    kv_cache_gib: float = 0.0
    """Of a vLLM server whose model wants one."""

    def parts(self, device: str) -> dict[str, float]:
        """GiB of its weights and activations, a server's KV cache among these; none of a server that runs already."""
        if self.engine == "url":
            return {"embed weights": 0.0, "embed activations": 0.0}
        tokens, config = self.batch_size * self.sequence_tokens, self.model.config
        if self.engine == "vllm":
            # The server makes batches of its own.
            tokens = max(BATCHED_TOKENS[device], self.sequence_tokens)
        return {
            "embed weights": weight_bytes(config, "embed", self.dtype) / GIB,
            "embed activations": activation_bytes(config, tokens, self.dtype) / GIB + self.kv_cache_gib,
        }


@dataclass(frozen=True)
class Demand:
    """What a run asks of memory: its two engines, and the steps that place them on its devices."""

    device: str
    devices: tuple[str, ...]
    steps: tuple[str, ...]
    gen: GenDemand
    embed: EmbedDemand

    def groups(self) -> list[str]:
        """Names of the device groups."""
        return device_groups(self.device, self.devices)

    def ranks_in_group(self) -> int:
        """vLLM's KV cache size is each rank's own; on a CPU sharding puts both ranks into the one memory."""
        return 2 if self.device == "cpu" and self._sharded() else 1

    def fullest(self, group: int, total_gib: float) -> dict[str, float]:
        """GiB of each part of the fullest placement on the `group`-th group, of which `total_gib` is the whole."""
        placements = [self._parts(total_gib, *where) for where in self._placements(group)]
        return max(placements, key=lambda parts: sum(parts.values()))

    def _sharded(self) -> bool:
        return bool(set(self.steps) & set(SHARDED))

    def _placements(self, group: int) -> list[tuple[bool, bool, int]]:
        """(gen here, embed here, shards of gen) of every wanted step on the `group`-th group."""
        if self.device == "cpu":
            return [(True, True, 1)]  # weights split over two ranks lie in the same memory: their sum is the same
        placements = []
        if group == 0 and any(name not in TWO_DEVICES for name in self.steps):
            placements.append((True, True, 1))
        if any(STEPS[name].layout == "one each" for name in self.steps) and group < 2:
            placements.append((group == 0, group == 1, 1))
        if self._sharded() and group < 2:
            placements.append((True, True, 2))
        return placements or [(False, False, 1)]

    def _parts(self, total_gib: float, has_gen: bool, has_embed: bool, shards: int) -> dict[str, float]:
        """GiB of each part of one placement; every name of `BUDGET_PARTS` is there."""
        parts = dict.fromkeys(BUDGET_PARTS, 0.0)
        if has_gen:
            weights, working = self.gen.held_bytes(shards), self.gen.working_bytes(self.device, shards)
            parts["gen weights"], parts["gen activations"] = weights / GIB, working / GIB
            parts["gen KV cache"] = self._kv_gib(total_gib, (weights + working) / GIB)
        if has_embed:
            parts |= self.embed.parts(self.device)
        parts["reserve"] = self._reserve_gib(has_gen, has_embed)
        return parts

    def _kv_gib(self, total_gib: float, held_gib: float) -> float:
        """The KV cache in a group, GiB: what the parameter says, or what vLLM's share of the GPU leaves."""
        if self.gen.kv_cache_gib > 0:
            return self.gen.kv_cache_gib * self.ranks_in_group()
        if self.device == "cpu":
            raise InputError(
                "gen_kv_cache_gib = 0 leaves the size to vLLM, which on a CPU would take most of the memory; give GiB"
            )
        # vLLM: share of the whole GPU, less weights and a profiling pass (gpu_worker.determine_available_memory).
        return max(0.0, self.gen.gpu_memory_utilization * total_gib - held_gib)

    def _reserve_gib(self, has_gen: bool, has_embed: bool) -> float:
        if self.device == "cpu":
            embed = 3 if self.embed.engine == "vllm" else 1
            return PROCESS_GIB * (2 + self.ranks_in_group() + embed) + MARGIN_GIB  # API server, core, workers, embed
        return CONTEXT_GIB * (has_gen + has_embed) + (MARGIN_GIB if has_gen or has_embed else 0.0)


def demand_of(params: Params) -> Demand:
    """What a run with these parameters asks of memory.

    Raises InputError for an unknown model, lengths that no memory would make possible, and steps of two devices on one.
    """
    gen_model, embed_model = models_of(params)
    gen = GenDemand(
        model=gen_model,
        dtype=params.gen_dtype,
        quantization=params.gen_quantization,
        max_model_len=params.gen_max_model_len,
        max_num_seqs=params.gen_max_num_seqs or params.gen_concurrency,
        concurrency=params.gen_concurrency,
        request_tokens=params.gen_prompt_tokens + params.gen_output_tokens,
        kv_cache_gib=params.gen_kv_cache_gib,
        gpu_memory_utilization=params.gen_gpu_memory_utilization,
    )
    embed = EmbedDemand(
        embed_model, params.embed_dtype, params.embed_batch_size, params.embed_sequence_tokens, params.embed_engine,
        embed_kv_cache_gib(embed_model.config, params) if params.embed_engine == "vllm" else 0.0,
    )  # fmt: skip
    _check_lengths(gen, embed)
    _check_rates(params)
    devices, steps = tuple(split_list(params.devices)), tuple(split_list(params.steps))
    _check_two_devices(devices, steps)
    return Demand(params.device, devices, steps, gen, embed)


def embed_kv_cache_gib(config: Config, params: Params) -> float:
    """The KV cache that embed's vLLM server is given, GiB: of a decoder, two engine steps' tokens; else none.

    A sequence is embedded in one step, and gives its room back; the next step is scheduled while one runs.
    """
    if config.get("model_type") not in DECODERS:
        return 0.0
    tokens = 2 * max(BATCHED_TOKENS[params.device], params.embed_sequence_tokens)
    wanted_gib = tokens * kv_bytes_per_token(config, params.embed_dtype) / GIB
    return wanted_gib if params.device == "cuda" else float(math.ceil(wanted_gib))  # vLLM on a CPU takes whole GiB


def _check_lengths(gen: GenDemand, embed: EmbedDemand) -> None:
    """Raises InputError where prompt, output or sequence is longer than a model or the server takes."""
    if gen.request_tokens > gen.max_model_len:
        raise InputError(
            f"gen_prompt_tokens + gen_output_tokens = {gen.request_tokens} is more than "
            f"gen_max_model_len = {gen.max_model_len}; raise that or shorten"
        )
    for name, value, model in (
        ("gen_max_model_len", gen.max_model_len, gen.model),
        ("embed_sequence_tokens", embed.sequence_tokens, embed.model),
    ):
        longest = model.config.get("max_position_embeddings", value)
        if value > longest:
            raise InputError(f"{name} = {value} is more than {model.name} can take, {longest} positions; lower it")


def _check_rates(params: Params) -> None:
    """Raises InputError for requests that are due at no rate."""
    for name, unit in (("gen", "requests"), ("embed", "sequences")):
        arrivals = getattr(params, f"{name}_arrivals")
        if arrivals != "closed" and not getattr(params, f"{name}_rate"):
            raise InputError(
                f"{name}_arrivals = {arrivals!r} needs {name}_rate, {unit} a second: give it, or set closed"
            )


def _check_two_devices(devices: Sequence[str], steps: Sequence[str]) -> None:
    needy = sorted(set(steps) & set(TWO_DEVICES))
    if needy and len(set(devices)) < 2:
        raise InputError(
            f"steps = {','.join(steps)!r} need two devices, devices = {','.join(devices)!r} names "
            f"{len(set(devices))}; name two, or leave {', '.join(needy)} out of steps"
        )


def device_groups(device: str, devices: Sequence[str]) -> list[str]:
    """Names of the groups that share one memory: all cores together on a CPU, each GPU by itself."""
    return [",".join(devices)] if device == "cpu" else list(devices)


def plan_budget(
    demand: Demand,
    available_gib: float | Mapping[str, float],
    total_gib: float | Mapping[str, float] | None = None,
) -> Budget:
    """The budget of a run, of whose memory `available_gib` is free, in every device group or in each.

    `total_gib` is a GPU's whole memory, of which gen_gpu_memory_utilization is a share; without it, what is free.
    """
    kv_gib = 0.0
    budgets = []
    for index, group in enumerate(demand.groups()):
        free, total = _of(available_gib, group), _of(available_gib if total_gib is None else total_gib, group)
        parts = demand.fullest(index, total)
        budgets.append(DeviceBudget(group, free, parts))
        kv_gib = max(kv_gib, parts["gen KV cache"] / demand.ranks_in_group())
    gen = demand.gen
    kv_tokens = int(kv_gib * GIB // kv_bytes_per_token(gen.model.config, gen.dtype))
    return Budget(
        tuple(budgets), kv_tokens, gen.concurrency * gen.request_tokens, gen.model.name, demand.embed.model.name
    )


def _of(amount_gib: float | Mapping[str, float], group: str) -> float:
    return float(amount_gib[group] if isinstance(amount_gib, Mapping) else amount_gib)


def refuse_if_too_large(budget: Budget) -> None:
    """Raise InputError with the numbers and the remedy when a group needs more than is free, or gen has no room."""
    for group in budget.groups:
        short_gib = group.needed_gib - group.available_gib
        if short_gib > 0:
            largest = max((name for name in BUDGET_PARTS if name != "reserve"), key=lambda name: group.parts[name])
            raise InputError(
                f"does not fit: {budget.gen} + {budget.embed} need {group.needed_gib:.1f} GiB "
                f"on device {group.device}, {group.available_gib:.1f} GiB are free, {short_gib:.1f} GiB short; "
                f"the largest part is {largest} "
                f"({group.parts[largest]:.1f} GiB). {_REMEDIES[largest]}\n{format_budget(budget)}"
            )
    if budget.kv_tokens < budget.kv_tokens_wanted:
        raise InputError(
            f"the KV cache holds {budget.kv_tokens} tokens, gen_concurrency x (prompt + output) needs "
            f"{budget.kv_tokens_wanted}: requests would be preempted. Raise gen_kv_cache_gib (or "
            f"gen_gpu_memory_utilization where it is 0), or lower gen_concurrency\n{format_budget(budget)}"
        )


def format_budget(budget: Budget) -> str:
    """The budget as a table: a row a part, a column a device group, GiB."""
    columns = [f"device {group.device}" for group in budget.groups]
    rows = [(name, [f"{group.parts[name]:.2f}" for group in budget.groups]) for name in BUDGET_PARTS]
    rows.append(("needed", [f"{group.needed_gib:.2f}" for group in budget.groups]))
    rows.append(("free now", [f"{group.available_gib:.2f}" for group in budget.groups]))
    width = max(12, *(len(column) for column in columns))
    lines = [f"{'GiB':<18}" + "".join(f"{column:>{width + 2}}" for column in columns)]
    lines += [f"{name:<18}" + "".join(f"{value:>{width + 2}}" for value in values) for name, values in rows]
    lines.append(f"KV cache: {budget.kv_tokens} tokens; {budget.kv_tokens_wanted} wanted at once")
    return "\n".join(lines)
