"""What running engines are made of: trials whose engines are made alike can use the same ones.

The parts are what a process is really started with, its command line and environment, so that no list of parameters
has to be kept true. What only the load decides (concurrency, lengths of prompts, pacing) is in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo_lib.launch import embed, gen
from colo_lib.launch.models import resolve_models
from colo_lib.launch.placement import Placement
from colo_lib.params import Params

# Prefixes of the parameters by which a mechanism limits a workload's processes, read when they start.
LIMITED = ("mps", "sm-partition")


@dataclass(frozen=True)
class EngineIdentity:
    """`gen`: the server, its devices and the mechanism below both; `embed`: the embedding processes."""

    gen: str
    embed: str


def identity_of(params: Params, placement: Placement) -> EngineIdentity:
    """The identity of the engines that a trial of `placement` with `params` needs.

    Another `embed` alone can be had beside the same gen. Raises InputError as `resolve_models` does.
    """
    models = resolve_models(params)
    server = gen.command(params, models.gen_python, models.gen.source(params.weights), 0, placement)
    limits = {name: limited(params, placement, name) for name in ("gen", "embed")}
    partition = values(params, "sm_partition_", "mps_") if placement.mechanism == "sm-partition" else {}
    mig = values(params, "mig_") if placement.mechanism == "mig" else {}
    first = (placement.engine_key(), server, gen.environment(params, placement, ""), limits["gen"], partition, mig)
    model = models.embed.source(params.weights)
    jobs = [(embed.job(params, one, model), embed.environment(params, one)) for one in placement.embed_devices]
    return EngineIdentity(repr(first), repr((str(models.embed_python), jobs, limits["embed"])))


def limited(params: Params, placement: Placement, workload: str) -> dict[str, object]:
    """The limits of a workload's processes, by parameter; none where the mechanism has no such limits."""
    mechanism = placement.engine_key()[-1]
    return values(params, f"mps_{workload}_") if mechanism in LIMITED else {}


def values(params: Params, *prefixes: str) -> dict[str, object]:
    """The parameters whose names begin with one of `prefixes`."""
    return {name: value for name, value in params.model_dump().items() if name.startswith(prefixes)}
