"""How embed's vLLM server is started, and where it is refused, without starting one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colo_lib.errors import InputError
from colo_lib.launch.embed_over_http import embed_command, write_tokenizer
from colo_lib.launch.preflight import preflight_embed
from colo_lib.launch.specs import EngineSpec, specs_of
from colo_lib.launch.vllm_server import server_environment
from colo_lib.params import check
from colo_lib.placement import placement_of

CUDA = {"device": "cuda", "devices": "0", "embed_engine": "vllm", "embed_batch_size": 4, "embed_sequence_tokens": 512}


def engines(step: str, **changes: Any) -> EngineSpec:
    params = check(CUDA | changes, "test")
    return specs_of(params, placement_of(step, params)).engines


def words_of(spec: EngineSpec) -> list[str]:
    return embed_command(spec.embed, 1234, Path("tokenizer"))


def value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_it_is_a_server_for_vectors_that_caches_nothing() -> None:
    words = words_of(engines("step2", embed_pooling="last"))
    assert (value(words, "--runner"), value(words, "--convert")) == ("pooling", "embed")
    assert json.loads(value(words, "--pooler-config")) == {"pooling_type": "LAST"}
    assert "--no-enable-prefix-caching" in words
    assert value(words, "--max-model-len") == "512"
    assert value(words, "--max-num-seqs") == "64"
    assert value(words, "--host") == "127.0.0.1"


def test_it_takes_the_memory_that_the_budget_counts() -> None:
    decoder = words_of(engines("step2", embed_model="qwen3-embedding-8b"))
    assert int(value(decoder, "--kv-cache-memory-bytes")) == 2 * 8192 * 36 * 8 * 128 * 2 * 2
    bert = words_of(engines("step2", embed_model="e5-large-v2"))
    assert "--kv-cache-memory-bytes" not in bert
    assert float(value(bert, "--gpu-memory-utilization")) < 0.05


def test_mechanism_key_and_device_are_in_its_environment() -> None:
    spec = engines("step2").embed
    shared = {"CUDA_MPS_PIPE_DIRECTORY": "/private/pipe", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    env = server_environment(spec, ("0",), 1, 0.0, "secret", shared)
    assert env["VLLM_API_KEY"] == "secret"
    assert env | shared == env
    assert not [word for word in words_of(engines("step2")) if "secret" in word]


def test_each_of_two_servers_has_its_own_cores() -> None:
    params = check({"embed_engine": "vllm", "devices": "0,1"}, "test")
    spec = specs_of(params, placement_of("configB", params)).engines.embed
    bound = [server_environment(spec, devices, 1, 0.0, "k")["VLLM_CPU_OMP_THREADS_BIND"] for devices in spec.devices]
    assert bound == ["0", "1"]


def test_a_tokenizer_of_a_thousand_words_is_made(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) >= 1000
    assert write_tokenizer(folder) == folder
    assert "--tokenizer" not in words_of(engines("step2", weights="hub", gen_model="qwen2.5-3b-instruct",
                                                 embed_model="e5-large-v2"))  # fmt: skip


def test_partitions_inside_the_loop_are_none_of_a_server() -> None:
    with pytest.raises(InputError, match=r"sm-partition: sm_partition_backend = 'auto'.*mps-static"):
        preflight_embed([engines("step2"), engines("sm-partition")])
    preflight_embed([engines("sm-partition", sm_partition_backend="mps-static")])
    preflight_embed([engines("sm-partition", embed_engine="transformers")])
