"""The shipped architectures are the published ones, and the size formulas count what torch counts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.errors import InputError
from colo_lib.gpus import GPUS, find_gpu
from colo_lib.hardware.engine_python import resolve_python
from colo_lib.models.catalog import (
    DTYPE_BYTES,
    FOLDER,
    GIB,
    activation_bytes,
    count_parameters,
    find_model,
    head_dim,
    kv_bytes_per_token,
    models_of,
    names,
    token_flops,
    weight_bytes,
)
from colo_lib.params import Params

ROLES = {name: role for role in ("gen", "embed") for name in names(role)}
PUBLISHED = {
    "qwen2.5-3b-instruct": 3.09e9,
    "llama-3.1-8b-instruct": 8.03e9,
    "qwen3-30b-a3b": 30.5e9,
    "e5-large-v2": 335e6,
    "qwen3-embedding-8b": 7.57e9,
}
COUNT_IN_TORCH = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
out = {}
for folder, role in json.loads(sys.argv[1]).items():
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if role == "gen" else AutoModel).from_config(config)
    model.tie_weights()
    out[folder] = sum(p.numel() for p in model.parameters())
print("\\n" + json.dumps(out))
"""

TOKENS = 64
FLOPS_IN_TORCH = """
import json, sys, torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
out, (folders, tokens) = {}, json.loads(sys.argv[1])
for folder, role in folders.items():
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForCausalLM if role == "gen" else AutoModel
    with torch.device("meta"), torch.no_grad():
        model = kind.from_config(config, attn_implementation="eager").eval()
        with FlopCounterMode(display=False) as counter:
            mask = torch.ones(1, 1, tokens, tokens, dtype=model.dtype)  # whole: meta tensors have no values to look at
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long), attention_mask=mask)
    out[folder] = counter.get_total_flops()
print("\\n" + json.dumps(out))
"""


def in_torch(code: str, argument: object) -> dict[str, int]:
    """What a program told that ran in the engines' interpreter: model folder -> a count."""
    done = subprocess.run(
        [str(resolve_python("auto")), "-c", code, json.dumps(argument)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counted: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counted


def config_of(name: str) -> dict:
    return find_model(name, ROLES[name]).config


def test_every_pair_of_the_experiment_is_there() -> None:
    assert set(PUBLISHED) | {"tiny-gen", "tiny-embed"} == set(ROLES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_the_published_total(name: str) -> None:
    model = find_model(name, ROLES[name])
    assert model.parameters == pytest.approx(PUBLISHED[name], rel=0.005)
    assert json.loads((FOLDER / name / "model.json").read_text())["parameters_published"] == PUBLISHED[name]


def test_a_mixture_of_experts_passes_a_token_through_few() -> None:
    count = count_parameters(config_of("qwen3-30b-a3b"))
    assert count.active == pytest.approx(3.3e9, rel=0.03)  # the model card: 3.3B activated


@pytest.mark.engine
def test_the_formulas_count_what_torch_builds() -> None:
    folders = {str(find_model(name, role).folder): role for name, role in ROLES.items()}
    told = in_torch(COUNT_IN_TORCH, folders)
    assert told == {folder: find_model(Path(folder).name, role).parameters for folder, role in folders.items()}


@pytest.mark.engine
def test_operations_are_those_that_torch_counts() -> None:
    """Every token attends to all in torch's count; the rotation's angles and BERT's pooler are not in ours."""
    folders = {str(find_model(name, role).folder): role for name, role in ROLES.items() if "a3b" not in name}
    told = in_torch(FLOPS_IN_TORCH, [folders, TOKENS])
    for folder, counted in told.items():
        token = token_flops(config_of(Path(folder).name), folders[folder])
        expected = TOKENS * (token.attended(TOKENS, causal=False) + token.head)
        assert counted == pytest.approx(expected, rel=0.002), folder


def test_operations_of_a_token_by_hand() -> None:
    # Llama 3.1 8B: 32 layers of 4096 x (4096 + 2 x 1024) + 4096 x 4096 + 3 x 4096 x 14336 weights, twice.
    token = token_flops(config_of("llama-3.1-8b-instruct"), "gen")
    assert token.linear == 2 * 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert token.head == 2 * 128_256 * 4096
    assert token.context == 4 * 32 * 4096
    assert token.attended(3) == token.linear + 2 * token.context, "the mean of 1, 2 and 3"
    # Qwen3-30B-A3B: 48 layers of 32 heads and 2 x 4 of keys and values of 128, a gate, and 8 experts of 128.
    attention, experts = 2048 * 128 * (32 + 2 * 4) + 32 * 128 * 2048, 8 * 3 * 2048 * 768
    assert token_flops(config_of("qwen3-30b-a3b"), "gen").linear == 2 * 48 * (attention + 2048 * 128 + experts)


def test_dynamic_fp8_weighs_what_the_published_run_saw() -> None:
    # Run 3 of the experiment's brief: Qwen3-30B-A3B in dynamic fp8 takes about 29 GB on the GPU, in GiB as vLLM prints.
    assert weight_bytes(config_of("qwen3-30b-a3b"), "gen", "bfloat16", "fp8") / GIB == pytest.approx(29, abs=0.5)
    assert weight_bytes(config_of("qwen3-embedding-8b"), "embed", "bfloat16") / GIB == pytest.approx(14.4, abs=0.5)


@pytest.mark.parametrize("name", [name for name, role in ROLES.items() if role == "gen"])
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@given(shards=st.sampled_from([1, 2, 4]), tokens=st.integers(1, 10_000))
def test_sizes_behave(name: str, dtype: str, shards: int, tokens: int) -> None:
    config = config_of(name)
    whole, part = (weight_bytes(config, "gen", dtype, "", count) for count in (1, shards))
    assert whole == count_parameters(config).total * DTYPE_BYTES[dtype]
    assert whole <= part * shards  # what is not split stands on every shard
    assert weight_bytes(config, "gen", dtype, "fp8") <= whole
    assert kv_bytes_per_token(config, dtype) <= kv_bytes_per_token(config, dtype, shards) * shards
    once, more = (activation_bytes(config, count, dtype, 1) for count in (tokens, tokens + 1))
    assert 0 < once < more


def test_kv_bytes_by_hand() -> None:
    # Llama 3.1 8B: 2 x 32 layers x 8 heads x 128 wide x 2 bytes.
    assert kv_bytes_per_token(config_of("llama-3.1-8b-instruct"), "bfloat16") == 131_072
    assert kv_bytes_per_token(config_of("qwen2.5-3b-instruct"), "bfloat16", shards=4) == 2 * 36 * 1 * 128 * 2


def test_head_width_is_the_named_one_where_there_is_one() -> None:
    assert head_dim(config_of("qwen3-30b-a3b")) == 128  # and not 2048 / 32
    assert head_dim(config_of("llama-3.1-8b-instruct")) == 128


def test_an_architecture_that_cannot_be_sized_is_wrong_input() -> None:
    with pytest.raises(InputError, match="mamba"):
        count_parameters({"model_type": "mamba"})
    with pytest.raises(InputError, match="hidden_size"):
        count_parameters({"model_type": "llama"})


def test_a_misspelt_model_is_told_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"did you mean 'llama-3\.1-8b-instruct'"):
        find_model("llama-3.1-8b-instuct", "gen")
    with pytest.raises(InputError, match="e5-large-v2, qwen3-embedding-8b, tiny-embed"):
        find_model("zzz", "embed")


def test_a_model_of_the_other_role_is_refused() -> None:
    with pytest.raises(InputError, match="that model is for embed_model"):
        models_of(Params(gen_model="e5-large-v2"))


def test_a_folder_with_a_config_is_a_model_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of("tiny-gen")))
    model = find_model(str(folder), "gen")
    assert (model.name, model.hub_id, model.source("hub")) == ("mine", None, str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a readable JSON"):
        find_model(str(folder), "gen")


def test_weights_decide_what_the_engine_loads() -> None:
    model = find_model("qwen3-30b-a3b", "gen")
    assert model.source("hub") == "Qwen/Qwen3-30B-A3B"
    assert model.source("dummy") == str(FOLDER / "qwen3-30b-a3b")
    with pytest.raises(InputError, match="no published weights"):
        find_model("tiny-gen", "gen").source("hub")


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_card_is_found_by_the_name_that_its_driver_gives(told: str, key: str) -> None:
    assert find_gpu(told) is GPUS[key]
    assert find_gpu("NVIDIA T4") is None
