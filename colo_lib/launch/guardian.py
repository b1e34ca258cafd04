"""A small supervisor: runs one command and lets nothing of it outlive the process that asked for it.

Standard library only, run as a file by any Python 3.11+:

    python guardian.py --log FILE [--cpus 0,1] [--nice N] [--grace S] [--same-session] -- COMMAND …

Its standard input is the tie to its owner: when that pipe closes, for whatever reason (the owner said so,
ended, or was killed with SIGKILL), the command's whole tree is ended. It is a child subreaper, so children
whose parents died (vLLM's engine core after its API server was killed) come to it and are ended too.
A byte in that pipe says that the command is up: what it has of shared memory is noted, and removed at the end.
What it says on standard output, a line each: `pid N`, `noted N` for such a byte, `exit CODE` (negative: the signal).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_S = 0.02
SHARED_MEMORY = b"/dev/shm/"
# Python's own (vLLM's message queues, semaphores), NCCL's, torch's, those of vLLM's ranks on cores: made for one group
# of processes, of no use to another.
SEGMENTS = (b"psm_", b"nccl-", b"torch_", b"vllm_dist_", b"sem.mp-")


def prctl(option: int, value: int) -> None:
    """Linux prctl(2); a failure is raised as OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def descendants(root: int) -> list[int]:
    """Pids of every living process below `root`, read from /proc; zombies are left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(name))
    pids, frontier = [], [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        pids += below
        frontier += below
    return pids


def send(pids: list[int], *signals: int) -> None:
    """Each signal to each pid; one that is gone is passed over."""
    for number in signals:
        for pid in pids:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue


def reap() -> None:
    """Collect every ended child, adopted ones too."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_tree(grace_s: float) -> None:
    """SIGTERM to everything below this process, then after `grace_s` SIGKILL, until nothing is left."""
    me = os.getpid()
    # A stopped process does not handle SIGTERM before it is continued.
    send(descendants(me), signal.SIGTERM, signal.SIGCONT)
    deadline = time.monotonic() + grace_s
    while descendants(me) and time.monotonic() < deadline:
        reap()
        time.sleep(POLL_S)
    while left := descendants(me):
        send(left, signal.SIGKILL)
        reap()
        time.sleep(POLL_S)
    reap()


def mapped(pids: Iterable[int]) -> set[bytes]:
    """Shared-memory segments of the kinds in `SEGMENTS` that one of these processes maps, as paths."""
    paths = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                paths |= {line.split(None, 5)[5].strip() for line in maps if SHARED_MEMORY in line}
        except OSError:
            continue
    return {path for path in paths if path.removeprefix(SHARED_MEMORY).startswith(SEGMENTS)}


def remove_segments(noted: set[bytes], since_s: float) -> None:
    """Remove what a tree that is gone had noted, was made after `since_s` (Unix time), and nobody maps any more.

    Python's resource tracker does the same, unless it is killed together with the tree that it serves.
    """
    if not noted:
        return
    for path in noted - mapped(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if os.stat(path).st_ctime >= since_s:
                os.unlink(path)


def prepare_child(cpus: list[int], nice: int) -> None:
    """In the child, before the command: die with the guardian; cores and niceness."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if cpus:
        os.sched_setaffinity(0, cpus)
    if nice:
        os.nice(nice)


def wait_for_end(child: subprocess.Popen[bytes], noted: set[bytes]) -> int | None:
    """The command's exit code, or None when the owner closed the pipe or told us to stop first.

    Segments that the tree maps when the owner asks for it are added to `noted`.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    pidfd = os.pidfd_open(child.pid)
    while True:
        ready = select.select([sys.stdin.fileno(), wake_read, pidfd], [], [])[0]
        if pidfd in ready:
            return child.wait()
        if wake_read in ready or not os.read(sys.stdin.fileno(), 64):
            return None
        noted |= mapped(descendants(os.getpid()))
        print(f"noted {len(noted)}", flush=True)


def main(argv: list[str]) -> int:
    """Run the command under guard; the exit code is the command's, or 143 when it was ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", required=True)
    parser.add_argument("--cpus", default="")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--same-session", action="store_true", help="give the command a process group alone")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    cpus = [int(core) for core in options.cpus.split(",") if core]
    noted, began_s = set[bytes](), time.time()
    with open(options.log, "ab", buffering=0) as log:
        child = subprocess.Popen(
            options.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=not options.same_session,
            process_group=0 if options.same_session else None,
            preexec_fn=lambda: prepare_child(cpus, options.nice),
        )
    print(f"pid {child.pid}", flush=True)
    code: int | None = None
    try:
        code = wait_for_end(child, noted)
    finally:
        noted |= mapped(descendants(os.getpid()))
        end_tree(options.grace if code is None else 0.0)
        remove_segments(noted, began_s)
    # The owner may be gone, and with it the other end of the pipe.
    with contextlib.suppress(OSError):
        print(f"exit {code if code is not None else 'stopped'}", flush=True)
    return 143 if code is None else code & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
