"""Orders to an MPS control daemon through `nvidia-cuda-mps-control`, each under a deadline; its answers parsed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.steps import NEED_MPS

PROGRAM = "nvidia-cuda-mps-control"
CONTROL_TIMEOUT_S = 10.0
# A Unix socket's path holds 107 bytes and the daemon appends names of its own to the folder's.
MAX_PIPE_BYTES = 80
NO_DAEMON = re.compile(r"cannot find mps control daemon|failed to connect|no such file", re.IGNORECASE)
TROUBLE = re.compile(r"CUDA_ERROR|\berror\b|\bfailed\b|cannot|invalid", re.IGNORECASE)


class ControlFailed(StepFailed):
    """The control program answered with a failure, or not at all."""


@dataclass(frozen=True)
class Control:
    """One control daemon, addressed by its pipe folder."""

    pipe: Path
    log: Path

    def environment(self) -> dict[str, str]:
        """What the daemon, its clients and the control program need to find each other."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.pipe), "CUDA_MPS_LOG_DIRECTORY": str(self.log)}

    def ask(self, order: str, timeout_s: float = CONTROL_TIMEOUT_S) -> str:
        """The answer to one order, stripped.

        Raises ControlFailed when the program is missing, hangs, fails, or names an error: its exit code alone
        says nothing, it is 0 over CUDA errors too.
        """
        with tempfile.TemporaryFile() as answer:
            code = self._run(order, answer.fileno(), timeout_s)
            answer.seek(0)
            text = answer.read(1 << 20).decode(errors="replace").strip()
        if code is None:
            raise ControlFailed(
                f"{PROGRAM} did not answer {order!r} within {timeout_s:g} s: the daemon is wedged, or its server "
                "waits for clients of another user; run both workloads as one user, and look at nvidia-smi"
            )
        if code != 0 or TROUBLE.search(text):
            raise ControlFailed(f"{PROGRAM} {order!r} failed (exit code {code}): {text[-400:] or 'no message'}")
        return text

    def _run(self, order: str, output: int, timeout_s: float) -> int | None:
        # A file for the output: a daemon that inherits a pipe would keep us waiting for its end.
        process = subprocess.Popen(
            [program()],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=child_environment(self.environment()),
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(order.encode() + b"\n")
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    def servers(self) -> list[int]:
        """Pids of the daemon's MPS servers."""
        return parse_pids(self.ask("get_server_list"))

    def clients(self, server: int) -> list[int]:
        """Pids of the clients that a server has."""
        return parse_pids(self.ask(f"get_client_list {server}"))

    def status(self, server: int) -> str:
        """State of a server: INITIALIZING, ACTIVE, FAULT."""
        return self.ask(f"get_server_status {server}").upper()


def program() -> str:
    """Path of the control program; raises StepFailed when the driver brought none."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise StepFailed(
            f"mps: no {PROGRAM} on PATH: it comes with the NVIDIA driver (Debian: nvidia-cuda-mps, Ubuntu: "
            f"nvidia-compute-utils); without it leave {', '.join(NEED_MPS)} out of 'steps'"
        )
    return path


def parse_pids(text: str) -> list[int]:
    """One pid a line; raises ControlFailed for anything else, so that a message is never taken for an empty list."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(not line.isdecimal() for line in lines):
        raise ControlFailed(f"{PROGRAM} answered {text[:200]!r} where a list of pids was expected")
    return [int(line) for line in lines]


def check_pipe(pipe: Path) -> None:
    """Raises StepFailed when the daemon could not make its sockets in this folder."""
    length = len(os.fsencode(pipe))
    if length > MAX_PIPE_BYTES:
        raise StepFailed(
            f"mps: the pipe folder {pipe} is {length} bytes long; a socket's path holds 107 and the daemon adds its "
            f"own names: at most {MAX_PIPE_BYTES}"
        )
