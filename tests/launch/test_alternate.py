"""Strict turns, shown by two real processes that write down when they ran."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from colo_lib.errors import StepFailed
from colo_lib.launch import load as turns_module
from colo_lib.launch.alternate import WorkloadGroups, stat
from colo_lib.launch.child import Child
from colo_lib.launch.engines import Handles
from colo_lib.launch.load import ALTERNATE, start_alternator
from tests.processes import wait_until

BUSY = """
import array, sys, time
stamps = array.array("q")
file = open(sys.argv[1], "wb", buffering=0)
while True:
    file.write(time.monotonic_ns().to_bytes(8, "little"))
    time.sleep(0.0005)
"""


def busy(tmp_path: Path, name: str) -> Child:
    return Child(name, [sys.executable, "-c", BUSY, str(tmp_path / name)], tmp_path / f"{name}.log", grace_s=0.5)


def test_never_both(tmp_path: Path) -> None:
    tenants = [busy(tmp_path, "gen"), busy(tmp_path, "embed")]
    out = tmp_path / "slices.txt"
    command = [sys.executable, str(ALTERNATE), "--slice-ms", "20", "--out", str(out)]
    for child in tenants:
        assert wait_until(lambda child=child: (tmp_path / child.name).exists())
        command += [f"--{child.name}", str(child.group)]
    began = time.monotonic_ns()
    alternator = Child("alternator", command, tmp_path / "alternator.log")
    time.sleep(1.5)
    alternator.stop()
    # After the last turn both run again.
    assert wait_until(lambda: all(stat(child.pid)[0] not in "Tt" for child in tenants))
    for child in tenants:
        child.stop()
    turns = [line.split() for line in out.read_text().splitlines()]
    assert len(turns) > 10, alternator.tail()
    assert [name for name, _, _ in turns] == ["gen", "embed"] * (len(turns) // 2) + ["gen"] * (len(turns) % 2)
    starts, ends = (np.array([int(turn[i]) for turn in turns]) for i in (1, 2))
    assert (starts[1:] >= ends[:-1]).all()
    for child in tenants:
        stamps = np.fromfile(tmp_path / child.name, dtype="<i8")
        inside = stamps[(stamps > starts[0]) & (stamps < ends[-1]) & (stamps > began)]
        mine = [(s, e) for (name, _, _), s, e in zip(turns, starts, ends, strict=True) if name == child.name]
        ran = [any(s <= stamp <= e for s, e in mine) for stamp in inside]
        assert len(ran) > 20
        assert all(ran), f"{child.name} ran outside its turns"


def test_a_killed_tenant_ends_the_turns_and_frees_the_other(tmp_path: Path) -> None:
    gen, embed = busy(tmp_path, "gen"), busy(tmp_path, "embed")
    command = [sys.executable, str(ALTERNATE), "--slice-ms", "20", "--out", str(tmp_path / "out")]
    command += ["--gen", str(gen.group), "--embed", str(embed.group)]
    alternator = Child("alternator", command, tmp_path / "alternator.log")
    time.sleep(0.3)
    os.kill(gen.pid, signal.SIGKILL)
    assert wait_until(lambda: not alternator.running())
    assert alternator.exit_code() != 0
    assert wait_until(lambda: stat(embed.pid)[0] not in "Tt")
    for child in (alternator, gen, embed):
        child.stop()


def test_hold_names_what_does_not_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("colo_lib.launch.alternate.STOP_DEADLINE_S", 0.3)
    child = busy(tmp_path, "gen")
    groups = WorkloadGroups("gen", [child.group])
    monkeypatch.setattr(groups, "send", lambda number: None)
    with pytest.raises(TimeoutError, match=f"gen did not stop.*{child.pid}"):
        groups.hold()
    child.stop()


def test_an_alternator_that_does_not_begin_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "alternate.py"
    slow.write_text("import time; print('still loading', flush=True); time.sleep(600)")
    monkeypatch.setattr(turns_module, "ALTERNATE", slow)
    monkeypatch.setattr(turns_module, "BEGIN_TIMEOUT_S", 2.0)
    handles = Handles("key", os.getpid(), None, ())
    with ExitStack() as stack, pytest.raises(StepFailed, match=r"the alternator did not start within 2 s"):
        start_alternator(50.0, handles, tmp_path, tmp_path, stack)
