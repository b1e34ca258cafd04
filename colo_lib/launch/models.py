"""Names in the parameters to what the engines need: an interpreter each, a model each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.engines_env import resolve_pythons
from colo_lib.model_catalog import Model, models_of
from colo_lib.params import Params


@dataclass(frozen=True)
class EngineModels:
    """Interpreters, and a config folder or hub id for each workload."""

    gen_python: Path
    embed_python: Path
    gen: Model
    embed: Model

    @property
    def gen_vocab_size(self) -> int:
        """Prompts are drawn below this token id."""
        return int(self.gen.config["vocab_size"])

    def facts(self, params: Params) -> dict[str, Any]:
        """The manifest's `models`."""
        dtypes = {"gen": params.gen_quantization or params.gen_dtype, "embed": params.embed_dtype}
        return {
            role: {
                "name": model.name,
                "architecture": model.architecture,
                "parameters": model.parameters,
                "weights": params.weights,
                "dtype": dtypes[role],
            }
            for role, model in (("gen", self.gen), ("embed", self.embed))
        }


def resolve_models(params: Params) -> EngineModels:
    """Raises InputError for an interpreter or a model that is not there, naming it and the remedy."""
    gen, embed = models_of(params)
    for model in (gen, embed):
        model.source(params.weights)
    gen_python, embed_python = resolve_pythons(params)
    return EngineModels(gen_python, embed_python, gen, embed)
