"""What is seen of the engine's steps: as vLLM's worker is called, by stand-ins of what its scheduler gives out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from colo_lib.launch.inproc.engine_steps import StepsSeen, prefill_tokens


def scheduled(
    counts: dict[str, int], fresh: tuple[str, ...] = (), drafted: dict[str, list[int]] | None = None
) -> SimpleNamespace:
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in fresh],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[name for name in counts if name not in fresh]),
        scheduled_spec_decode_tokens=drafted or {},
    )


@pytest.mark.parametrize(
    ("step", "tokens"),
    [
        (scheduled({"a": 1, "b": 1}), 0),
        (scheduled({"a": 1, "b": 30}, fresh=("b",)), 30),
        (scheduled({"a": 1, "b": 1}, fresh=("b",)), 1),  # a prompt of one token is a prompt
        (scheduled({"a": 512}), 512),  # a long prompt, in chunks
        (scheduled({"a": 4}, drafted={"a": [1, 2, 3]}), 0),  # speculation is no prefill
        (scheduled({"a": 5}, drafted={"a": [1, 2, 3]}), 5),
    ],
)
def test_prompt_tokens_of_a_step(step: Any, tokens: int) -> None:
    assert prefill_tokens(step) == tokens


class Worker:
    """Does a step in two calls, as vLLM does, or in one."""

    def __init__(self, seen: StepsSeen, in_two: bool) -> None:
        self.seen, self.in_two, self.during = seen, in_two, list[int]()

    def execute_model(self, _: Any) -> Any:
        self.during.append(self.seen.prefill_now())
        return None if self.in_two else "output"

    def sample_tokens(self, grammar: Any) -> str:
        self.during.append(self.seen.prefill_now())
        return "output"


@pytest.mark.parametrize("in_two", [True, False])
def test_a_step_holds_its_prompt_tokens_until_its_last_call_has_returned(in_two: bool) -> None:
    seen = StepsSeen()
    worker: Any = Worker(seen, in_two)
    seen.around(worker)
    for step in (scheduled({"a": 7}, fresh=("a",)), scheduled({"a": 1})):
        assert worker.execute_model(step) == (None if in_two else "output")
        assert seen.prefill_now() == (step.num_scheduled_tokens["a"] == 7 and in_two) * 7
        if in_two:
            assert worker.sample_tokens(None) == "output"
        assert seen.prefill_now() == 0
    assert worker.during == ([7, 7, 0, 0] if in_two else [7, 0])
    assert (seen.steps, seen.prefill_steps) == (2, 1)


def test_prefill_lasts_until_the_device_has_done_it() -> None:
    done: list[bool] = [False]
    seen = StepsSeen(lambda: lambda: done[0])
    worker: Any = Worker(seen, in_two=False)
    seen.around(worker)
    worker.execute_model(scheduled({"a": 7}, fresh=("a",)))
    worker.execute_model(scheduled({"a": 1}))  # launched behind it
    assert seen.prefill_now()
    done[0] = True
    assert not seen.prefill_now()


def test_only_a_wait_for_a_token_is_a_gap() -> None:
    seen = StepsSeen()
    worker: Any = Worker(seen, in_two=False)
    seen.around(worker)
    for step in (scheduled({"a": 3}, fresh=("a",)), scheduled({"a": 1}), scheduled({})):
        worker.execute_model(step)
        time.sleep(0.02)
    worker.execute_model(scheduled({"b": 3}, fresh=("b",)))  # nobody waited
    gaps_ms = seen.take_gaps()
    assert len(gaps_ms) == 1
    assert gaps_ms[0] >= 20
    assert seen.take_gaps() == []
