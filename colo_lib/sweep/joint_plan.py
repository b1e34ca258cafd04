"""What a joint sweep measures, in order: trials that are the same for several cells once, engines changed least.

Cells of a sweep differ in a few parameters, and most trials of most cells do not depend on them: gen alone does not
know how embed would be paced. Such a trial is measured once a block and counts for every cell that would repeat it;
the cells' kept fractions are then taken against one baseline, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from colo_lib.launch.identity import LIMITED, EngineIdentity, identity_of
from colo_lib.launch.pacing import shares
from colo_lib.launch.placement import Placement, place
from colo_lib.params import Params
from colo_lib.run.plan import rounds_of

# Say where results go, what is read, captured, judged or planned: no trial depends on them.
NEVER = (
    "run_name", "runs_dir", "run", "sweep", "sweeps_dir", "block", "blocks", "starts", "steps", "exports",
    "exports_alone", "trace_step", "trace_gen", "trace_embed", "trace_window", "capture_s", "capture_steps",
    "capture_graph_trace", "capacity_devices", "capacity_tokens_per_s", "capacity_sequences_per_s", "min_gen_kept",
    "max_gap_growth", "min_embed_kept", "min_overlap", "min_profiled_ratio", "cell_timeout_s",
)  # fmt: skip
PACING = ("embed_pacing", "embed_duty", "embed_micro_batch_size", "slo_gen_gap_ms")
# What only a workload's own load and limits say; an idle one has them without effect.
GEN_LOAD = ("gen_concurrency", "gen_prompt_tokens", "gen_output_tokens")
EMBED_LOAD = ("embed_batch_size", "embed_sequence_tokens")


@dataclass(frozen=True)
class JointTrial:
    """One trial to measure, with the parameters of the first of the `cells` that it counts for.

    Trials of different rounds never run on the same start of the engines.
    """

    params: Params
    placement: Placement
    block: int
    cells: tuple[str, ...]
    round: int = 1


def plan_joint(cells: Sequence[tuple[str, Params]]) -> list[JointTrial]:
    """Every trial of a joint sweep in the order in which it is measured.

    The blocks are spread over `starts` rounds of the first cell, in each of which every set of engines is started once
    (`run.plan.plan_trials`); sets with the same gen stand together, and every second round runs them backwards. Blocks
    run in alternating order within a set. Raises InputError as `place` does.
    """
    found: dict[tuple[object, ...], JointTrial] = {}
    for name, params in cells:
        for step in params.step_names():
            placement = place(step, params)
            for block in range(1, params.blocks + 1):
                key = (step, block, repr(what_matters(params, placement)))
                before = found.get(key)
                own = (*before.cells, name) if before else (name,)
                found[key] = JointTrial(before.params if before else params, placement, block, own)
    groups = _by_engines(list(found.values()))
    blocks = sorted({trial.block for trial in found.values()})
    return [
        replace(one, round=number)
        for number, own_blocks in enumerate(rounds_of(blocks, cells[0][1].starts if cells else 1), 1)
        for group in (groups if number % 2 else groups[::-1])
        for block in own_blocks
        for one in _in_block(group, block)
    ]


def what_matters(params: Params, placement: Placement) -> dict[str, object]:
    """The parameters that a trial of `placement` depends on, by name: all but those that are known not to matter.

    An idle neighbour's engine does not count: it holds memory and computes nothing.
    """
    left_out = set(NEVER)
    if not shares(placement):
        left_out |= set(PACING)
    if not placement.runs_gen:
        left_out |= set(GEN_LOAD) | _starting_with(params, "mps_gen_")
    if not placement.runs_embed:
        left_out |= set(EMBED_LOAD) | _starting_with(params, "mps_embed_")
    if placement.engine_key()[-1] not in LIMITED:
        left_out |= _starting_with(params, "mps_")
    for mechanism in ("sm-partition", "mig"):
        if placement.mechanism != mechanism:
            left_out |= _starting_with(params, mechanism.replace("-", "_") + "_")
    if placement.mechanism != "cpu-alternating":
        left_out.add("slice_ms")
    return {name: value for name, value in params.model_dump().items() if name not in left_out}


def sharing(plan: Sequence[JointTrial], trial: JointTrial) -> list[Placement]:
    """Placements of all trials that use the same gen, mechanism and devices as `trial`."""
    gen = identity_of(trial.params, trial.placement).gen
    return [one.placement for one in plan if identity_of(one.params, one.placement).gen == gen]


def _starting_with(params: Params, prefix: str) -> set[str]:
    return {name for name in type(params).model_fields if name.startswith(prefix)}


def _by_engines(trials: list[JointTrial]) -> list[list[JointTrial]]:
    """Trials by the engines they need, in the order of appearance, those with the same gen next to each other.

    A trial in which embed is idle can use any embed: it goes with the first set of its gen.
    """
    sets: dict[str, dict[str, list[JointTrial]]] = {}
    first: dict[str, EngineIdentity] = {}
    for trial in trials:
        identity = identity_of(trial.params, trial.placement)
        opening = first.setdefault(identity.gen, identity)
        embed = identity.embed if trial.placement.runs_embed else opening.embed
        sets.setdefault(identity.gen, {}).setdefault(embed, []).append(trial)
    return [group for by_embed in sets.values() for group in by_embed.values()]


def _in_block(group: list[JointTrial], block: int) -> list[JointTrial]:
    mine = [trial for trial in group if trial.block == block]
    return mine if block % 2 else mine[::-1]
