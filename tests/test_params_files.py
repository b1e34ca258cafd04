"""Every params file that ships loads, is what papermill would inject, and holds the settings it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from colo_lib.flat_yaml import read_file
from colo_lib.gpus import GPUS
from colo_lib.models.catalog import models_of
from colo_lib.params import PURPOSES, Params, load
from colo_lib.paths import REPOSITORY
from colo_lib.purpose import GROUPS

FILES = sorted((REPOSITORY / "params").glob("*.yaml"))


def test_there_is_a_file_for_the_cpu_and_for_each_card() -> None:
    assert {file.stem.partition("-")[0] for file in FILES} == {"cpu", *GPUS}


def test_each_of_the_three_published_pairs_has_a_file() -> None:
    pairs = {(params.gen_model, params.embed_model) for params in map(load, FILES)}
    assert pairs >= {
        ("qwen2.5-3b-instruct", "e5-large-v2"),
        ("llama-3.1-8b-instruct", "e5-large-v2"),
        ("qwen3-30b-a3b", "qwen3-embedding-8b"),
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_params_file_loads_and_names_its_models(file: Path) -> None:
    params = load(file)
    _gen, embed = models_of(params)
    assert params.run_name == file.stem
    assert params.embed_pooling == embed.pooling
    assert params.embed_sequence_tokens <= embed.config["max_position_embeddings"]
    assert params.device == ("cpu" if file.stem.partition("-")[0] == "cpu" else "cuda")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_papermill_reads_the_same_values(file: Path) -> None:
    # papermill -f reads the file with plain safe YAML; what it would inject must be what we read.
    assert yaml.safe_load(file.read_text()) == read_file(file)
    assert all(isinstance(value, (str, int, float, bool)) for value in read_file(file).values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_params_file_is_divided_as_the_parameters_are(file: Path) -> None:
    headings, group, told = {heading: name for name, heading in GROUPS.items()}, "", {}
    for line in file.read_text().splitlines():
        if line.startswith("#") and (found := re.split(r"[:,]", line.removeprefix("# "))[0]) in headings:
            group = headings[found]
        elif name := re.match(r"(\w+):", line):
            told[name[1]] = group
    assert told == {name: PURPOSES[name].group for name in told}
    assert list(told) == [name for name in PURPOSES if name in told], "in the order of docs/parameters.md"


def test_the_published_settings_of_the_h200_run_are_there() -> None:
    params = load(REPOSITORY / "params" / "h200.yaml")
    assert (params.gen_concurrency, params.gen_output_tokens, params.embed_batch_size) == (1, 512, 8)
    assert (params.gen_quantization, params.gen_gpu_memory_utilization) == ("fp8", 0.45)


def test_the_cpu_file_says_nothing_other_than_the_defaults() -> None:
    # `Run All` with the notebooks' defaults and `colo run params/cpu.yaml` are the same experiment.
    assert load(REPOSITORY / "params" / "cpu.yaml") == Params()


def test_the_serving_file_differs_from_the_cpus_in_how_people_serve() -> None:
    serve = load(REPOSITORY / "params" / "cpu-serve.yaml")
    assert (serve.embed_engine, serve.embed_concurrency, serve.gen_concurrency) == ("vllm", 16, 16)
    assert serve.step_names() == ["step1", "step2", "step3", "step4"]
    assert (serve.gen_model, serve.embed_model) == ("tiny-gen", "tiny-embed")
