"""An embedding server that is not ours: its load, its trials, and all that may be wrong with it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from colo_lib.data.run import open_run
from colo_lib.errors import InputError, StepFailed
from colo_lib.hardware.nvml import GpuLook, GpuProcess, GpuRow
from colo_lib.launch import embed_proof
from colo_lib.launch.arrivals import due_times
from colo_lib.launch.embed_over_http import KEY_NAME, local_pid, look_at_url
from colo_lib.launch.embed_proof import refuse_unproved, unproved
from colo_lib.launch.engines import Engines, Handles, from_plain
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import Specs, specs_of
from colo_lib.launch.trial import run_trial
from colo_lib.launch.vllm_server import free_port
from colo_lib.params import Params, check
from colo_lib.paths import REPOSITORY
from colo_lib.placement import placement_of
from colo_lib.record.step import record_step
from tests.conftest import MODELS
from tests.launch.foreign_server import KEY, ForeignServer
from tests.processes import wait_until

TOKENS, BATCH, IN_FLIGHT = 16, 3, 4


@pytest.fixture
def server() -> Iterator[ForeignServer]:
    with ForeignServer() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def at(url: str, **changes: Any) -> Params:
    plain = {
        "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "gen_python": sys.executable,
        "embed_engine": "url", "embed_url": url, "embed_concurrency": IN_FLIGHT, "embed_batch_size": BATCH,
        "embed_sequence_tokens": TOKENS, "steps": "step4", "blocks": 1, "starts": 1, "window_s": 1.0, "warmup_s": 0.2,
        "stall_timeout_s": 10.0, "max_stranger_cores": 64.0, "max_drift_fraction": 50.0,
    }  # fmt: skip
    return check(plain | changes, "test")


def specs(params: Params, step: str = "step4") -> Specs:
    return specs_of(params, placement_of(step, params))


def test_a_run_drives_the_server_and_its_work_is_counted(server: ForeignServer, tmp_path: Path) -> None:
    record = record_step(at(server.url, runs_dir=str(tmp_path), blocks=2), "step4")
    assert [trial.status for trial in record.trials] == ["done", "done"], record.trials
    rows = pq.read_table(record.folder / "steps/step4/trial-1/embed.parquet").to_pandas()
    assert (rows["sequences"] == BATCH).all()
    assert (rows["tokens"] == BATCH * TOKENS).all()
    assert (rows["done_ns"] - rows["started_ns"] > 10e6).all()
    # A closed loop: never more in flight than asked for, and that many throughout.
    assert server.most_at_once == IN_FLIGHT
    seconds = (rows["done_ns"].max() - rows["started_ns"].min()) / 1e9
    assert (rows["done_ns"] - rows["started_ns"]).sum() / 1e9 / seconds > 0.5 * IN_FLIGHT
    run = open_run(record.folder)
    assert list(run.trials["status"]) == ["done", "done"]
    assert all((trial.embed_sequences_per_s or 0) > 0 for trial in record.trials)
    # Who did it is this very process.
    assert record.trials[0].pids == {"gen": [], "embed": [os.getpid()]}
    assert "not started here" in str(record.trials[0].embed_unproved)


def test_no_input_comes_twice_and_every_seed_has_its_own(server: ForeignServer, tmp_path: Path) -> None:
    record_step(at(server.url, runs_dir=str(tmp_path / "a"), blocks=2), "step4")
    sent = [tuple(row) for body in server.asked for row in body["input"] if len(body["input"]) == BATCH]
    assert len(sent) == len(set(sent)) > 2 * BATCH * IN_FLIGHT
    assert all(len(set(row)) == TOKENS and max(row) < 1024 for row in sent)
    server.asked.clear()
    record_step(at(server.url, runs_dir=str(tmp_path / "b"), blocks=1), "step4")
    again = {tuple(row) for body in server.asked for row in body["input"] if len(body["input"]) == BATCH}
    assert len(again & set(sent)) > BATCH
    server.asked.clear()
    record_step(at(server.url, runs_dir=str(tmp_path / "c"), blocks=1, seed=2), "step4")
    other = {tuple(row) for body in server.asked for row in body["input"] if len(body["input"]) == BATCH}
    assert not other & set(sent)


def test_a_server_that_sends_numbers_as_text_does_too(server: ForeignServer, tmp_path: Path) -> None:
    server.behaviour = "floats"
    record = record_step(at(server.url, runs_dir=str(tmp_path)), "step4")
    assert record.trials[0].status == "done", record.trials[0].reason


def test_one_that_lists_no_models_is_looked_at_all_the_same(server: ForeignServer) -> None:
    server.behaviour = "lists nothing"
    assert look_at_url(specs(at(server.url)).engines.embed).model == "nano-embed"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/embeddings"])
def test_an_address_may_be_given_as_people_write_it(server: ForeignServer, suffix: str) -> None:
    assert look_at_url(specs(at(server.url + suffix)).engines.embed).url == server.url


WRONG = {
    "busy": "HTTP 503.*embed_concurrency",
    "refuses": "HTTP 400.*token ids",
    "wants a key": "HTTP 401.*COLO_EMBED_KEY",
    "breaks": "HTTP 500.*see its log",
    "hangs up": "no embedding server answers there",
    "is a shop": "none of OpenAI's /v1/embeddings",
    "is wide": "vectors of 256 numbers, embed_model has 128",
    "is not finite": "not finite",
    "cuts": "8 tokens of the 16",
}


@pytest.mark.parametrize(("behaviour", "sentence"), WRONG.items(), ids=WRONG)
def test_a_bad_server_is_told_before_anything_is_made(
    server: ForeignServer, tmp_path: Path, behaviour: str, sentence: str
) -> None:
    server.behaviour = behaviour
    with pytest.raises(InputError, match=f"embed_url' = '{server.url}': .*{sentence}"):
        record_step(at(server.url, runs_dir=str(tmp_path / "runs")), "step4")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        *((name, text) for name, text in WRONG.items() if name not in ("hangs up", "cuts")),
        ("hangs up", "not to be reached"),
        ("cuts", "24 tokens of the 48"),
        ("sends one", "1 vectors for 3 sequences"),
    ],
)
def test_a_server_that_turns_bad_fails_its_trial_with_the_cause(
    server: ForeignServer, tmp_path: Path, behaviour: str, sentence: str
) -> None:
    threading.Timer(1.5, setattr, (server, "behaviour", behaviour)).start()
    with pytest.raises(StepFailed, match=sentence):
        record_step(at(server.url, runs_dir=str(tmp_path), window_s=60.0), "step4")
    (trial,) = tmp_path.rglob("trial.json")
    assert '"failed"' in trial.read_text()


def test_a_server_of_another_model_says_which(server: ForeignServer) -> None:
    server.models = ["bge-m3", "another"]
    with pytest.raises(InputError, match=r"serves bge-m3, another, and none of nano-embed.*embed_url_model"):
        look_at_url(specs(at(server.url)).engines.embed)
    named = specs(at(server.url, embed_url_model="bge-m3")).engines.embed
    assert look_at_url(named).model == "bge-m3"


def test_the_key_comes_from_the_environment_and_stays_out_of_the_run(
    server: ForeignServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    server.behaviour = "wants a key"
    record = record_step(at(server.url, runs_dir=str(tmp_path)), "step4")
    assert record.trials[0].status == "done", record.trials[0].reason
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_nobody_there_is_exit_code_two(tmp_path: Path) -> None:
    file = tmp_path / "away.yaml"
    file.write_text(f'embed_engine: url\nembed_url: "http://127.0.0.1:{free_port()}"\nsteps: step1,step4\n')
    words = [sys.executable, "-m", "colo_lib.cli", "run", str(file)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLO_ENGINE_PYTHON": sys.executable}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert "no embedding server answers there" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "runs").exists()


def test_a_server_that_dies_fails_its_trial_and_is_not_ours_to_start(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.foreign_server", "works", str(port)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: local_pid(url) == process.pid)
        threading.Timer(1.5, process.kill).start()
        with pytest.raises(StepFailed, match=r"not to be reached|ended: start it again"):
            record_step(at(url, runs_dir=str(tmp_path), window_s=60.0), "step4")
    finally:
        process.kill()
        process.wait()


def test_it_is_never_ended_by_us(server: ForeignServer, tmp_path: Path) -> None:
    with runtime_folder() as runtime:
        engines = Engines(specs(at(server.url)).engines, runtime, tmp_path)
        handles = engines.start(want_gen=False, want_embed=True)
        assert from_plain(handles.plain()) == handles
        engines.stop()
    assert look_at_url(specs(at(server.url)).engines.embed).pid == os.getpid()


def test_what_is_in_flight_at_the_end_is_waited_for(server: ForeignServer, tmp_path: Path) -> None:
    with runtime_folder() as runtime:
        engines = Engines(specs(at(server.url)).engines, runtime, tmp_path)
        handles = engines.start(want_gen=False, want_embed=True)
        record = run_trial(specs(at(server.url)).trial, handles, tmp_path / "step4" / "trial-1", 1)
        engines.stop()
    rows = pq.read_table(tmp_path / "step4/trial-1/embed.parquet").to_pandas()
    over_the_edge = rows[(rows["started_ns"] < record.window_end_ns) & (rows["done_ns"] > record.window_end_ns)]
    assert len(over_the_edge) == IN_FLIGHT
    answered = [body for body in server.asked if len(body["input"]) == BATCH]
    assert wait_until(lambda: len(rows) == len(answered)), (len(rows), len(answered))


def test_a_process_that_cannot_be_seen_is_told_and_proves_nothing(server: ForeignServer) -> None:
    embed = look_at_url(specs(at(server.url)).engines.embed)
    assert local_pid("http://192.0.2.1:80") is None
    away = Handles("key", os.getpid(), None, (type(embed)(**vars(embed) | {"pid": None}),))
    assert away.pids() == {"gen": [], "embed": []}
    away.check_alive()
    for step, shared in (("step2", True), ("step3", True), ("step4", False)):
        place = placement_of(step, at(server.url, device="cuda", devices="0"))
        assert "is not proved" in str(unproved(place, away))
        if not shared:
            refuse_unproved(place, away)
            continue
        with pytest.raises(StepFailed, match=r"^void: .*is not proved.*embed_engine: vllm"):
            refuse_unproved(place, away)


def test_a_process_on_another_gpu_shares_nothing(server: ForeignServer, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Handles("key", os.getpid(), None, (look_at_url(specs(at(server.url)).engines.embed),))
    place = placement_of("step2", at(server.url, device="cuda", devices="0"))
    for listed, refused in ((os.getpid(), False), (1, True)):
        rows = [GpuRow(index=0, compute_processes=(GpuProcess(listed, None),))]
        monkeypatch.setattr(embed_proof, "look_at_gpus", lambda rows=rows: GpuLook("ok", gpus=rows))
        if refused:
            with pytest.raises(StepFailed, match=r"^void: mps: NVML lists .* on none of the step's GPUs \(0\)"):
                refuse_unproved(place, here)
        else:
            refuse_unproved(place, here)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "step1,step3"}, "take turns by being stopped"),
        ({"steps": "configB", "devices": "0,1"}, "devices of its own"),
    ],
)
def test_steps_that_a_server_at_a_url_cannot_do_are_refused(
    server: ForeignServer, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    from colo_lib.record.run_folder import begin_run

    with pytest.raises(InputError, match=sentence):
        begin_run(at(server.url, runs_dir=str(tmp_path / "runs"), **changes), say=lambda _: None)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_url": ""},
        {"embed_engine": "vllm"},
        {"embed_url": "localhost:80"},
        {"embed_pacing": "duty"},
        {"embed_micro_batch_size": 2},
        {"capture_s": 1.0},
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"embed_|capture_s"):
        at("http://127.0.0.1:1", **changes)


def test_engines_are_shared_by_what_they_are_made_of() -> None:
    loop, other = (specs(check({"embed_concurrency": n}, "test")).engines.embed for n in (1, 2))
    assert loop == other, "the loop has no requests in flight"
    one, two = (specs(check({"embed_engine": "vllm", "embed_concurrency": n}, "test")) for n in (1, 2))
    assert one.engines.embed != two.engines.embed
    assert [spec.trial.load.embed.concurrency for spec in (one, two) if spec.trial.load.embed] == [1, 2]
    assert all(a != b for a, b in itertools.pairwise([loop, one.engines.embed]))


def test_requests_that_are_due_are_sent_however_busy_the_server_is(server: ForeignServer, tmp_path: Path) -> None:
    demand = {"embed_arrivals": "poisson", "embed_rate": 240.0, "slo_embed_batch_ms": 3000.0}
    record = record_step(at(server.url, runs_dir=str(tmp_path), window_s=1.5, **demand), "step4")
    [trial] = record.trials
    assert trial.status == "done", trial.reason
    assert trial.demand is not None
    asked = trial.demand["embed"]
    assert (asked.arrivals, asked.rate) == ("poisson", pytest.approx(240.0))
    rows = pq.read_table(record.folder / "steps/step4/trial-1/embed.parquet").to_pandas()
    inside = rows["started_ns"].between(trial.window_start_ns, trial.window_end_ns, inclusive="left")
    # Every request that was due in the window was waited for, and counts from then.
    assert inside.sum() == asked.due == pytest.approx(120, abs=6 * 120**0.5)
    times = itertools.islice(due_times("poisson", 80.0, "1/embed/trial-1"), len(rows))
    begun = np.sort(rows["started_ns"].to_numpy())
    assert np.diff(begun[:60]) / 1e9 == pytest.approx(np.diff(list(times))[:59], abs=1e-6)


def test_a_server_that_fails_under_a_demand_fails_the_trial(server: ForeignServer, tmp_path: Path) -> None:
    params = at(server.url, runs_dir=str(tmp_path), embed_arrivals="constant", embed_rate=300.0, window_s=5.0)
    threading.Timer(1.0, lambda: setattr(server, "behaviour", "busy")).start()
    with pytest.raises(StepFailed, match="HTTP 503"):
        record_step(params, "step4")
