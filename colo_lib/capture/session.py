"""One Nsight Systems session from launch to nothing left: both workloads below it, recorded only while asked.

What was seen with nsys 2024.2 and is relied on here: its agent is a child of our guardian (which adopts orphans), keeps
our environment's token and dies with either; all its files follow TMPDIR but a few, which are removed; `stop` waits
half a minute for a process that is stopped by SIGSTOP; ending the session leaves processes of other process groups
running, so the guardian ends them.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from colo_lib.capture import nsys
from colo_lib.errors import StepFailed
from colo_lib.launch.engines import Handles, from_plain
from colo_lib.launch.gen import KEY_NAME, run_key
from colo_lib.launch.loads import package_environment
from colo_lib.launch.logs import tail
from colo_lib.launch.models import resolve_models
from colo_lib.launch.placement import Placement
from colo_lib.launch.process import Child
from colo_lib.params import Params

HOST = "colo_lib.capture.host"
# Of our environment, what nsys or we change for its sake.
WRITTEN_OVER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "TMPDIR")
POLL_S = 0.1
START_S = 90.0
STOP_S = 300.0  # collects what every process buffered and imports it
EXPORT_S = 900.0
VERSION_S = 30.0
HOST_END_S = 30.0


def run_guarded(words: list[str], env: dict[str, str], log: Path, timeout_s: float) -> str:
    """Run one command of nsys to its end; returns what it said. Raises StepFailed naming it when it fails or hangs."""
    what = f"nsys {words[1]}" if len(words) > 1 else "nsys"
    before = log.stat().st_size if log.exists() else 0
    child = Child("nsys", words, log, env=env, grace_s=2.0)
    try:
        deadline = time.monotonic() + timeout_s
        while child.running():
            if time.monotonic() > deadline:
                raise StepFailed(f"{what} did not end within {timeout_s:g} s; its last lines:\n{tail(log)}")
            time.sleep(POLL_S)
    finally:
        child.stop()
    said = log.read_bytes()[before:].decode(errors="replace").replace("\r", "\n")
    if child.exit_code() != 0:
        raise StepFailed(f"{what} ended with exit code {child.exit_code()}; it said:\n{said[-2000:].strip()}")
    return said


class Session:
    """Owns the session and the engines below it; `close` always."""

    def __init__(self, binary: Path, params: Params, runtime: Path, logs: Path) -> None:
        self.binary, self.params, self.runtime, self.log = binary, params, runtime, logs / "nsys.log"
        self.logs = logs
        # A name of its own: nsys keeps those of sessions that were killed.
        self.name = f"colo-{secrets.token_hex(4)}"
        self.env = package_environment({"TMPDIR": str(runtime), KEY_NAME: run_key()})
        self.child: Child | None = None
        self.handles: Handles | None = None
        self.command: list[str] = []
        self.left_behind: list[str] = []
        logs.mkdir(parents=True, exist_ok=True)

    def version(self) -> str | None:
        """nsys's version; raises StepFailed when it does not even tell that."""
        return nsys.parse_version(run_guarded(nsys.version_command(self.binary), self.env, self.log, VERSION_S))

    def launch(self, placement: Placement, gen: bool, embed: bool, tick: Callable[[str], None]) -> Handles:
        """Start the wanted engines below nsys; raises StepFailed with the log's end when they do not come up."""
        out = self.runtime / "captured.json"
        out.unlink(missing_ok=True)
        models = resolve_models(self.params)
        # The host sees an allow-listed environment only: interpreters are resolved here.
        pythons = {"gen_python": str(models.gen_python), "embed_python": str(models.embed_python)}
        # COLO_TREE and SPT_NOENV are set by our guardian; the host must not take them for nsys's.
        known = [*self.env, "COLO_TREE", "SPT_NOENV"]
        job = {
            "out": str(out), "params": self.params.model_copy(update=pythons).model_dump(), "step": placement.step,
            "runtime": str(self.runtime), "logs": str(self.logs), "gen": gen, "embed": embed, "known": known,
            "originals": {name: os.environ.get(name) for name in WRITTEN_OVER},
        }  # fmt: skip
        host = [sys.executable, "-m", HOST, json.dumps(job)]
        settings = self.params.device, self.params.capture_graph_trace
        words = nsys.launch_command(self.binary, self.name, *settings, host)
        self.command = words[: -len(host)]
        self.child = Child("nsys", words, self.log, env=self.env, grace_s=10.0)
        told = self._wait_for(out, tick)
        self.left_behind = told["left_behind"]
        if "error" in told:
            raise StepFailed(f"under nsys: {told['error']}")
        self.handles = from_plain(told["handles"])
        return self.handles

    def _wait_for(self, out: Path, tick: Callable[[str], None]) -> dict[str, Any]:
        assert self.child is not None
        # Each engine has its own deadline inside; this one is for nsys itself.
        began, limit_s = time.monotonic(), 3 * self.params.ready_timeout_s + START_S
        while not out.exists():
            waited = time.monotonic() - began
            if not self.child.running() or waited > limit_s:
                raise StepFailed(f"nsys launch: the engines did not come up; its last lines:\n{self.child.tail()}")
            tick(f"engines start under nsys, {waited:.0f} s")
            time.sleep(POLL_S)
        told: dict[str, Any] = json.loads(out.read_text())
        return told

    def start(self, report: Path) -> bool:
        """Begin to record into `report` (without suffix); whether context switches are recorded too."""
        if self.params.device == "cuda":
            try:
                return nsys.context_switches_granted(self._tell(nsys.start_command, report, True, limit_s=START_S))
            except StepFailed:
                # Some drivers refuse the whole collection for lack of rights: the kernels are worth having alone.
                pass
        self._tell(nsys.start_command, report, False, limit_s=START_S)
        return False

    def stop(self) -> None:
        """End recording; the report is written when this returns."""
        self._tell(nsys.stop_command, limit_s=STOP_S)

    def export(self, report: Path, sqlite: Path) -> None:
        """A report as SQLite."""
        run_guarded(nsys.export_command(self.binary, report, sqlite), self.env, self.log, EXPORT_S)

    def _tell(self, command: Callable[..., list[str]], *arguments: Any, limit_s: float) -> str:
        return run_guarded(command(self.binary, self.name, *arguments), self.env, self.log, limit_s)

    def close(self) -> None:
        """End the engines, then nsys; nothing of either lives or lies about afterwards."""
        if self.child is None:
            return
        owner = self.handles.owner_pid if self.handles is not None else None
        if owner is not None and self.child.running():
            with suppress(ProcessLookupError):
                os.kill(owner, signal.SIGTERM)
            deadline = time.monotonic() + HOST_END_S
            while os.path.exists(f"/proc/{owner}") and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self.child.stop()
        # nsys leaves the semaphore for the process that it waited for when it was killed itself.
        waiters = Path("/dev/shm").glob(f"sem.NSys-process_waiter-{owner}-*")
        for file in [*map(Path, self.left_behind), *waiters]:
            with suppress(OSError):
                file.unlink()
        self.child = self.handles = None
