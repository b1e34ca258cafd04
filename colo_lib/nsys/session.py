"""Nsight Systems from launch to nothing left: both workloads below one session, recorded only while asked.

Where one session cannot be had, each engine gets a session of its own (`separate`), all recorded around one window;
the process that starts the engines, and the MPS daemon that it starts, are below none of them.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from colo_lib.child_environment import package_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.child import NOTES, Child, tail
from colo_lib.launch.engines import Handles, embed_name, from_plain
from colo_lib.launch.specs import EngineSpec, Specs
from colo_lib.launch.vllm_server import KEY_NAME, run_key
from colo_lib.nsys import commands
from colo_lib.placement import Placement
from colo_lib.steps import MECHANISMS

HOST = "colo_lib.nsys.engine_host"
# Of our environment, what nsys or we change for its sake.
WRITTEN_OVER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "TMPDIR")
POLL_S = 0.1
START_S = 90.0
STOP_S = 300.0  # collects what every process buffered and imports it
EXPORT_S = 900.0
VERSION_S = 30.0
HOST_END_S = 30.0
JOINT = "trace"


@dataclass(frozen=True)
class HostJob:
    """What the process that starts the engines is told, as JSON.

    `known` names the variables that it was given, `originals` holds what others of them had been (nsys writes over
    these). `launches`: the profiler's words of each engine, by its name, where sessions are separate.
    """

    out: Path
    spec: EngineSpec
    needed_gib: dict[str, float]
    runtime: Path
    logs: Path
    gen: bool
    embed: bool
    known: list[str]
    originals: dict[str, str | None]
    launches: dict[str, list[str]]


JOB = TypeAdapter(HostJob)


@dataclass(frozen=True)
class HostReply:
    """What became of the engines, and the files that nsys's injection left outside any folder of ours."""

    left_behind: list[str]
    handles: Handles | None = None
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        """Values that JSON holds."""
        return {**vars(self), "handles": self.handles.plain() if self.handles else None}

    @classmethod
    def read(cls, file: Path) -> HostReply:
        """As the host wrote it."""
        plain = json.loads(file.read_text())
        handles = from_plain(plain["handles"]) if plain.get("handles") else None
        return cls(plain["left_behind"], handles, plain.get("error"))


class JointFailed(StepFailed):
    """One session cannot hold what was to be recorded; separate ones may."""


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


def recorded_names(placement: Placement, separate: bool) -> list[str]:
    """What a placement's reports and exports are called, without suffix: one, or one for each engine with work."""
    if not separate:
        return [JOINT]
    # In gen's process embed is in gen's report.
    in_gen = MECHANISMS[placement.mechanism].in_gen
    embeds = [] if in_gen else [embed_name(number) for number in placement.embeds_at_work]
    return [f"{JOINT}-{engine}" for engine in [*(["gen"] if placement.runs_gen else []), *embeds]]


class Session:
    """Owns the session, or one for each engine, and the engines below; `close` always.

    `joint_reason`: why one session could not be had; with it the sessions are separate.
    """

    def __init__(
        self,
        binary: Path,
        specs: Specs,
        runtime: Path,
        logs: Path,
        joint_reason: str | None = None,
        needed_gib: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.binary, self.specs, self.runtime, self.log = binary, specs, runtime, logs / "nsys.log"
        self.device, self.needed_gib = specs.trial.placement.device, needed_gib
        self.logs, self.joint_reason, self.separate = logs, joint_reason, joint_reason is not None
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
        return commands.parse_version(run_guarded(commands.version_command(self.binary), self.env, self.log, VERSION_S))

    def launch(self, placement: Placement, gen: bool, embed: bool, tick: Callable[[str], None]) -> Handles:
        """Start the wanted engines below nsys; raises StepFailed with the log's end when they do not come up."""
        out = self.runtime / "captured.json"
        out.unlink(missing_ok=True)
        launches = self._separate_launches(placement) if self.separate else {}
        spec = replace(self.specs.engines, placement=placement)
        # COLO_TREE and SPT_NOENV are set by our guardian; the host must not take them for nsys's.
        known = [*self.env, "COLO_TREE", "SPT_NOENV"]
        originals = {name: os.environ.get(name) for name in WRITTEN_OVER}
        job = HostJob(
            out=out, spec=spec, needed_gib=dict(self.needed_gib), runtime=self.runtime, logs=self.logs,
            gen=gen, embed=embed, known=known, originals=originals, launches=launches,
        )  # fmt: skip
        host = [sys.executable, "-m", HOST, JOB.dump_json(job).decode()]
        self.command = next(iter(launches.values())) if launches else self._launch_words(JOINT)
        words = host if self.separate else [*self.command, *host]
        self.child = Child("nsys", words, self.log, env=self.env, grace_s=10.0)
        reply = self._wait_for(out, tick)
        self.left_behind += reply.left_behind
        if reply.handles is None:
            raise StepFailed(f"under nsys: {reply.error}")
        self.handles = reply.handles
        return reply.handles

    def _session(self, name: str) -> str:
        """nsys's name of the session that records `name`."""
        return self.name + name.removeprefix(JOINT)

    def _launch_words(self, name: str) -> list[str]:
        settings = self.device, self.specs.capture.graphs
        return commands.launch_command(self.binary, self._session(name), *settings, [])

    def _separate_launches(self, placement: Placement) -> dict[str, list[str]]:
        """The launch words of each engine that may run, by its name, whether it has work in this placement or not."""
        everyone = tuple(range(len(placement.embed_devices)))
        engines = replace(placement, runs_gen=True, runs_embed=True, embeds_at_work=everyone)
        return {name.removeprefix(f"{JOINT}-"): self._launch_words(name) for name in recorded_names(engines, True)}

    def _wait_for(self, out: Path, tick: Callable[[str], None]) -> HostReply:
        assert self.child is not None
        # Each engine has its own deadline inside; this one is for nsys itself.
        began, limit_s = time.monotonic(), 3 * self.specs.engines.gen.ready_timeout_s + START_S
        while not out.exists():
            waited = time.monotonic() - began
            if not self.child.running() or waited > limit_s:
                failure, what = (StepFailed, "captures") if self.separate else (JointFailed, "nsys launch")
                raise failure(f"{what}: the engines did not come up; its last lines:\n{self.child.tail()}")
            tick(f"engines start under nsys, {waited:.0f} s")
            time.sleep(POLL_S)
        return HostReply.read(out)

    def start(self, folder: Path, names: Sequence[str]) -> bool:
        """Begin to record reports `names` into `folder`; whether context switches are recorded too, in all of them."""
        return all([self._start(folder / name, name) for name in names])

    def _start(self, report: Path, name: str) -> bool:
        if self.device == "cuda":
            try:
                said = self._order(name, commands.start_command, report, True, limit_s=START_S)
                return commands.context_switches_granted(said)
            except StepFailed:
                # Some drivers refuse the whole collection for lack of rights: the kernels are worth having alone.
                pass
        self._order(name, commands.start_command, report, False, limit_s=START_S)
        return False

    def stop(self, names: Sequence[str]) -> None:
        """End recording; the reports are written when this returns."""
        for name in names:
            self._order(name, commands.stop_command, limit_s=STOP_S)

    def export(self, report: Path, sqlite: Path) -> None:
        """A report as SQLite."""
        run_guarded(commands.export_command(self.binary, report, sqlite), self.env, self.log, EXPORT_S)

    def _order(self, name: str, command: Callable[..., list[str]], *arguments: Any, limit_s: float) -> str:
        return run_guarded(command(self.binary, self._session(name), *arguments), self.env, self.log, limit_s)

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
        notes = [json.loads(file.read_text()) for file in self.runtime.glob(NOTES.format("*"))]
        left = [*self.left_behind, *(file for note in notes for file in note["left_behind"])]
        # nsys leaves the semaphore for the process that it waited for when it was killed itself.
        for pid in (owner, *(note["pid"] for note in notes)):
            left += map(str, Path("/dev/shm").glob(f"sem.NSys-process_waiter-{pid}-*"))
        for file in [*left, *self.runtime.glob(NOTES.format("*"))]:
            with suppress(OSError):
                Path(file).unlink()
        self.child = self.handles = None
