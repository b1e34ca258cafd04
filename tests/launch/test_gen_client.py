"""The load client against a server that misbehaves in the ways real ones do."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from colo_lib.child_environment import package_environment
from colo_lib.launch.arrivals import due_times
from colo_lib.launch.child import Child
from colo_lib.launch.rpc import ClientJob, Handle, answers, call
from tests.processes import wait_until

TOKENS = 6
GAP_S = 0.01
SLOW_S = 0.3


class Server(ThreadingHTTPServer):
    """Streams `TOKENS` tokens a request unless `behaviour` says otherwise; keeps what it was asked."""

    daemon_threads = True
    behaviour = "works"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves mid-stream is no error here."""


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.add(self.headers.get("Authorization"))
        if self.server.behaviour == "busy":
            self.send_error(503, "engine overloaded")
            return
        self.send_response(200)
        self.end_headers()
        sent = TOKENS // 2 if self.server.behaviour == "cut" else TOKENS
        for number in range(0, sent, 2):
            # Two tokens in one event: the engine may bundle them.
            event = {"choices": [{"text": "", "token_ids": [number, number + 1]}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            time.sleep(SLOW_S if self.server.behaviour == "slow" else GAP_S)
        if self.server.behaviour != "cut":
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Handle]:
    job = ClientJob(
        socket=str(Path("/tmp") / f"colo-test-{time.monotonic_ns()}.sock"), port=server.server_port, model="gen",
        concurrency=3, prompt_tokens=5, output_tokens=TOKENS, vocab_size=100, seed=1,
    )  # fmt: skip
    command = [sys.executable, "-m", "colo_lib.launch.gen_client", json.dumps(asdict(job))]
    child = Child("client", command, tmp_path / "client.log", env=package_environment({"COLO_GEN_KEY": "k"}))
    handle = Handle(job.socket, child.pid, str(child.log))
    assert wait_until(lambda: answers(handle)), child.tail()
    yield handle
    child.stop()
    Path(job.socket).unlink(missing_ok=True)


def frames(handle: Handle, folder: Path) -> tuple[Any, Any]:
    call(handle, "stop", to=str(folder))
    return pq.read_table(folder / "gen.parquet").to_pandas(), pq.read_table(folder / "requests.parquet").to_pandas()


def test_every_token_has_its_time(server: Server, client: Handle, tmp_path: Path) -> None:
    before = time.monotonic_ns()
    call(client, "start")
    assert wait_until(lambda: call(client, "status")["tokens"] >= 60)
    gen, requests = frames(client, tmp_path)
    done = requests[requests["done_ns"].notna()]
    assert len(done) >= 6
    assert (done["output_tokens"] == TOKENS).all()
    assert gen["arrival_ns"].between(before, time.monotonic_ns()).all()
    for request_id, row in done.set_index("request_id").iterrows():
        mine = gen[gen["request_id"] == request_id]
        assert mine["sequence_number"].tolist() == list(range(TOKENS))
        assert mine["arrival_ns"].is_monotonic_increasing
        assert row["submitted_ns"] < row["first_token_ns"] == mine["arrival_ns"].iloc[0] <= row["done_ns"]
    # Three tokens' worth of pauses lie between a request's first and last token.
    spread = (done["done_ns"] - done["first_token_ns"]) / 1e9
    assert (spread > 2 * GAP_S).all()


def test_the_frames_are_written_without_pandas(server: Server, client: Handle, tmp_path: Path) -> None:
    call(client, "start")
    assert wait_until(lambda: call(client, "status")["tokens"] > 2 * TOKENS)
    call(client, "stop", to=str(tmp_path))
    assert len(pq.read_table(tmp_path / "gen.parquet"))
    # Its import would keep every trial for a quarter of a second.
    assert not [held.path for held in psutil.Process(client.pid).memory_maps() if "/pandas/" in held.path]


def test_the_loop_is_closed_at_its_concurrency(server: Server, client: Handle, tmp_path: Path) -> None:
    call(client, "start")
    assert wait_until(lambda: call(client, "status")["tokens"] >= 60)
    _, requests = frames(client, tmp_path)
    begun = [(t, 1) for t in requests["submitted_ns"]]
    ended = [(t, -1) for t in requests["done_ns"].dropna()]
    flight = peak = 0
    for _, change in sorted(begun + ended):
        flight += change
        peak = max(peak, flight)
    assert peak == 3


def test_prompts_differ_and_the_key_travels_in_a_header(server: Server, client: Handle, tmp_path: Path) -> None:
    call(client, "start")
    assert wait_until(lambda: len(server.asked) >= 10)
    frames(client, tmp_path)
    prompts = [tuple(body["prompt"]) for body in server.asked]
    assert len(set(prompts)) == len(prompts)
    assert all(body["ignore_eos"] and body["stream"] and body["max_tokens"] == TOKENS for body in server.asked)
    assert server.keys == {"Bearer k"}


@pytest.mark.parametrize(("behaviour", "told"), [("busy", "503"), ("cut", "stream ended after 4 of 6")])
def test_failures_are_recorded_and_never_retried(
    server: Server, client: Handle, tmp_path: Path, behaviour: str, told: str
) -> None:
    server.behaviour = behaviour
    call(client, "start")
    assert wait_until(lambda: call(client, "status")["failed_requests"] >= 3)
    _, requests = frames(client, tmp_path)
    failed = requests[requests["error"].notna()]
    assert failed["error"].str.contains(told).all()
    assert failed["done_ns"].isna().all()
    assert len(server.asked) == len(requests), "a request was sent twice"


def test_starting_again_starts_clean(server: Server, client: Handle, tmp_path: Path) -> None:
    for _ in range(2):
        call(client, "start")
        assert wait_until(lambda: call(client, "status")["tokens"] >= 12)
        gen, requests = frames(client, tmp_path)
        assert requests["request_id"].tolist() == list(range(len(requests)))
        assert len(gen) == requests["output_tokens"].sum()


@contextmanager
def team(server: Server, tmp_path: Path, **changes: Any) -> Iterator[Handle]:
    job = ClientJob(
        socket=str(Path("/tmp") / f"colo-test-{time.monotonic_ns()}.sock"), port=server.server_port, model="gen",
        concurrency=5, prompt_tokens=5, output_tokens=TOKENS, vocab_size=1000, seed=1, **changes,
    )  # fmt: skip
    module = "gen_team" if job.processes > 1 else "gen_client"
    command = [sys.executable, "-m", f"colo_lib.launch.{module}", json.dumps(asdict(job))]
    child = Child("client", command, tmp_path / "client.log", env=package_environment({"COLO_GEN_KEY": "k"}))
    handle = Handle(job.socket, child.pid, str(child.log))
    try:
        assert wait_until(lambda: answers(handle)), child.tail()
        yield handle
    finally:
        child.stop()
        for left in Path("/tmp").glob(f"{Path(job.socket).name}*"):
            left.unlink(missing_ok=True)


def test_several_processes_load_as_one(server: Server, tmp_path: Path) -> None:
    with team(server, tmp_path, processes=2) as handle:
        members = psutil.Process(handle.pid).children(recursive=True)
        call(handle, "start")
        assert wait_until(lambda: call(handle, "status")["tokens"] >= 150)
        status = call(handle, "status")
        assert status["silent"] == 0
        assert len(status["cpu"]) == 3  # two that load, and the one that asks them
        gaps = call(handle, "gaps", since=0)
        assert gaps["seen"] == len(gaps["gaps_ms"]) > 50
        news = call(handle, "gaps", since=gaps["seen"])
        assert news["seen"] - gaps["seen"] == len(news["gaps_ms"])
        gen, requests = frames(handle, tmp_path)
        assert list(tmp_path.glob("client-*")) == []
    assert wait_until(lambda: not any(member.is_running() for member in members))
    # Every slot of the five was loaded, and both processes' requests have numbers and prompts of their own.
    assert {number % 2 for number in requests["request_id"]} == {0, 1}
    assert requests["request_id"].is_unique
    prompts = [tuple(body["prompt"]) for body in server.asked]
    assert len(set(prompts)) == len(prompts) >= requests["done_ns"].notna().sum() > 10
    begun = [(t, 1) for t in requests["submitted_ns"]]
    flight = [change for _, change in sorted(begun + [(t, -1) for t in requests["done_ns"].dropna()])]
    assert max(itertools.accumulate(flight)) == 5
    assert gen["arrival_ns"].is_monotonic_increasing
    assert requests["submitted_ns"].is_monotonic_increasing
    told = requests.set_index("request_id")["output_tokens"]
    assert gen.groupby("request_id").size().to_dict() == told[told > 0].to_dict()


def test_a_process_that_is_gone_fails_the_load(server: Server, tmp_path: Path) -> None:
    with team(server, tmp_path, processes=2) as handle:
        call(handle, "start")
        assert wait_until(lambda: call(handle, "status")["tokens"] >= 20)
        psutil.Process(handle.pid).children()[0].kill()
        assert wait_until(lambda: call(handle, "status")["error"] is not None)
        assert "a process of the load client does not answer" in call(handle, "status")["error"]


def test_first_outputs_have_random_lengths_the_same_for_the_same_seed(server: Server, tmp_path: Path) -> None:
    firsts = []
    for number, processes in enumerate((1, 2, 1)):
        server.asked.clear()
        folder = tmp_path / str(number)
        folder.mkdir()
        with team(server, folder, stagger=True, processes=processes) as handle:
            call(handle, "start")
            assert wait_until(lambda: call(handle, "status")["tokens"] >= 60)
            frames(handle, folder)
        firsts.append(sorted(body["max_tokens"] for body in server.asked[:5]))
        assert {body["max_tokens"] for body in server.asked[5:]} == {TOKENS}
    assert firsts[0] == firsts[1] == firsts[2]
    assert all(2 <= length <= TOKENS for length in firsts[0])
    assert len(set(firsts[0])) > 1


@pytest.mark.parametrize("processes", [1, 2])
def test_requests_that_are_due_do_not_wait_for_each_other(server: Server, tmp_path: Path, processes: int) -> None:
    server.behaviour = "slow"
    with team(server, tmp_path, processes=processes) as handle:
        call(handle, "start", arrivals="poisson", rate=40.0, draw="1/gen/trial-1")
        assert wait_until(lambda: len(server.asked) >= 40)
        oldest_ns = call(handle, "status")["oldest_due_ns"]
        assert oldest_ns is None or oldest_ns <= time.monotonic_ns()
        _, requests = frames(handle, tmp_path)
    due = np.array(list(itertools.islice(due_times("poisson", 40.0, "1/gen/trial-1"), len(requests))))
    # Each request's time is the one at which it was due, whoever sent it and however busy the server was.
    requests = requests.iloc[:35]  # the processes do not stop at one moment
    apart = np.diff(requests["submitted_ns"]) / 1e9
    assert apart == pytest.approx(np.diff(due)[:34], abs=1e-6)
    assert requests["request_id"].tolist() == list(range(35))
    ends = requests["done_ns"].fillna(2**62)
    flight = [((requests["submitted_ns"] <= at) & (ends > at)).sum() for at in requests["submitted_ns"]]
    assert max(flight) > 5  # more at once than a closed loop's five
