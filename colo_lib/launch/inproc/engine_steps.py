"""What the worker sees of vLLM's engine: how long its steps take, and whether the one under way holds prefill tokens.

`StepsSeen.around` wraps the worker's `execute_model` and `sample_tokens`, which vLLM calls once a step with what its
scheduler gave out. Written by the engine's thread, read by the embedder's: deques and plain numbers, no lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

# As many as can begin during one pass of an embedder, many times over.
MOST_STEPS = 4096


def prefill_tokens(scheduled: Any) -> int:
    """Prompt tokens in a step's `SchedulerOutput`: a decoding request has one token, and its speculated ones."""
    drafted: dict[str, list[int]] = getattr(scheduled, "scheduled_spec_decode_tokens", None) or {}
    fresh = {request.req_id for request in scheduled.scheduled_new_reqs}
    return sum(
        count
        for request, count in scheduled.num_scheduled_tokens.items()
        if request in fresh or count > 1 + len(drafted.get(request, ()))
    )


def goes_on(scheduled: Any) -> bool:
    """Whether a request of this step was in an earlier one: the time between both is then a wait for a token."""
    return bool(scheduled.scheduled_cached_reqs.req_ids)


class StepsSeen:
    """Steps of the engine, as its worker is called for them.

    `mark`: called in the engine's thread when a step was launched; what it returns says whether the device has done it
    (a CUDA event's `query`). None: a step is done when its call returns, as on cores.
    """

    def __init__(self, mark: Callable[[], Callable[[], bool]] | None = None) -> None:
        self.mark = mark
        self.steps = self.prefill_steps = 0
        self.began_s: float | None = None
        self.gaps_ms: deque[float] = deque(maxlen=MOST_STEPS)
        self.prefill = 0  # tokens of the step that is being launched
        self.pending: deque[Callable[[], bool]] = deque()  # launched steps with prefill, perhaps not done

    def begins(self, scheduled: Any) -> None:
        """A step begins; one without tokens only tells what has ended."""
        if not scheduled.total_num_scheduled_tokens:
            return
        now_s = time.monotonic()
        if self.began_s is not None and goes_on(scheduled):
            self.gaps_ms.append((now_s - self.began_s) * 1e3)
        self.began_s = now_s
        self.steps += 1
        self.prefill = prefill_tokens(scheduled)
        self.prefill_steps += bool(self.prefill)

    def launched(self) -> None:
        """The step's last call has returned."""
        if self.prefill and self.mark is not None:
            self.pending.append(self.mark())
        self.prefill = 0

    def prefill_now(self) -> int:
        """Prompt tokens of what is under way: those that are being launched, or 1 where the device is still at some."""
        while self.pending and self.pending[0]():
            self.pending.popleft()
        return self.prefill or len(self.pending)

    def take_gaps(self) -> list[float]:
        """Times between steps since the last call, ms, each a wait for a token."""
        gaps_ms = []
        while self.gaps_ms:
            gaps_ms.append(self.gaps_ms.popleft())
        return gaps_ms

    def around(self, worker: Any) -> None:
        """Look at every step of `worker` from now on."""
        execute: Callable[..., Any] = worker.execute_model
        sample: Callable[..., Any] | None = getattr(worker, "sample_tokens", None)

        def execute_model(scheduled: Any, *more: Any, **named: Any) -> Any:
            self.begins(scheduled)
            output = execute(scheduled, *more, **named)
            if output is not None or sample is None:  # None: the step goes on in sample_tokens
                self.launched()
            return output

        def sample_tokens(*more: Any, **named: Any) -> Any:
            assert sample is not None
            output = sample(*more, **named)
            self.launched()
            return output

        worker.execute_model = execute_model
        if sample is not None:
            worker.sample_tokens = sample_tokens
