"""The memory budget: it sums, grows with what grows, and refuses with the numbers and the remedy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.errors import InputError
from colo_lib.gpus import GPUS
from colo_lib.hardware import memory
from colo_lib.hardware.budget import demand_of, device_groups, format_budget, plan_budget, refuse_if_too_large
from colo_lib.hardware.nvml import GpuLook, GpuRow
from colo_lib.params import Params, load
from colo_lib.paths import REPOSITORY
from colo_lib.records import BUDGET_PARTS

CUDA = {"device": "cuda", "gen_model": "qwen3-30b-a3b", "embed_model": "qwen3-embedding-8b", "gen_quantization": "fp8"}
ONE_GPU = {**CUDA, "devices": "0", "steps": "step1,step2"}
TWO_GPUS = {**CUDA, "devices": "0,1", "gen_kv_cache_gib": 8.0}


def plan(available_gib: float = 64.0, total_gib: float | None = None, **values: object):
    return plan_budget(demand_of(Params(**values)), available_gib, total_gib)


def test_cores_share_one_memory_and_gpus_do_not() -> None:
    assert device_groups("cpu", ["0", "1"]) == ["0,1"]
    assert device_groups("cuda", ["0", "1"]) == ["0", "1"]


def test_the_published_h200_run_takes_what_it_took() -> None:
    # 67 GB with gen alone and 82 GB with both were seen at gpu_memory_utilization 0.45 of 141 GB.
    [group] = plan(139.0, 140.4, **ONE_GPU, gen_kv_cache_gib=0.0, gen_gpu_memory_utilization=0.45).groups
    gen = sum(group.parts[name] for name in BUDGET_PARTS if name.startswith("gen"))
    assert gen == pytest.approx(0.45 * 140.4, abs=0.1)
    assert group.needed_gib == pytest.approx(82e9 / 2**30, rel=0.1)


def test_sharding_splits_gen_and_leaves_embed_whole() -> None:
    alone = plan(**{**TWO_GPUS, "devices": "0", "steps": "step1"}).groups[0].parts
    sharded = plan(**TWO_GPUS, steps="configB").groups
    assert [group.device for group in sharded] == ["0", "1"]
    for group in sharded:
        assert group.parts["gen weights"] == pytest.approx(alone["gen weights"] / 2, rel=0.01)
        assert group.parts["embed weights"] == alone["embed weights"]


def test_dedicated_devices_hold_one_model_each() -> None:
    gen, embed = plan(**TWO_GPUS, steps="configA").groups
    assert gen.parts["embed weights"] == 0 < gen.parts["gen weights"]
    assert embed.parts["gen weights"] == embed.parts["gen KV cache"] == 0 < embed.parts["embed weights"]


def test_each_rank_on_a_cpu_takes_a_cache_of_its_own() -> None:
    one = plan(steps="step1").groups[0].parts["gen KV cache"]
    assert plan(steps="step1,configB").groups[0].parts["gen KV cache"] == 2 * one == 2.0


def test_two_device_steps_need_two_devices() -> None:
    with pytest.raises(InputError, match="need two devices"):
        plan(devices="0")


@given(
    concurrency=st.integers(1, 4096),
    batch=st.integers(1, 4096),
    kv_gib=st.floats(0.01, 4095),
    free_gib=st.floats(0, 4096),
    steps=st.sampled_from(["step1", "step2,step4", "configA", "configB", "step1,configA,configB"]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_it_sums_and_fits_or_is_refused(
    concurrency: int, batch: int, kv_gib: float, free_gib: float, steps: str, device: str
) -> None:
    values = {"gen_concurrency": concurrency, "embed_batch_size": batch, "gen_kv_cache_gib": kv_gib, "steps": steps}
    budget = plan(free_gib, device=device, **values)
    for group in budget.groups:
        assert set(group.parts) == set(BUDGET_PARTS)
        assert all(gib >= 0 for gib in group.parts.values())
        assert group.needed_gib == pytest.approx(sum(group.parts.values()))
    fits = all(group.needed_gib <= group.available_gib for group in budget.groups)
    if fits and budget.kv_tokens >= budget.kv_tokens_wanted:
        refuse_if_too_large(budget)
    else:
        with pytest.raises(InputError):
            refuse_if_too_large(budget)
    more = plan(free_gib, device=device, **{**values, "gen_kv_cache_gib": kv_gib + 1})
    assert sum(g.needed_gib for g in more.groups) >= sum(g.needed_gib for g in budget.groups)


def test_a_refusal_tells_numbers_part_and_remedy() -> None:
    with pytest.raises(InputError) as caught:
        refuse_if_too_large(plan(20.0, **{**ONE_GPU, "gen_quantization": "", "gen_kv_cache_gib": 4.0}))
    told = str(caught.value)
    for text in (
        "qwen3-30b-a3b",
        "20.0 GiB are free",
        "short",
        "gen weights (56.9 GiB)",
        "gen_quantization: fp8",
        "needed",
    ):
        assert text in told


def test_a_cache_too_small_for_the_requests_in_flight_is_refused() -> None:
    with pytest.raises(InputError, match="gen_kv_cache_gib"):
        refuse_if_too_large(plan(gen_kv_cache_gib=0.01, gen_concurrency=64))


def test_a_share_that_leaves_no_cache_is_refused() -> None:
    # 0.1 of an 80 GB card is less than the weights alone.
    with pytest.raises(InputError, match="gen_gpu_memory_utilization"):
        refuse_if_too_large(plan(79.0, 79.6, **ONE_GPU, gen_kv_cache_gib=0.0, gen_gpu_memory_utilization=0.1))


def test_a_cpu_needs_an_explicit_cache() -> None:
    with pytest.raises(InputError, match="give GiB"):
        plan(gen_kv_cache_gib=0.0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gen_prompt_tokens": 500, "gen_output_tokens": 500}, "gen_max_model_len = 512"),
        ({"gen_max_model_len": 4096}, "more than tiny-gen can take, 2048"),
        ({"embed_sequence_tokens": 513}, "more than tiny-embed can take, 512"),
    ],
)
def test_lengths_that_no_memory_makes_possible_are_wrong_input(values: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan(**values)


def test_the_table_and_the_record_tell_every_part() -> None:
    budget = plan(24.0)
    table = format_budget(budget)
    assert all(name in table for name in (*BUDGET_PARTS, "needed", "free now", "device 0,1"))
    [record] = budget.record()
    assert set(record.plain()) == {"device", "available_gib", "parts"}
    assert set(record.parts) == set(BUDGET_PARTS)


@pytest.mark.parametrize("name", [*GPUS, "rtx4090-llama"])
def test_each_card_holds_the_pair_of_its_params_file(name: str) -> None:
    params, card = load(REPOSITORY / "params" / f"{name}.yaml"), GPUS[name.partition("-")[0]]
    refuse_if_too_large(plan_budget(demand_of(params), card.memory_gib - 1.0, card.memory_gib))


# --- what is free ----------------------------------------------------------------------------------------

MACHINE = SimpleNamespace(available=20 * 2**30, total=24 * 2**30)


@pytest.mark.parametrize(
    ("files", "free_gib", "total_gib"),
    [
        ({}, 20, 24),
        ({"memory.max": "max\n", "memory.current": "1\n"}, 20, 24),
        ({"memory.max": f"{8 * 2**30}", "memory.current": f"{3 * 2**30}"}, 5, 8),
        (
            {"memory.max": f"{8 * 2**30}", "memory.current": f"{3 * 2**30}", "memory.stat": f"inactive_file {2**30}\n"},
            6,
            8,
        ),
        ({"memory.max": f"{2**30}", "memory.current": f"{3 * 2**30}"}, 0, 1),
        ({"memory.max": "nonsense", "memory.current": "1"}, 20, 24),
        ({"memory.max": f"{8 * 2**30}", "memory.current": "0", "memory.stat": "inactive_file\n\n"}, 8, 8),
    ],
)
@pytest.mark.parametrize("own", ["/", "/box", "/box/inner"])
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], own: str, free_gib: float, total_gib: float
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: MACHINE)
    folder = tmp_path / own.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    found = memory.host_memory(tmp_path, "/box/inner")  # a limit on any group above counts too
    assert (found.free_gib, found.total_gib) == (free_gib, total_gib)


def gpu(index: int, free_gib: float | None = 70.0) -> GpuRow:
    return GpuRow(index, uuid=f"GPU-{index}", name="NVIDIA H100", free_gib=free_gib, total_gib=79.6)


def test_gpus_are_found_by_index_or_uuid() -> None:
    found = memory.group_memory("cuda", ["1", "GPU-0"], GpuLook("ok", gpus=[gpu(0), gpu(1)]))
    assert {name: one.free_gib for name, one in found.items()} == {"1": 70.0, "GPU-0": 70.0}


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (GpuLook("missing", "NVML: Driver Not Loaded"), "Driver Not Loaded"),
        (GpuLook("unknown", "no answer"), "no answer"),
        (GpuLook("ok", gpus=[gpu(0)]), "no GPU '1' here; there are 0"),
        (GpuLook("ok", gpus=[gpu(0), gpu(1, None)]), "would not tell its memory"),
    ],
)
def test_a_gpu_that_is_not_there_is_wrong_input(look: GpuLook, told: str) -> None:
    with pytest.raises(InputError, match=told):
        memory.group_memory("cuda", ["0", "1"], look)


def test_an_embedding_server_of_ours_is_counted_and_one_that_runs_is_not() -> None:
    wanted = {**ONE_GPU, "gen_kv_cache_gib": 4.0}
    loop, served, running = (
        plan(**wanted, **changes).groups[0].parts
        for changes in ({}, {"embed_engine": "vllm"}, {"embed_engine": "url", "embed_url": "http://there"})
    )
    assert served["embed weights"] == loop["embed weights"]
    # Two steps of 8192 tokens, 36 layers of 8 key-value heads of 128 numbers in two bytes, keys and values.
    cache_gib = 2 * 8192 * 36 * 8 * 128 * 2 * 2 / 2**30
    bert = plan(**wanted | {"embed_model": "e5-large-v2"}, embed_engine="vllm").groups[0].parts
    assert served["embed activations"] > cache_gib > bert["embed activations"]
    assert running["embed weights"] == running["embed activations"] == 0
    assert running["gen weights"] == loop["gen weights"]
    on_cores = [sum(plan(**changes).groups[0].parts.values()) for changes in ({}, {"embed_engine": "vllm"})]
    assert on_cores[1] > on_cores[0]


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_requests_that_are_due_need_a_rate(arrivals: str) -> None:
    with pytest.raises(InputError, match=r"embed_arrivals = .* needs embed_rate, sequences a second"):
        plan(embed_arrivals=arrivals)
    with pytest.raises(InputError, match=r"gen_arrivals = .* needs gen_rate, requests a second"):
        plan(gen_arrivals=arrivals)
    plan(embed_arrivals=arrivals, embed_rate=2.0)


@pytest.mark.parametrize(("name", "free_gib"), [("h200-serve", 139.0), ("h100-serve", 79.0)])
def test_five_hundred_in_flight_fit_where_the_serving_files_say_so(name: str, free_gib: float) -> None:
    given = load(REPOSITORY / "params" / f"{name}.yaml", gen_concurrency=512)
    refuse_if_too_large(plan_budget(demand_of(given), free_gib))
    more = given.model_copy(update={"gen_concurrency": 1024, "gen_max_num_seqs": 1024})
    with pytest.raises(InputError, match=r"the KV cache holds \d+ tokens, .* needs 524288: requests would be"):
        refuse_if_too_large(plan_budget(demand_of(more), free_gib))
