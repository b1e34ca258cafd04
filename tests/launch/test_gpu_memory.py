"""Memory between engines and within them: waiting for it to settle, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from colo_lib.analysis.telemetry import parts_frame
from colo_lib.data.run import trials_frame
from colo_lib.errors import StepFailed
from colo_lib.hardware.memory import wait_still
from colo_lib.launch.trial import embed_parts, gen_parts, with_rest
from colo_lib.records import Trial
from colo_lib.report import run_tables

# vLLM 0.24 with Qwen3-30B-A3B, fp8, gpu_memory_utilization 0.45, on an H200; NVML counted 63.0859 GiB.
LOG = """\
(EngineCore pid=730) INFO 11-24 20:43:34 [gpu_model_runner.py:5255] Model loading took 29.03 GiB memory and 2.692413 seconds
(EngineCore pid=730) INFO 11-24 20:44:41 [gpu_worker.py:508] Available KV cache memory: 32.98 GiB
(EngineCore pid=730) INFO 11-24 20:44:43 [gpu_model_runner.py:6656] Graph capturing finished in 2 secs, took 0.00 GiB
"""  # noqa: E501


def readings(*values: float) -> Iterable[dict[str, float]]:
    return iter([{"0": value} for value in values])


def test_a_start_waits_for_memory_that_is_still_being_given_back() -> None:
    falling = readings(80.0, 60.0, 40.0, 20.0, 1.0, 1.01, 1.0, 99.0)
    assert wait_still(lambda: next(falling), poll_s=0.0) == {"0": 1.0}  # type: ignore[call-overload]
    assert next(iter(falling)) == {"0": 99.0}


def test_memory_that_never_settles_is_told() -> None:
    moving = readings(*(float(value) for value in range(10_000)))
    with pytest.raises(StepFailed, match=r"memory of GPU 0 still moves after 0 s: somebody else"):
        wait_still(lambda: next(moving), timeout_s=0.0, poll_s=0.0)  # type: ignore[call-overload]


def test_memory_that_nobody_tells_is_not_waited_for() -> None:
    assert wait_still(lambda: None) is None


def test_vllm_tells_its_parts_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "gen.log").write_text(LOG)
    parts = gen_parts(tmp_path / "gen.log", 0.0)
    assert parts == {"weights": 29.03, "kv_cache": 32.98, "graphs": 0.0}
    assert gen_parts(tmp_path / "none.log", 0.0) == dict.fromkeys(parts)
    assert gen_parts(tmp_path / "gen.log", 4.0)["kv_cache"] == 4.0
    assert with_rest(parts, 63.0859, 1).rest == pytest.approx(1.0759)


def test_parts_and_rest_make_up_what_a_process_holds() -> None:
    parts = with_rest(embed_parts({"weights": 14.0, "peak": 15.5, "reserved": 16.0}), 33.0, 2)
    assert parts.plain() == {"weights": 14.0, "activations": 1.5, "cached": 0.5, "rest": 0.5}
    assert set(with_rest(embed_parts({}), 33.0, 1).plain().values()) == {None}


def test_the_memory_notebook_shows_the_parts_by_step() -> None:
    record = Trial.model_validate(
        {"step": "step2", "trial": 1, "status": "done"} | {"window_start_ns": 1, "window_end_ns": 2}
    )
    parts = {"gen": {"weights": 28.9, "kv_cache": 31.5}}
    frame = parts_frame(trials_frame([record.joined(memory_parts_gib=parts)]))
    assert frame.to_dict("records") == [
        {"step": "step2", "workload": "gen", "part": "weights", "gib": 28.9, "mechanism": None},
        {"step": "step2", "workload": "gen", "part": "kv cache", "gib": 31.5, "mechanism": None},
    ]
    assert list(run_tables.memory_parts(frame)["Part (GiB a process)"]) == ["LLM: weights", "LLM: kv cache"]
    assert isinstance(run_tables.memory_parts(parts_frame(trials_frame([record]))), pd.DataFrame)
