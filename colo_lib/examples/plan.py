"""What a simulated run is told to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GEN_KEPT = {"step1": 1.0, "step2": 0.80, "step3": 0.52, "configA": 1.0, "configB": 1.35}
EMBED_KEPT = {"step2": 0.71, "step3": 0.47, "step4": 1.0, "configA": 1.0, "configB": 0.62}
GAP_SPREAD = {"step1": 0.05, "step2": 0.35, "step3": 0.9, "configA": 0.05, "configB": 0.3}


@dataclass(frozen=True)
class Plan:
    """What is planted. Rates are per second; kept fractions by step against step 1, step 4 or config A."""

    run_id: str = "simulated-run"
    blocks: int = 3
    window_s: float = 6.0
    warmup_s: float = 1.0
    gen_tokens_per_s: float = 120.0
    embed_sequences_per_s: float = 64.0
    gen_kept: Mapping[str, float] = field(default_factory=lambda: dict(GEN_KEPT))
    embed_kept: Mapping[str, float] = field(default_factory=lambda: dict(EMBED_KEPT))
    gap_spread: Mapping[str, float] = field(default_factory=lambda: dict(GAP_SPREAD))
    noise: float = 0.02  # standard deviation of a trial's rate, as a fraction
    starts: int = 0  # starts of the engines that the blocks are spread over; 0: one a block
    start_noise: float = 0.0  # standard deviation of a start's effect on a step's rates, as a fraction
    drift_per_trial: float = 0.0  # each trial is slower than the one before by this fraction
    bad_block: Mapping[int, float] = field(default_factory=dict)  # block -> factor on step 2's rates
    stall_s: Mapping[str, float] = field(default_factory=dict)  # step -> a hole in gen's tokens
    invalid: Mapping[tuple[str, int], str] = field(default_factory=dict)  # (step, trial) -> reason
    device: str = "cpu"  # whose names of the mechanisms the trials carry
    seed: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
