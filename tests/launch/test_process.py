"""Guarded processes: real trees, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.alternate import stat
from colo_lib.launch.child import Child, carriers
from tests.processes import token_carriers, wait_until

# A leader with a child in its group, one in a session of its own, and one that ignores SIGTERM.
TREE = ["bash", "-c", "sleep 300 & setsid sleep 301 & bash -c \"trap '' TERM; sleep 302; sleep 303\" & echo up; wait"]


def tree(tmp_path: Path, grace_s: float = 0.5, peer: bool = False) -> Child:
    child = Child("tree", TREE, tmp_path / "tree.log", grace_s=grace_s, peer=peer)
    assert wait_until(lambda: len(carriers(child.token)) >= 6), child.tail()
    return child


@pytest.mark.parametrize("peer", [False, True], ids=["own session", "peer"])
def test_stop_ends_the_whole_tree(tmp_path: Path, peer: bool) -> None:
    child = tree(tmp_path, peer=peer)
    child.stop()
    assert carriers(child.token) == []


@pytest.mark.parametrize("peer", [False, True], ids=["own session", "peer"])
def test_stop_ends_a_stopped_tree(tmp_path: Path, peer: bool) -> None:
    child = tree(tmp_path, peer=peer)
    os.killpg(child.group, signal.SIGSTOP)
    child.stop()
    assert carriers(child.token) == []


def test_peers_share_a_session_and_are_stopped_one_by_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        peers = [Child(name, ["sleep", "300"], tmp_path / name, grace_s=0.5, peer=True) for name in ("gen", "embed")]
        for peer in peers:
            stack.callback(peer.stop)
        # The scheduler shares cores between sessions first (sched(7), autogroup): within one they are equals.
        assert {os.getsid(peer.pid) for peer in peers} == {os.getsid(0)}
        assert [os.getpgid(peer.pid) for peer in peers] == [peer.group for peer in peers]
        assert os.getpgid(0) not in {peer.group for peer in peers}, "a signal to them would meet us"
        os.killpg(peers[0].group, signal.SIGSTOP)
        assert wait_until(lambda: stat(peers[0].pid)[0] == "T")
        assert wait_until(lambda: stat(peers[1].pid)[0] == "S")
        alone = Child("alone", ["sleep", "300"], tmp_path / "alone", grace_s=0.5)
        stack.callback(alone.stop)
        assert os.getsid(alone.pid) == alone.pid


@pytest.mark.parametrize("peer", [False, True], ids=["own session", "peer"])
def test_killed_leader_takes_its_orphans_along(tmp_path: Path, peer: bool) -> None:
    child = tree(tmp_path, peer=peer)
    os.kill(child.pid, signal.SIGKILL)
    assert wait_until(lambda: carriers(child.token) == [])
    assert wait_until(lambda: not child.running())  # a process that ends has no environment before it has ended
    child.stop()


@pytest.mark.parametrize("peer", [False, True], ids=["own session", "peer"])
def test_killed_guardian_is_made_up_for(tmp_path: Path, peer: bool) -> None:
    child = tree(tmp_path, peer=peer)
    os.kill(child.guardian_pid, signal.SIGKILL)
    assert wait_until(lambda: not child.running())
    child.stop()
    assert carriers(child.token) == []


@pytest.mark.parametrize("peer", [False, True], ids=["own session", "peer"])
def test_killed_owner_leaves_nothing(tmp_path: Path, peer: bool) -> None:
    script = (
        "import sys, time; from pathlib import Path; from colo_lib.launch.child import Child\n"
        f"Child('tree', {TREE!r}, Path({str(tmp_path / 'tree.log')!r}), grace_s=0.5, peer={peer})\n"
        "print('up', flush=True); time.sleep(300)"
    )
    before = set(token_carriers())
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    assert wait_until(lambda: len(set(token_carriers()) - before) >= 6)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert wait_until(lambda: set(token_carriers()) <= before)


# Two processes that share a segment, without the tracker that would remove it; says its name when both have it.
SHARING = """
import os, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
segment = shared_memory.SharedMemory(create=True, size=4096)
if os.fork():
    print("/dev/shm/" + segment.name, flush=True)
time.sleep(300)
"""


def sharing(tmp_path: Path) -> tuple[Child, Path]:
    """Such a tree, and the segment's file."""
    child = Child("sharing", [sys.executable, "-c", SHARING], tmp_path / "log", grace_s=0.5)
    assert wait_until(lambda: child.tail().startswith("/dev/shm/psm_")), child.tail()
    child.note_shared_memory()
    return child, Path(child.tail())


@pytest.mark.parametrize("victims", ["none", "leader", "both"])
def test_shared_memory_goes_with_the_tree(tmp_path: Path, victims: str) -> None:
    child, segment = sharing(tmp_path)
    assert segment.exists()
    both = [pid for pid in carriers(child.token) if pid != child.guardian_pid]
    for pid in {"none": [], "leader": [child.pid], "both": both}[victims]:
        os.kill(pid, signal.SIGKILL)
    child.stop()
    assert not segment.exists()


def test_shared_memory_that_others_use_stays(tmp_path: Path) -> None:
    child, segment = sharing(tmp_path)
    own = shared_memory.SharedMemory(segment.name)
    child.stop()
    assert segment.exists()
    own.close()
    own.unlink()


def test_exit_and_last_words_are_told(tmp_path: Path) -> None:
    child = Child("short", ["bash", "-c", "echo last words; exit 7"], tmp_path / "log")
    assert wait_until(lambda: not child.running())
    assert child.exit_code() == 7
    assert child.tail() == "last words"
    child.stop()


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no-such-command"):
        Child("absent", ["/no-such-command"], tmp_path / "log")


def test_cores_and_niceness_reach_the_command(tmp_path: Path) -> None:
    script = "import os; print(os.sched_getaffinity(0), os.nice(0))"
    child = Child("cores", [sys.executable, "-c", script], tmp_path / "log", cpus=[0], nice=3)
    assert wait_until(lambda: not child.running())
    assert child.tail() == f"{{0}} {os.nice(0) + 3}"
    child.stop()


def test_limits_of_another_mechanism_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    monkeypatch.setenv("VLLM_API_KEY", "someone else's")
    environment = child_environment({"A": "1"})
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environment
    assert "VLLM_API_KEY" not in environment
    assert environment["A"] == "1"


def test_stop_twice_is_harmless(tmp_path: Path) -> None:
    child = Child("twice", ["sleep", "300"], tmp_path / "log", grace_s=0.5)
    child.stop()
    child.stop()
    assert carriers(child.token) == []


HOLDER = """
import multiprocessing, sys, time
from multiprocessing import shared_memory
multiprocessing.set_executable(sys.executable)
segment = shared_memory.SharedMemory(name=sys.argv[1], create=True, size=4096)
print(segment.name, flush=True)
time.sleep(600)
"""
KEEPER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("name", ["psm_{}", "vllm_dist_{}-tp:0-[0-1]-cpushm_0"])
def test_a_killed_guardian_leaves_no_shared_memory_of_the_orphans(tmp_path: Path, name: str) -> None:
    child = Child("gen", [sys.executable, "-c", KEEPER, HOLDER, name.format(os.getpid())], tmp_path / "log")
    assert wait_until(lambda: (tmp_path / "log").read_text().startswith(name[:4]))
    segment = Path("/dev/shm") / (tmp_path / "log").read_text().split()[0]
    assert segment.exists()
    os.kill(child.guardian_pid, signal.SIGKILL)
    assert wait_until(lambda: not child.running())
    child.stop()
    assert not segment.exists()
