"""The owner's side of an embedder that lives in vLLM's worker: give the thread its job, wait for it, take it away."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed
from colo_lib.launch.child import tail
from colo_lib.launch.embed_server import worker_job
from colo_lib.launch.inproc.names import files_of
from colo_lib.launch.rpc import Handle, call
from colo_lib.launch.specs import EmbedSpec

POLL_S, STATUS_S, QUIT_S = 0.1, 5.0, 5.0


@dataclass(frozen=True)
class ThreadHandle(Handle):
    """How to reach an embedder in a thread: `pid` is vLLM's worker, `tid` the thread that launches its work."""

    tid: int


class EmbedThread:
    """The embedder in the `rank`-th worker of a running server; `log` is the server's."""

    def __init__(
        self,
        spec: EmbedSpec,
        devices: tuple[str, ...],
        rank: int,
        folder: Path,
        log: Path,
        told: Mapping[str, Any],
        server_runs: Callable[[], bool],
    ) -> None:
        self.spec, self.log, self.server_runs = spec, log, server_runs
        self.files, self.began_s = files_of(folder, rank), time.monotonic()
        for left in self.files.values():
            left.unlink(missing_ok=True)
        self.handle: Handle = Handle(socket=str(self.files["socket"]), pid=0, log=str(log))
        draft = self.files["job"].with_suffix(".draft")
        draft.write_text(json.dumps(worker_job(spec, devices) | dict(told)))
        os.replace(draft, self.files["job"])

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> float:
        """Until it answers; seconds it took. Raises StepFailed with the thread's error, or the log's end."""
        while True:
            with suppress(OSError, KeyError):
                answer = call(Handle(str(self.files["socket"]), 0, str(self.log)), "status", timeout_s=STATUS_S)
                self.handle = ThreadHandle(
                    str(self.files["socket"]), int(answer["pid"]), str(self.log), int(answer["hosted"]["tid"])
                )
                return time.monotonic() - self.began_s
            waited_s = time.monotonic() - self.began_s
            if self.files["failed"].exists():
                raise StepFailed(f"embed: the thread in vLLM's worker failed: {self.files['failed'].read_text()}")
            if not self.server_runs():
                raise StepFailed(f"embed: vLLM ended while its embedder was loading; its last lines:\n{tail(self.log)}")
            if waited_s > self.spec.ready_timeout_s:
                raise StepFailed(
                    f"embed: no answer of the thread in vLLM's worker within ready_timeout_s = "
                    f"{self.spec.ready_timeout_s:g} s; its last lines:\n{tail(self.log)}"
                )
            tick(f"embed starts in vLLM's worker, {waited_s:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Take the job away; the thread sleeps again. What does not answer ends with its server."""
        self.files["job"].unlink(missing_ok=True)
        with suppress(OSError, ValueError):
            call(self.handle, "quit", timeout_s=QUIT_S)
            deadline_s = time.monotonic() + QUIT_S
            while self.files["socket"].exists() and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
