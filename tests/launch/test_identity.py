"""Which trials can use the same engines: decided by what the processes are really started with."""

from __future__ import annotations

from typing import Any

import pytest

from colo_lib.launch.specs import EngineSpec, specs_of
from colo_lib.params import PURPOSES, STEPS, Params, check
from colo_lib.placement import Placement, placement_of
from tests.conftest import MODELS

BASE: dict[str, Any] = {
    "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "gen_python": "/bin/true",
    "device": "cuda", "devices": "0,1", "gen_max_num_seqs": 8,
}  # fmt: skip


def identity_of(params: Params, placement: Placement) -> EngineSpec:
    """What the engines of a step are made of."""
    return specs_of(params, placement).engines


def identities(step: str, base: dict[str, Any] = BASE, **change: Any) -> tuple[Any, Any]:
    one, other = check(BASE | base, "test"), check(BASE | base | change, "test")
    return identity_of(one, placement_of(step, one)), identity_of(other, placement_of(step, other))


@pytest.mark.parametrize(
    "change",
    [{"gen_concurrency": 4}, {"gen_output_tokens": 8}, {"embed_pacing": "slo"}, {"embed_duty": 0.1},
     {"embed_micro_batch_size": 2}, {"window_s": 1.0}, {"blocks": 9}, {"capture_s": 1.0}],
)  # fmt: skip
def test_what_only_the_load_decides_keeps_both_engines(change: dict[str, Any]) -> None:
    one, other = identities("step2", **change)
    assert one == other


@pytest.mark.parametrize(
    "change", [{"embed_batch_size": 2}, {"embed_dtype": "float16"}, {"mps_embed_priority": "below-normal"}]
)
def test_what_embed_is_started_with_changes_embed_alone(change: dict[str, Any]) -> None:
    one, other = identities("step2", **change)
    assert one.gen == other.gen
    assert one.embed != other.embed


@pytest.mark.parametrize(
    "change", [{"gen_max_num_seqs": 16}, {"gen_enforce_eager": False}, {"gen_kv_cache_gib": 2.0}, {"seed": 5},
               {"gen_extra_args": "--block-size 32"}, {"devices": "1,0"}],
)  # fmt: skip
def test_what_gen_is_started_with_changes_gen(change: dict[str, Any]) -> None:
    one, other = identities("step2", **change)
    assert one.gen != other.gen


def test_steps_that_share_a_server_share_its_identity() -> None:
    params = Params(**BASE)
    told = {
        step: identity_of(params, placement_of(step, params))
        for step in ("step1", "step3", "step4", "step2", "mps-alone")
    }
    assert told["step1"] == told["step3"] == told["step4"] != told["step2"] == told["mps-alone"]
    both = {
        step: identity_of(params, placement_of(step, params)) for step in ("configB", "configB-one", "tp2-mps-alone")
    }
    assert len(set(both.values())) == 1
    assert identity_of(params, placement_of("tp2-alone", params)) not in both.values()


OTHER: dict[str, Any] = {
    "device": "cpu", "devices": "1,0", "gen_model": str(MODELS / "nano-embed"), "embed_model": str(MODELS / "nano-gen"),
    "weights": "hub", "gen_python": "/bin/false", "embed_python": "/bin/false", "gen_dtype": "float16",
    "gen_quantization": "fp8", "gen_extra_args": "--block-size 32", "embed_pooling": "last", "embed_dtype": "float16",
    "mps_gen_priority": "below-normal", "mps_embed_priority": "below-normal", "mig_gen_uuid": "MIG-1",
    "mig_embed_uuid": "MIG-2", "sm_partition_backend": "libsmctrl", "embed_pacing": "duty", "capture_steps": "step1",
    "capture_graph_trace": "graph", "steps": "step1", "mps_gen_thread_percentage": 50,
    "mps_embed_thread_percentage": 50,
}  # fmt: skip


def other(name: str) -> Any:
    """A right value of a parameter, not the one that it has."""
    value = BASE.get(name, Params.model_fields[name].default)
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return value * 0.5 + 0.25 if isinstance(value, float) else value + 1


VARIED = [name for name in PURPOSES if name in OTHER or Params.model_fields[name].annotation in (bool, int, float)]


# What else has to stand for a parameter to say anything: no room made beforehand; an embedding server; a demand.
FREE: dict[str, dict[str, Any]] = {
    "gen_concurrency": {"gen_max_num_seqs": 0},
    "embed_concurrency": {"embed_engine": "vllm"},
    "embed_enforce_eager": {"embed_engine": "vllm"},
    "gen_rate": {"gen_arrivals": "poisson", "gen_rate": 1.0},
    "embed_rate": {"embed_arrivals": "poisson", "embed_rate": 1.0},
}


@pytest.mark.parametrize("name", VARIED)
def test_a_parameter_changes_engines_if_it_says_that_it_touches_them(name: str) -> None:
    free = FREE.get(name, {})
    changed = {step: identities(step, free, **{name: other(name)}) for step in STEPS}
    assert any(one != two for one, two in changed.values()) == ("engine" in PURPOSES[name].touches)
    for step, (one, two) in changed.items():
        if one != two and not PURPOSES[name].at_work:
            assert PURPOSES[name].under(placement_of(step, Params(**BASE)).mechanism)
