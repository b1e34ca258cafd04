"""What a run is judged by: the verdict's bounds and the SLOs; the run's own, with those that a reader changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from colo_lib.params import Params


@dataclass(frozen=True)
class Thresholds:
    """By the names of the parameters that set them (docs/parameters.md): fractions, and times in ms."""

    min_gen_kept: float
    max_gap_growth: float
    min_embed_kept: float
    min_overlap: float
    min_profiled_ratio: float
    slo_gen_stall_ms: float
    slo_gen_ttft_ms: float
    slo_gen_gap_ms: float
    slo_embed_batch_ms: float
    slo_embed_stall_ms: float

    @classmethod
    def of(cls, params: Params) -> Thresholds:
        """Those that `params` sets."""
        return cls(**{item.name: getattr(params, item.name) for item in fields(cls)})


def thresholds(run: Params, notebook: Params) -> Thresholds:
    """Those of `run`'s parameters, with those that `notebook` sets away from their defaults."""
    asked = asdict(Thresholds.of(notebook))
    changed = {name: value for name, value in asked.items() if value != Params.model_fields[name].default}
    return replace(Thresholds.of(run), **changed)
