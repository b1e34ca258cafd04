"""The models that ship as config files: what they are, and how a parameter's value finds one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.errors import InputError, suggest
from colo_lib.models.architecture import count_parameters
from colo_lib.params import Params

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """One model: its architecture, and where published weights are."""

    name: str
    folder: Path
    config: dict[str, Any]
    role: str
    hub_id: str | None
    pooling: str | None
    licence: str

    @property
    def architecture(self) -> str:
        """The class that the config names."""
        return str((self.config.get("architectures") or ["?"])[0])

    @property
    def parameters(self) -> int:
        """Parameters as this role loads the model."""
        return count_parameters(self.config, self.role).total

    def source(self, weights: str) -> str:
        """What the engine loads: the folder of the config for dummy weights, the hub's id for published ones."""
        if weights == "hub" and self.hub_id is None and self.folder.parent == FOLDER:
            raise InputError(
                f"model {self.name!r} has no published weights; set weights: dummy, or choose another model"
            )
        return self.hub_id if weights == "hub" and self.hub_id else str(self.folder)


def names(role: str | None = None) -> list[str]:
    """Names of the shipped models, of one role or of both."""
    found = (file.parent for file in sorted(FOLDER.glob("*/config.json")))
    return [folder.name for folder in found if role is None or _read(folder / "model.json")["role"] == role]


def find_model(name: str, role: str) -> Model:
    """The model that a parameter names, for `role` gen or embed: a shipped name, or a folder with a config.json.

    Raises InputError with the nearest right name, or when a shipped model is of the other role.
    """
    shipped = name in names()
    folder = FOLDER / name if shipped else Path(name).expanduser()
    if not shipped and not (folder / "config.json").is_file():
        raise InputError(
            f"{role}_model = {name!r}: no such model; {suggest(name, names(role))} "
            "(or give a folder that holds a config.json)"
        )
    facts = _read(folder / "model.json") if (folder / "model.json").is_file() else {}
    if facts.get("role", role) != role:
        other = ", ".join(names(role))
        raise InputError(f"{role}_model = {name!r}: that model is for {facts['role']}_model; for {role}: {other}")
    return Model(
        name=name if shipped else folder.name,
        folder=folder.absolute(),
        config=_read(folder / "config.json"),
        role=role,
        hub_id=facts.get("hub_id"),
        pooling=facts.get("pooling"),
        licence=facts.get("licence") or "not stated",
    )


def models_of(params: Params) -> tuple[Model, Model]:
    """(gen, embed) of a params file; raises InputError for a name that is not known."""
    return find_model(params.gen_model, "gen"), find_model(params.embed_model, "embed")


def _read(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON file: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: a model's description is a JSON object")
    return loaded
