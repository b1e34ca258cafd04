"""The real Nsight Systems, the real engines, on cores: what the stand-in must be like."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from colo_lib.launch.exec_under_profiler import LEFT_BEHIND
from colo_lib.nsys import commands
from colo_lib.nsys.capture import events_by_pid
from colo_lib.paths import CAPTURE, capture_folder
from colo_lib.record.captures import record_captures
from colo_lib.record.run_folder import OpenRun
from tests.launch.test_faults import nano
from tests.processes import token_carriers

pytestmark = [pytest.mark.nsys, pytest.mark.engine]


@pytest.fixture
def binary() -> Path:
    found = commands.find_nsys()
    if found is None:
        pytest.skip("no nsys on PATH")
    return found


def leftovers() -> set[Path]:
    return {*Path("/tmp").glob(Path(LEFT_BEHIND).name + "*"), *Path("/dev/shm").glob("*NSys*")}


def test_one_session_holds_server_engine_core_and_embedder(binary: Path, tmp_path: Path, engine_python: Path) -> None:
    before, params, said = leftovers(), nano(capture_s=1.5, steps="step1,step2,step3"), list[str]()
    steps = ["step1", "step2", "step3"]
    assert record_captures(OpenRun(tmp_path, params), steps, said.append) == []
    told = {step: json.loads((capture_folder(tmp_path, step) / CAPTURE).read_text()) for step in steps}
    # One launch for all three: the same processes in each.
    assert len({json.dumps([one["pids"], one["command"]]) for one in told.values()}) == 1
    for step, record in told.items():
        export = capture_folder(tmp_path, step) / record["exports"][0]
        events = events_by_pid(export, on_gpu=False)
        gen, embed = record["pids"]["gen"], record["pids"]["embed"]
        assert len([pid for pid in gen if events.get(pid, 0) > 50]) >= 2, "the server and its engine core"
        assert step == "step1" or events[embed[0]] > 0
        with closing(sqlite3.connect(export)) as database:
            (utc_ns,) = database.execute("SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME").fetchone()
            first, last = database.execute("SELECT MIN(start), MAX(end) FROM OSRT_API").fetchone()
        # The clock pair puts the trace's own times on ours: they cover the window.
        to_monotonic = utc_ns - record["clock"]["utc_ns"] + record["clock"]["monotonic_ns"]
        start_ns, end_ns = record["window_ns"]
        assert first + to_monotonic < start_ns + 200_000_000
        assert last + to_monotonic > end_ns - 200_000_000
    assert leftovers() == before
    assert not [line for line in token_carriers().values() if "nsys" in line]
    assert os.listdir(tmp_path / "logs" / "captures")
