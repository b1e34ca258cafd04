"""The process that closes the loop: gen's inter-token gaps from the load client, a duty to the embedding processes.

    python -m colo_lib.launch.pacer '{"client": {…}, "embeds": [{…}], "slo_gap_ms": 20, "concurrency": 1, "out": FILE}'

25 times a second. FILE receives a JSON line a tick. SIGTERM ends it; when gen or embed cannot be reached it ends with
exit code 1, and the trial with it: an unpaced trial must not pass for a paced one.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import deque
from typing import Any

from colo_lib.launch.orders import Handle, order
from colo_lib.launch.pacing import LEAST_DUTY, SloController

TICK_S = 0.04
ORDER_S = 10.0  # an embedding process that has no turn answers when it has one again
RECENT_S = 2.0
# A duty that hardly changed is not told again, but for the answer: what embed makes of it.
TOLD_CHANGE, TOLD_EVERY_S = 0.02, 0.5


def p99(values: list[float]) -> float | None:
    """Nearest-rank 99th percentile, None of nothing."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None


class Pacer:
    """One tick after the other; `rows` are those of the frame `pacing`."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.client, self.embeds = Handle(**job["client"]), [Handle(**one) for one in job["embeds"]]
        self.controller = SloController(job["slo_gap_ms"], job["concurrency"])
        # What came before is no answer to anything that was asked of embed.
        self.seen = order(self.client, "gaps", timeout_s=ORDER_S, since=0)["seen"]
        self.told_s = -math.inf
        self.told_duty, self.embed_duty, self.floor = 1.0, 1.0, LEAST_DUTY
        self.recent: deque[tuple[float, float]] = deque()

    def tick(self) -> dict[str, Any]:
        """Ask gen, decide, tell embed; returns the row. Raises OSError when one of them cannot be reached."""
        told = order(self.client, "gaps", timeout_s=ORDER_S, since=self.seen)
        self.seen, gaps_ms = told["seen"], told["gaps_ms"]
        duty = self.controller.update(gaps_ms, told["open_ms"], self.floor)
        now_s = time.monotonic()
        if abs(duty / self.told_duty - 1) > TOLD_CHANGE or now_s - self.told_s > TOLD_EVERY_S:
            answers = [order(embed, "pace", timeout_s=ORDER_S, duty=duty) for embed in self.embeds]
            self.told_duty, self.told_s = duty, now_s
            self.embed_duty = max(answer["duty"] for answer in answers)
            # Where its own stall bound makes embed work more than it was asked to, asking for less means nothing.
            self.floor = self.embed_duty if any(answer["bounded"] for answer in answers) else LEAST_DUTY
        self.recent.extend((now_s, gap_ms) for gap_ms in gaps_ms)
        while self.recent and self.recent[0][0] < now_s - RECENT_S:
            self.recent.popleft()
        return {
            "t_ns": time.monotonic_ns(), "gaps": len(gaps_ms), "late": self.controller.late(gaps_ms),
            "gap_max_ms": max(gaps_ms, default=None), "gap_p99_ms": p99([gap_ms for _, gap_ms in self.recent]),
            "duty": duty, "embed_duty": self.embed_duty,
        }  # fmt: skip


def main() -> None:
    """Tick until SIGTERM."""
    job = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pacer, began_s, ticks = Pacer(job), time.monotonic(), 0
    with open(job["out"], "w", buffering=1) as out:
        while True:
            out.write(json.dumps(pacer.tick()) + "\n")
            ticks += 1
            left_s = began_s + ticks * TICK_S - time.monotonic()
            if left_s < -1.0:  # a stall must not be made up for by a burst of ticks
                began_s, ticks = time.monotonic(), 0
            if signal.sigtimedwait({signal.SIGTERM}, max(0.0, left_s)) is not None:
                return


if __name__ == "__main__":
    main()
