"""Many requests in flight against the real vLLM: all of them run, or the trial says why it does not count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from colo_lib.launch.engines import Engines
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import Specs, specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.params import check
from colo_lib.placement import placement_of
from colo_lib.records import GenLoad, Trial
from tests.conftest import MODELS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

# vLLM on a CPU keeps its cache in blocks of 128 tokens: room for twenty requests of up to 128, or ten of up to 256.
BLOCK, BLOCKS = 128, 20


def specs(**changes: Any) -> Specs:
    plain = {
        "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "window_s": 4.0,
        "warmup_s": 1.0, "stall_timeout_s": 60.0, "max_stranger_cores": 64.0, "max_drift_fraction": 50.0,
        "ready_timeout_s": 600.0, "gen_max_num_seqs": 20, "gen_prompt_tokens": 8,
        "gen_extra_args": f"--num-gpu-blocks-override {BLOCKS}",
    }  # fmt: skip
    params = check(plain | changes, "test")
    return specs_of(params, placement_of("step1", params))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, engine_python: Path) -> Iterator[Engines]:
    with runtime_folder() as runtime:
        engines = Engines(specs().engines, runtime, tmp_path_factory.mktemp("logs"))
        try:
            engines.start(want_gen=True, want_embed=False)
            yield engines
        finally:
            engines.stop()


def trial(up: Engines, folder: Path, **load: Any) -> Trial:
    return run_trial(specs(**load).trial, up.handles(), folder / "step1" / "trial-1", 1)


def load_of(record: Trial) -> GenLoad:
    assert record.gen_load is not None
    return record.gen_load


@pytest.mark.parametrize("processes", [1, 3])
def test_all_of_twenty_run_and_both_counts_agree(up: Engines, tmp_path: Path, processes: int) -> None:
    record = trial(up, tmp_path, gen_concurrency=20, gen_output_tokens=64, gen_client_processes=processes)
    assert record.status == "done", record.reason
    load = load_of(record)
    assert (load.processes, load.preemptions, load.kv_tokens) == (processes, 0, BLOCK * BLOCKS)
    assert record.clock_disagreement is not None
    # Our count against vLLM's own: within 1 %, or a token a request where the window has few.
    assert record.clock_disagreement < max(0.01, 20 / (record.gen_tokens or 1))
    requests = pq.read_table(tmp_path / "step1" / "trial-1" / "requests.parquet").to_pandas()
    assert requests["request_id"].is_unique
    assert requests["error"].isna().all()
    # The first outputs have lengths of their own, the others the whole.
    done = requests[requests["done_ns"].notna()].set_index("request_id")["output_tokens"]
    first = set(done[done.index < 20])
    assert len(first) > 5
    assert set(done[done.index >= 3 * 20]) <= {64}


def test_a_cache_that_is_too_small_voids_the_trial_with_its_cause(up: Engines, tmp_path: Path) -> None:
    # A second block each, from the 29th token on.
    shape = {"gen_prompt_tokens": 100, "gen_output_tokens": 100}
    record = trial(up, tmp_path, gen_concurrency=20, window_s=12.0, **shape)
    assert record.status == "invalid"
    assert "preempted requests" in str(record.reason) or "waited in vLLM's queue" in str(record.reason)
    [mark] = [text for text in record.marks or [] if "KV cache" in text]
    assert f"holds {BLOCK * BLOCKS} tokens, 20 whole requests take {20 * 2 * BLOCK}" in mark


def test_requests_that_are_due_come_at_their_rate(up: Engines, tmp_path: Path) -> None:
    record = trial(up, tmp_path, gen_arrivals="constant", gen_rate=2.0, gen_output_tokens=8, max_clock_disagreement=9.0)
    assert record.status == "done", record.reason
    assert record.demand is not None
    assert record.demand["gen"].due == 8
    requests = pq.read_table(tmp_path / "step1" / "trial-1" / "requests.parquet").to_pandas()
    assert (requests["submitted_ns"].diff().dropna() / 1e9).round(6).eq(0.5).all()
