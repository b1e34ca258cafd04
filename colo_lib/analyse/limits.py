"""Which bounds a reading notebook judges by: the run's own, with those that the reader changed."""

from __future__ import annotations

from colo_lib.params import Params

PREFIXES = ("slo_", "min_", "max_gap", "seed")


def limits(run: Params, notebook: Params) -> Params:
    """`run`'s parameters with the bounds of the verdict and the SLOs that `notebook` sets away from their defaults."""
    changed = {
        name: getattr(notebook, name)
        for name, field in Params.model_fields.items()
        if name.startswith(PREFIXES) and getattr(notebook, name) != field.default
    }
    return run.model_copy(update=changed)
