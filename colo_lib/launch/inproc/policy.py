"""When the embedder may begin its next pass beside gen, and on how many SMs: pure decisions, standard library only.

`fixed`: always, on the first size. `phase`: not while the engine's step holds prefill tokens. `slo`: always, on the
size that gen's recent step times leave. Sizes are numbers of SMs (of cores, where cores stand in).
"""

from __future__ import annotations

from collections.abc import Sequence

FIXED, PHASE, SLO = "fixed", "phase", "slo"
POLICIES = (FIXED, PHASE, SLO)
# Late is what comes close to the SLO: a p99 that sits on its bound is past it every other time (as of `pacing`).
AIM = 0.95
ALL_SMS = 1 << 16  # what 0 stands for, among sizes
# Steps in time before a larger size is tried: the first time, after a size proved too large, and at the most. At
# MOST_STEPS a try whose steps all come late, some of a pass, is well below what a p99 allows.
FIRST_STEPS, USUAL_STEPS, MOST_STEPS = 16, 200, 12_800


class Policy:
    """`fixed`, and what the others begin with: `sizes` as they were asked for, the first of them in use."""

    name = FIXED

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes:
            raise ValueError("no size to run the embedder on")
        self.sizes = tuple(sizes)
        self.size = self.sizes[0]

    def may_begin(self, prefill_tokens: int) -> bool:
        """Whether a pass may begin while the engine's step holds so many prefill tokens."""
        return True

    def passed(self, step_ms: Sequence[float]) -> int:
        """The size of the next pass, after one beside which the engine's steps took so long."""
        return self.size


class PhasePolicy(Policy):
    """No new pass beside prefill: both would want every SM at once."""

    name = PHASE

    def may_begin(self, prefill_tokens: int) -> bool:
        """Not beside prefill."""
        return prefill_tokens == 0


class SloPolicy(Policy):
    """Finds the largest size beside which the engine's steps keep gen's gap SLO; begins with the smallest.

    A late step takes one size away at once, at most one a pass. Steps in time give one back after a while; where that
    proves too large again, the while doubles: the tries become rare, and what they cost gen goes to nothing. A size
    that lasts as long as the usual while is a find, and the while is the usual one again.
    """

    name = SLO

    def __init__(self, sizes: Sequence[int], slo_gap_ms: float) -> None:
        super().__init__(sorted(sizes, key=lambda size: size or ALL_SMS))
        self.aim_ms = AIM * slo_gap_ms
        self.at, self.in_time, self.wait_steps, self.trying = 0, 0, FIRST_STEPS, False

    def passed(self, step_ms: Sequence[float]) -> int:
        """As of `Policy`. Nothing is learnt where gen made no step."""
        if any(taken_ms > self.aim_ms for taken_ms in step_ms):
            if self.trying:
                self.wait_steps = min(MOST_STEPS, 2 * max(self.wait_steps, USUAL_STEPS))
            elif self.wait_steps < USUAL_STEPS:
                self.wait_steps = USUAL_STEPS
            self.at, self.in_time, self.trying = max(0, self.at - 1), 0, False
        else:
            self.in_time += len(step_ms)
            if self.trying and self.in_time >= USUAL_STEPS:
                self.trying, self.wait_steps = False, USUAL_STEPS
            if self.in_time >= self.wait_steps and self.at < len(self.sizes) - 1:
                self.at, self.in_time, self.trying = self.at + 1, 0, True
        self.size = self.sizes[self.at]
        return self.size


def make_policy(name: str, sizes: Sequence[int], slo_gap_ms: float) -> Policy:
    """The policy of that name; raises ValueError for an unknown one."""
    if name == SLO:
        return SloPolicy(sizes, slo_gap_ms)
    kinds: dict[str, type[Policy]] = {FIXED: Policy, PHASE: PhasePolicy}
    if name not in kinds:
        raise ValueError(f"unknown policy {name!r}; there are {', '.join(POLICIES)}")
    return kinds[name](sizes)
