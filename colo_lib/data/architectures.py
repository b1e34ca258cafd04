"""The architectures of a run's two models, where this checkout or this machine has them."""

from __future__ import annotations

from typing import Any

from colo_lib.errors import InputError
from colo_lib.models.catalog import models_of
from colo_lib.params import Params


def configs_of(params: Params) -> dict[str, dict[str, Any]] | None:
    """workload -> its model's config.json; None where one is not known here, as a folder on another machine."""
    try:
        gen, embed = models_of(params)
    except InputError:
        return None
    return {"gen": gen.config, "embed": embed.config}
