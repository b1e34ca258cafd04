"""Child processes that cannot outlive us: each runs under a guardian and carries a token of its owner.

Three nets, so that a SIGKILL to any one process leaves nothing: the guardian ends the tree when we go;
we end the tree when the guardian goes; and every process of a tree inherits `COLO_TREE=<token>` in its
environment, by which `sweep` finds what both would have missed.

`tail` says what a dead process's log tells of its end. `ProfilerLaunch` starts an engine below a profiler's launch
command of its own, where one session cannot hold all engines.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.guardian import mapped, remove_segments

GUARDIAN = Path(__file__).with_name("guardian.py")
TOKEN_NAME = "COLO_TREE"
# vLLM renames its processes; without this setproctitle would write over the environment that carries the token.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
WAIT_POLL_S = 0.05
LAST_LINES = 20
MOST_CAUSES = 5
READ_BYTES = 256 * 1024
# Said by every interpreter that ends in a hurry; it would push the cause out of sight.
NOISE = re.compile(r"nanobind: |^ - (leaked |\.\.\. skipped)|resource_tracker|^\s*warnings\.warn\(|^\s*$")
CAUSE = re.compile(r"\b\w*(Error|Exception)\b: |died unexpectedly|out of memory|Killed|Segmentation fault")
NOTES = "engine-{}.json"  # in the launcher's private folder, by the engine's name
START = Path(__file__).with_name("exec_under_profiler.py")


class Child:
    """One guarded command.

    `pid` is the command's own; it leads its own process group, which `SIGSTOP` and `SIGCONT` address through `group`,
    and a session of its own, unless it is a `peer` of others: peers stay in the session of who starts them. The output
    goes to `log`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cpus: Sequence[int] = (),
        nice: int = 0,
        grace_s: float = 5.0,
        peer: bool = False,
    ) -> None:
        self.name, self.log, self.grace_s = name, Path(log), grace_s
        self.token, self.began_s = secrets.token_hex(12), time.time()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        guardian = [sys.executable, "-I", str(GUARDIAN), "--log", str(self.log), "--grace", str(grace_s)]
        guardian += ["--cpus", ",".join(map(str, cpus)), "--nice", str(nice)]
        guardian += [*(["--same-session"] if peer else []), "--", *command]
        with open(self.log, "ab") as complaints:
            self._guardian = subprocess.Popen(
                guardian,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=dict(child_environment({}) if env is None else env) | {TOKEN_NAME: self.token} | KEEP_ENVIRONMENT,
                start_new_session=not peer,
                process_group=0 if peer else None,
            )
        assert self._guardian.stdout is not None
        first = self._guardian.stdout.readline().decode().split()
        if first[:1] != ["pid"]:
            self.stop()
            raise StepFailed(f"{name} could not be started: {command[0]!r} did not run\n{self.tail()}")
        self.pid = int(first[1])

    @property
    def group(self) -> int:
        """Process group of the command, for signals to all of it."""
        return self.pid

    @property
    def guardian_pid(self) -> int:
        """Pid of the guardian itself."""
        return self._guardian.pid

    def running(self) -> bool:
        """Whether both the guardian and the command live."""
        return self._guardian.poll() is None

    def exit_code(self) -> int | None:
        """The guardian's exit code (the command's low byte), None while it runs."""
        return self._guardian.poll()

    def note_shared_memory(self) -> None:
        """Have the guardian note what the tree maps now, so that it goes with the tree however that ends."""
        pipes = self._guardian.stdin, self._guardian.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        with suppress(OSError, ValueError):  # it has ended, or was told to
            os.write(pipes[0].fileno(), b"\n")
            pipes[1].readline()

    def tail(self) -> str:
        """What its output says of its end."""
        return tail(self.log)

    def stop(self) -> None:
        """End the whole tree; returns when nothing of it lives. Never raises for what is gone already."""
        if self._guardian.stdin is not None and not self._guardian.stdin.closed:
            self._guardian.stdin.close()
        try:
            self._guardian.wait(self.grace_s + 10.0)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()
        sweep(self.token, since_s=self.began_s)


def wait_for(condition: Callable[[], bool], child: Child, timeout_s: float, what: str) -> None:
    """Poll until the condition holds; raises StepFailed when the child ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not child.running() or time.monotonic() > deadline:
            raise StepFailed(f"{what} did not start within {timeout_s:g} s; its last lines:\n{child.tail()}")
        time.sleep(WAIT_POLL_S)


def carriers(token: str) -> list[int]:
    """Pids of the living processes whose environment carries `token` (ours to read: same user)."""
    needle = f"{TOKEN_NAME}={token}".encode()
    pids = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                carries = needle in environ.read().split(b"\0")
            if carries and not _is_zombie(int(name)):
                pids.append(int(name))
        except OSError:
            continue
    return pids


def _is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")


def sweep(token: str, timeout_s: float = 10.0, since_s: float = 0.0) -> list[int]:
    """SIGKILL every process that carries `token`; returns what is still there after `timeout_s`.

    Who tracks their shared memory is killed with them: what they map and was made after `since_s` (Unix time) goes too.
    """
    deadline, noted = time.monotonic() + timeout_s, set[bytes]()
    while (left := carriers(token)) and time.monotonic() < deadline:
        noted |= mapped(left)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.02)
    remove_segments(noted, since_s)
    return left


def tail(file: Path, lines: int = LAST_LINES) -> str:
    """The last `lines` lines of a text file without shutdown noise, led by earlier lines that name an error.

    Empty when the file cannot be read; at most the last 256 KiB are looked at.
    """
    try:
        with open(file, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - READ_BYTES))
            said = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line[:400] for line in said if not NOISE.search(line)]
    earlier, last = said[:-lines], said[-lines:]
    causes = list(dict.fromkeys(line for line in earlier if CAUSE.search(line)))[-MOST_CAUSES:]
    return "\n".join([*causes, "…", *last] if causes else last)


@dataclass(frozen=True)
class ProfilerLaunch:
    """`launch`: the profiler's words before the engine's; `environment`: what they need; `note`: who the engine is."""

    launch: tuple[str, ...]
    environment: Mapping[str, str]
    note: Path

    def around(
        self, command: Sequence[str], env: Mapping[str, str], shared: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """The command to start instead, and its environment.

        `shared`, what the sharing mechanism adds to `env`, is kept from the profiler: below an MPS client's
        variables its own look at the GPU would be one more client, which the proof of the mechanism rejects.
        """
        self.note.unlink(missing_ok=True)
        withheld = {name: env.get(name) for name in sorted({*shared, *self.environment})}
        start = [sys.executable, "-I", str(START), str(self.note), json.dumps(withheld)]
        outer = {name: value for name, value in env.items() if name not in withheld}
        return [*self.launch, *start, *command], outer | dict(self.environment)

    def engine_pid(self) -> int:
        """The engine's own process, below the profiler's; of an engine that has answered."""
        return int(json.loads(self.note.read_text())["pid"])
