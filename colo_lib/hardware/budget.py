"""The memory budget: do both models, the KV cache and the activations fit at once? Told before anything starts.

A device group is what shares one memory: on a CPU all cores that stand in for devices, on GPU hosts each GPU.
Each group is counted in the fullest placement of the wanted steps: both models side by side in steps 1-4, one
each in config A, gen in shards beside a whole embed in config B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colo_lib.errors import InputError
from colo_lib.models.architecture import GIB, activation_bytes, kv_bytes_per_token, weight_bytes
from colo_lib.models.catalog import Model, models_of
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


def device_groups(params: Params) -> list[str]:
    """Names of the groups that share one memory: all cores together on a CPU, each GPU by itself."""
    devices = split_list(params.devices)
    return [",".join(devices)] if params.device == "cpu" else devices


def plan_budget(
    params: Params,
    devices: Sequence[str],
    available_gib: float | Mapping[str, float],
    total_gib: float | Mapping[str, float] | None = None,
) -> Budget:
    """The budget of `params` on `devices` (cores, or GPUs), of which `available_gib` is free, a group or each group.

    `total_gib` is a GPU's whole memory, of which gen_gpu_memory_utilization is a share; without it, what is free.
    Raises InputError for an unknown model or lengths that no memory would make possible.
    """
    gen, embed = models_of(params)
    check_lengths(params, gen, embed)
    groups, used = device_groups(params), split_list(params.steps)
    if set(used) & set(TWO_DEVICES):
        _demand_two(params, devices)
    kv_gib = 0.0
    budgets = []
    for index, group in enumerate(groups):
        free, total = _of(available_gib, group), _of(available_gib if total_gib is None else total_gib, group)
        placements = [_parts(params, gen, embed, total, *where) for where in _placements(params, index)]
        fullest = max(placements, key=lambda parts: sum(parts.values()))
        budgets.append(DeviceBudget(group, free, fullest))
        kv_gib = max(kv_gib, fullest["gen KV cache"] / (_ranks_in_group(params)))
    kv_tokens = int(kv_gib * GIB // kv_bytes_per_token(gen.config, params.gen_dtype))
    wanted = params.gen_concurrency * (params.gen_prompt_tokens + params.gen_output_tokens)
    return Budget(tuple(budgets), kv_tokens, wanted, gen.name, embed.name)


def _of(amount_gib: float | Mapping[str, float], group: str) -> float:
    return float(amount_gib[group] if isinstance(amount_gib, Mapping) else amount_gib)


def _demand_two(params: Params, devices: Sequence[str]) -> None:
    if len(set(devices)) < 2:
        raise InputError(
            f"steps = {params.steps!r} need two devices, devices = {params.devices!r} names {len(set(devices))}; "
            f"name two, or leave {', '.join(sorted(set(split_list(params.steps)) & set(TWO_DEVICES)))} out of steps"
        )


def _sharded(params: Params) -> bool:
    return bool(set(split_list(params.steps)) & set(SHARDED))


def _ranks_in_group(params: Params) -> int:
    """vLLM's KV cache size is each rank's own; on a CPU sharding puts both ranks into the one memory."""
    return 2 if params.device == "cpu" and _sharded(params) else 1


def _placements(params: Params, index: int) -> list[tuple[bool, bool, int]]:
    """(gen here, embed here, shards of gen) of every wanted step on the `index`-th group."""
    steps = split_list(params.steps)
    if params.device == "cpu":
        return [(True, True, 1)]  # weights split over two ranks lie in the same memory: their sum is the same
    found = []
    if index == 0 and any(name not in TWO_DEVICES for name in steps):
        found.append((True, True, 1))
    if any(STEPS[name].layout == "one each" for name in steps) and index < 2:
        found.append((index == 0, index == 1, 1))
    if _sharded(params) and index < 2:
        found.append((True, True, 2))
    return found or [(False, False, 1)]


def _parts(
    params: Params, gen: Model, embed: Model, total_gib: float, has_gen: bool, has_embed: bool, shards: int
) -> dict[str, float]:
    """GiB of each part of one placement; every name of `PARTS` is there."""
    parts = dict.fromkeys(BUDGET_PARTS, 0.0)
    if has_gen:
        weights = weight_bytes(gen.config, "gen", params.gen_dtype, params.gen_quantization, shards)
        tokens = max(BATCHED_TOKENS[params.device], params.gen_max_model_len)
        most_requests = params.gen_max_num_seqs or params.gen_concurrency
        working = activation_bytes(gen.config, tokens, params.gen_dtype, most_requests, shards)
        parts["gen weights"], parts["gen activations"] = weights / GIB, working / GIB
        parts["gen KV cache"] = _kv_gib(params, total_gib, (weights + working) / GIB)
    if has_embed:
        tokens = params.embed_batch_size * params.embed_sequence_tokens
        parts["embed weights"] = weight_bytes(embed.config, "embed", params.embed_dtype) / GIB
        parts["embed activations"] = activation_bytes(embed.config, tokens, params.embed_dtype) / GIB
    parts["reserve"] = _reserve_gib(params, has_gen, has_embed)
    return parts


def _kv_gib(params: Params, total_gib: float, held_gib: float) -> float:
    """The KV cache in a group, GiB: what the parameter says, or what vLLM's share of the GPU leaves."""
    if params.gen_kv_cache_gib > 0:
        return params.gen_kv_cache_gib * _ranks_in_group(params)
    if params.device == "cpu":
        raise InputError(
            "gen_kv_cache_gib = 0 leaves the size to vLLM, which on a CPU would take most of the memory; give GiB"
        )
    # vLLM: share of the whole GPU, less weights and a profiling pass (gpu_worker.determine_available_memory).
    return max(0.0, params.gen_gpu_memory_utilization * total_gib - held_gib)


def _reserve_gib(params: Params, has_gen: bool, has_embed: bool) -> float:
    if params.device == "cpu":
        ranks = _ranks_in_group(params)
        return PROCESS_GIB * (2 + ranks + 1) + MARGIN_GIB  # API server, engine core, workers, embed
    return CONTEXT_GIB * (has_gen + has_embed) + (MARGIN_GIB if has_gen or has_embed else 0.0)


def check_lengths(params: Params, gen: Model, embed: Model) -> None:
    """Raise InputError where prompt, output or sequence is longer than a model or the server takes."""
    wanted, limit = params.gen_prompt_tokens + params.gen_output_tokens, params.gen_max_model_len
    if wanted > limit:
        raise InputError(
            f"gen_prompt_tokens + gen_output_tokens = {wanted} is more than gen_max_model_len = {limit}; "
            "raise that or shorten"
        )
    for name, value, model in (
        ("gen_max_model_len", limit, gen),
        ("embed_sequence_tokens", params.embed_sequence_tokens, embed),
    ):
        longest = model.config.get("max_position_embeddings", value)
        if value > longest:
            raise InputError(f"{name} = {value} is more than {model.name} can take, {longest} positions; lower it")


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


_REMEDIES = {
    "gen weights": "Choose a smaller gen_model, set gen_quantization: fp8 (GPU), or free memory",
    "gen KV cache": "Lower gen_kv_cache_gib, or gen_gpu_memory_utilization where it is 0, or free memory",
    "gen activations": "Lower gen_max_model_len, or free memory",
    "embed weights": "Choose a smaller embed_model or embed_dtype: bfloat16, or free memory",
    "embed activations": "Lower embed_batch_size or embed_sequence_tokens, or free memory",
}


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
