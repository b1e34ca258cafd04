"""embed by a second vLLM server, and by the same server as one at a URL, with the real engines."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from colo_lib.errors import StepFailed
from colo_lib.launch.embed_over_http import KEY_NAME, EmbedServerHandle, exchange, look_at_url
from colo_lib.launch.engines import Engines
from colo_lib.launch.mechanisms.base import process_tree
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import Specs, specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.params import Params, check
from colo_lib.placement import placement_of
from tests.conftest import MODELS
from tests.processes import wait_until

pytestmark = pytest.mark.engine
BATCH, TOKENS, IN_FLIGHT = 2, 64, 4


def nano(**changes: Any) -> Params:
    plain = {
        "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "window_s": 3.0,
        "warmup_s": 0.5, "stall_timeout_s": 60.0, "max_stranger_cores": 64.0, "max_drift_fraction": 50.0,
        "max_clock_disagreement": 1.0, "ready_timeout_s": 400.0, "gen_prompt_tokens": 8, "gen_output_tokens": 32,
        "embed_sequence_tokens": TOKENS, "embed_batch_size": BATCH, "embed_engine": "vllm",
        "embed_concurrency": IN_FLIGHT,
    }  # fmt: skip
    return check(plain | changes, "test")


def specs(params: Params, step: str) -> Specs:
    return specs_of(params, placement_of(step, params))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, forked_python: Path) -> Iterator[Engines]:
    """Both vLLM servers, once for the module; the test that kills one comes last."""
    with runtime_folder() as runtime:
        params = nano(gen_python=str(forked_python))
        engines = Engines(specs(params, "step2").engines, runtime, tmp_path_factory.mktemp("logs"))
        try:
            engines.start(want_gen=True, want_embed=True)
            yield engines
        finally:
            engines.stop()


def server_of(engines: Engines) -> EmbedServerHandle:
    (handle,) = engines.handles().embeds
    assert isinstance(handle, EmbedServerHandle)
    return handle


def counted(server: EmbedServerHandle, metric: str) -> float:
    """A counter of the server's own, summed over its labels."""
    _, text = exchange(server.url, "/metrics", server.key, None, 30.0)
    return sum(float(row) for row in re.findall(rf"^vllm:{metric}{{.*}} (\S+)$", text.decode(), re.M))


def test_a_demand_is_asked_of_both_servers(up: Engines, tmp_path: Path) -> None:
    demand = {"embed_arrivals": "poisson", "embed_rate": 6.0, "gen_arrivals": "poisson", "gen_rate": 1.5}
    changes = demand | {"gen_output_tokens": 4, "window_s": 4.0, "slo_embed_batch_ms": 20_000.0}
    record = run_trial(specs(nano(**changes), "step2").trial, up.handles(), tmp_path / "step2" / "trial-1", 1)
    assert record.status == "done", record.reason
    assert record.demand is not None
    rows = pq.read_table(tmp_path / "step2" / "trial-1" / "embed.parquet").to_pandas()
    inside = rows["started_ns"].between(record.window_start_ns, record.window_end_ns, inclusive="left")
    # All that was due in the window was waited for, and each counts from when it was due.
    assert inside.sum() == record.demand["embed"].due > 0
    assert record.demand["embed"].rate == pytest.approx(6.0)
    requests = pq.read_table(tmp_path / "step2" / "trial-1" / "requests.parquet").to_pandas()
    due = requests["submitted_ns"].between(record.window_start_ns, record.window_end_ns, inclusive="left")
    assert due.sum() == record.demand["gen"].due
    assert requests.loc[due, "first_token_ns"].notna().all()


def test_both_servers_share_and_the_work_is_counted(up: Engines, tmp_path: Path) -> None:
    server = server_of(up)
    before = counted(server, "prompt_tokens_total")
    record = run_trial(specs(nano(), "step2").trial, up.handles(), tmp_path / "step2" / "trial-1", 1)
    assert record.status == "done", record.reason
    assert (record.gen_tokens_per_s or 0) > 0
    assert (record.embed_sequences_per_s or 0) > 0
    rows = pq.read_table(tmp_path / "step2/trial-1/embed.parquet").to_pandas()
    assert (rows["sequences"] == BATCH).all()
    # The server's own account: what the rows say was computed, no more and no less, and none of it from a cache.
    assert counted(server, "prompt_tokens_total") - before == rows["tokens"].sum()
    assert counted(server, "prompt_tokens_cached_total") == 0
    assert counted(server, "prefix_cache_hits_total") == 0


def test_its_processes_are_told_from_gens(up: Engines, tmp_path: Path) -> None:
    record = run_trial(specs(nano(), "step4").trial, up.handles(), tmp_path / "step4" / "trial-1", 1)
    assert record.status == "done", record.reason
    gen, embed = (set(process_tree((record.pids or {})[name][0])) for name in ("gen", "embed"))
    assert not gen & embed
    words = [" ".join(psutil.Process(pid).cmdline()) for pid in embed]
    assert any("--runner pooling" in line and "nano-embed" in line for line in words), words
    held = record.memory_gib or {}
    assert (held["embed"] or 0) > 0.05
    telemetry = pq.read_table(tmp_path / "step4/trial-1/telemetry.parquet").to_pandas()
    assert (telemetry.loc[telemetry["name"] == "embed", "cpu_cores"].dropna() > 0).any()
    assert record.embed_unproved is None
    assert not [
        file for file in tmp_path.rglob("*") if file.is_file() and server_of(up).key.encode() in file.read_bytes()
    ]


def test_the_same_server_can_be_one_at_a_url(up: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(up)
    monkeypatch.setenv(KEY_NAME, server.key)
    params = nano(embed_engine="url", embed_url=server.url)  # its list of models names the folder that it loaded
    found = look_at_url(specs(params, "step4").engines.embed)
    assert (found.model, found.pid) == ("embed", server.pid)
    with runtime_folder() as runtime:
        engines = Engines(specs(params, "step4").engines, runtime, tmp_path / "logs")
        handles = engines.start(want_gen=False, want_embed=True)
        record = run_trial(specs(params, "step4").trial, handles, tmp_path / "step4" / "trial-1", 1)
        engines.stop()
    assert record.status == "done", record.reason
    assert (record.embed_sequences_per_s or 0) > 0
    assert (record.pids or {})["embed"] == [server.pid]
    up.handles().check_alive()


def test_a_model_of_another_width_is_refused_at_the_start(up: Engines, monkeypatch: pytest.MonkeyPatch) -> None:

    assert up.embeds[0].spec.server is not None  # type: ignore[union-attr]
    embed = up.embeds[0]
    monkeypatch.setattr(embed, "spec", replace(embed.spec, server=replace(embed.spec.server, width=64)))  # type: ignore[arg-type]
    with pytest.raises(StepFailed, match="vectors of 128 numbers, embed_model has 64"):
        embed.works()  # type: ignore[union-attr]


def test_a_killed_server_fails_the_trial_with_its_log(up: Engines, tmp_path: Path) -> None:

    server = server_of(up)
    threading.Timer(3.0, psutil.Process(server.pid).kill).start()
    with pytest.raises(StepFailed, match=r"embed"):
        run_trial(specs(nano(window_s=60.0), "step4").trial, up.handles(), tmp_path / "step4" / "trial-1", 1)
    assert wait_until(lambda: server.pid is not None and not psutil.pid_exists(server.pid))
    assert '"failed"' in (tmp_path / "step4/trial-1/trial.json").read_text()
