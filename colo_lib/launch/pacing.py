"""Pacing of embed: what share of the time it may work, and the process that finds it from gen's inter-token gaps.

    python -m colo_lib.launch.pacing '{"client": {…}, "embeds": [{…}], "slo_gap_ms": 20, "concurrency": 1, "out": FILE}'

25 times a second it takes gen's gaps from the load client and sends a duty to the embedding processes, which take the
rests themselves (`embed_worker.Pacing`); docs/pacing.md has the equations. FILE receives a JSON line a tick. SIGTERM
ends it; when gen or embed cannot be reached it ends with exit code 1, and the trial with it: an unpaced trial must not
pass for a paced one.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from colo_lib.launch.rpc import Gaps, Handle, call
from colo_lib.launch.specs import PacingSpec
from colo_lib.placement import Placement
from colo_lib.records import PacingFacts
from colo_lib.steps import MECHANISMS

# Aimed at are half of the late gaps that a p99 allows, so that the p99 itself is kept with room to spare.
LATE_FRACTION = 0.005
# Late is what comes close to the SLO: a p99 that sits on its bound is past it every other time.
AIM = 0.95
# Well under LATE_FRACTION: even where every pass of embed makes a gap late, the p99 is kept. Embed's own stall bound is
# the floor that is met in practice.
LEAST_DUTY = 0.001
TICK_S = 0.04
ORDER_S = 10.0  # an embedding process that has no turn answers when it has one again
RECENT_S = 2.0
# A duty that hardly changed is not sent again, but for the answer: what embed makes of it.
LEAST_CHANGE, REPEAT_EVERY_S = 0.02, 0.5


@dataclass(frozen=True)
class StartOrder:
    """How an embedding process is to pace itself: its share of the time, sequences a pass (0: batches), most rest."""

    duty: float
    micro_batch_size: int
    stall_s: float
    policy: str = "fixed"
    """Of an embedder in gen's process, which alone heeds it, and its bound."""
    slo_gap_ms: float = 0.0


def start_order(pacing: PacingSpec, placement: Placement) -> StartOrder:
    """What a trial tells the embedding process when it begins: how to pace itself.

    Pacing is a lever of sharing: an embed that shares nothing is the baseline, and runs flat out in whole batches.
    """
    if not shares(placement):
        return StartOrder(duty=1.0, micro_batch_size=0, stall_s=0.0)
    duty = pacing.duty if pacing.kind == "duty" else 1.0
    stall_s = pacing.embed_stall_ms / 1e3 if pacing.kind != "none" else 0.0
    in_gen = MECHANISMS[placement.mechanism].in_gen
    policy, gap_ms = (pacing.policy, pacing.gen_gap_ms) if in_gen else ("fixed", 0.0)
    return StartOrder(duty, pacing.micro_batch_size, stall_s, policy, gap_ms)


def shares(placement: Placement) -> bool:
    """Whether both workloads run on the same devices."""
    return placement.runs_gen and placement.runs_embed and placement.mechanism != "none"


def pacing_record(pacing: PacingSpec, placement: Placement) -> PacingFacts:
    """The trial record's `pacing`: how embed was held back, if at all."""
    if not shares(placement):
        return PacingFacts(kind="none", micro_batch_size=0)
    facts = PacingFacts(kind=pacing.kind, micro_batch_size=pacing.micro_batch_size)
    return facts.joined(duty=pacing.duty) if pacing.kind == "duty" else facts


class SloController:
    """Finds the duty of embed that keeps gen's p99 inter-token gap within its SLO.

    A stochastic quantile search (Robbins and Monro, 1951) on the logarithm of the duty: every late gap halves the duty,
    every gap in time raises it by so little that it doubles after 1 / LATE_FRACTION - 1 of them. Where it stands still,
    LATE_FRACTION of the gaps are late, whatever the plant is like; and of any N engine steps at most
    LATE_FRACTION * N + log2(1 / LEAST_DUTY) are late before the duty is at its least. Nothing accumulates beyond the
    bounds of the duty, so there is nothing to unwind when the load changes.
    """

    def __init__(self, slo_gap_ms: float, concurrency: int) -> None:
        self.aim_ms = AIM * slo_gap_ms
        # One engine step gives a gap to every request in flight: they count as one.
        self.down = math.log(2) / concurrency
        self.up = self.down * LATE_FRACTION / (1 - LATE_FRACTION)
        self.log_duty = 0.0

    def update(self, gaps_ms: Sequence[float], open_ms: float = 0.0, floor: float = LEAST_DUTY) -> float:
        """The duty from now on, in [LEAST_DUTY, 1], after the gaps since the last call.

        `open_ms` is how long the slowest stream has waited for its next token: one that is overdue already holds embed
        back until the token came. `floor` is what embed's own stall bound makes it work at the least: asking for less
        than that means nothing, so late gaps do not take the duty below it.
        """
        lowest = math.log(max(floor, LEAST_DUTY))
        for gap_ms in gaps_ms:
            if gap_ms > self.aim_ms:
                self.log_duty = max(self.log_duty - self.down, min(self.log_duty, lowest))
            else:
                self.log_duty = min(0.0, self.log_duty + self.up)
        return LEAST_DUTY if open_ms > self.aim_ms else math.exp(self.log_duty)

    def late(self, gaps_ms: Sequence[float]) -> int:
        """How many of these gaps count as late."""
        return sum(gap_ms > self.aim_ms for gap_ms in gaps_ms)


def p99(values: list[float]) -> float | None:
    """Nearest-rank 99th percentile, None of nothing."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None


@dataclass(frozen=True)
class PacerJob:
    """What the pacer is started with, as JSON: whom it asks and tells, gen's SLO, and the file of its rows."""

    client: Handle
    embeds: tuple[Handle, ...]
    slo_gap_ms: float
    concurrency: int
    out: str

    @classmethod
    def from_json(cls, text: str) -> PacerJob:
        """As it was before it became JSON."""
        plain = json.loads(text)
        embeds = tuple(Handle(**embed) for embed in plain["embeds"])
        return cls(**{**plain, "client": Handle(**plain["client"]), "embeds": embeds})


@dataclass(frozen=True)
class PacingRow:
    """A row of the frame `pacing`: the gaps since the row before, and what was asked of embed and came of it."""

    t_ns: int
    gaps: int
    late: int
    gap_max_ms: float | None
    gap_p99_ms: float | None
    duty: float
    embed_duty: float


class Pacer:
    """One tick after the other."""

    def __init__(self, job: PacerJob) -> None:
        self.client, self.embeds = job.client, job.embeds
        self.controller = SloController(job.slo_gap_ms, job.concurrency)
        # What came before is no answer to anything that was asked of embed.
        self.seen = self.gaps(since=0).seen
        self.sent_s = -math.inf
        self.sent_duty, self.embed_duty, self.floor = 1.0, 1.0, LEAST_DUTY
        self.recent: deque[tuple[float, float]] = deque()

    def gaps(self, since: int) -> Gaps:
        """gen's inter-token gaps after the first `since`; raises OSError when its client cannot be reached."""
        return Gaps(**call(self.client, "gaps", timeout_s=ORDER_S, since=since))

    def tick(self) -> PacingRow:
        """Ask gen, decide, tell embed; returns the row. Raises OSError when one of them cannot be reached."""
        news = self.gaps(self.seen)
        self.seen, gaps_ms = news.seen, news.gaps_ms
        duty = self.controller.update(gaps_ms, news.open_ms, self.floor)
        now_s = time.monotonic()
        if abs(duty / self.sent_duty - 1) > LEAST_CHANGE or now_s - self.sent_s > REPEAT_EVERY_S:
            answers = [call(embed, "pace", timeout_s=ORDER_S, duty=duty) for embed in self.embeds]
            self.sent_duty, self.sent_s = duty, now_s
            self.embed_duty = max(answer["duty"] for answer in answers)
            # Where its own stall bound makes embed work more than it was asked to, asking for less means nothing.
            self.floor = self.embed_duty if any(answer["bounded"] for answer in answers) else LEAST_DUTY
        self.recent.extend((now_s, gap_ms) for gap_ms in gaps_ms)
        while self.recent and self.recent[0][0] < now_s - RECENT_S:
            self.recent.popleft()
        return PacingRow(
            t_ns=time.monotonic_ns(), gaps=len(gaps_ms), late=self.controller.late(gaps_ms),
            gap_max_ms=max(gaps_ms, default=None), gap_p99_ms=p99([gap_ms for _, gap_ms in self.recent]),
            duty=duty, embed_duty=self.embed_duty,
        )  # fmt: skip


def main() -> None:
    """Tick until SIGTERM."""
    job = PacerJob.from_json(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pacer, began_s, ticks = Pacer(job), time.monotonic(), 0
    with open(job.out, "w", buffering=1) as out:
        while True:
            out.write(json.dumps(asdict(pacer.tick())) + "\n")
            ticks += 1
            left_s = began_s + ticks * TICK_S - time.monotonic()
            if left_s < -1.0:  # a stall must not be made up for by a burst of ticks
                began_s, ticks = time.monotonic(), 0
            if signal.sigtimedwait({signal.SIGTERM}, max(0.0, left_s)) is not None:
                return


if __name__ == "__main__":
    main()
