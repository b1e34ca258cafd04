"""Names in the parameters to what the engines need: an interpreter each, a model each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.engines_env import resolve_python
from colo_lib.models import Model, find_model
from colo_lib.params import Params


@dataclass(frozen=True)
class EngineModels:
    """Interpreters, and a config folder or hub id for each workload."""

    gen_python: Path
    embed_python: Path
    gen_model: str
    embed_model: str
    gen_vocab_size: int
    found: dict[str, Model]

    def facts(self, params: Params) -> dict[str, Any]:
        """The manifest's `models`."""
        dtypes = {"gen": params.gen_quantization or params.gen_dtype, "embed": params.embed_dtype}
        return {
            role: {
                "name": model.name,
                "architecture": model.config["architectures"][0],
                "parameters": model.parameters,
                "weights": params.weights,
                "dtype": dtypes[role],
            }
            for role, model in self.found.items()
        }


def resolve_models(params: Params) -> EngineModels:
    """Raises InputError for an interpreter or a model that is not there, naming it and the remedy."""
    gen, embed = find_model(params.gen_model, "gen"), find_model(params.embed_model, "embed")
    gen_python = resolve_python(params.gen_python)
    return EngineModels(
        gen_python=gen_python,
        embed_python=gen_python if params.embed_python == "auto" else resolve_python(params.embed_python),
        gen_model=gen.source(params.weights),
        embed_model=embed.source(params.weights),
        gen_vocab_size=int(gen.config["vocab_size"]),
        found={"gen": gen, "embed": embed},
    )
