"""The engines of a placement: started one after the other, found again by notebooks, ended together.

`colo run` keeps engines up between the trials of steps that can share them (those with equal specs) and tells the
notebooks through a file in its private runtime folder, named by `COLO_ENGINES`; a notebook on its own starts and ends
them itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from colo_lib.child_environment import INJECTION
from colo_lib.errors import StepFailed
from colo_lib.hardware.memory import before_engines
from colo_lib.launch.child import ProfilerLaunch, tail
from colo_lib.launch.embed_over_http import EmbedServer, EmbedServerHandle, EmbedUrl
from colo_lib.launch.embed_server import EmbedProcess
from colo_lib.launch.embed_thread import EmbedThread, ThreadHandle
from colo_lib.launch.engine_cache import cache_environment
from colo_lib.launch.mechanisms import check_mechanism, mechanism_facts, start_mechanism, verify
from colo_lib.launch.mechanisms.base import EngineProcesses, Mechanism
from colo_lib.launch.rpc import Handle, runtime_folder
from colo_lib.launch.specs import EngineSpec
from colo_lib.launch.vllm_server import GenHandle, GenServer
from colo_lib.mechanism_records import Evidence, MechanismFacts, MpsEvidence, MpsFacts
from colo_lib.placement import Placement
from colo_lib.steps import MECHANISMS

ENGINES_FILE = "COLO_ENGINES"
Tick = Callable[[str], None]


def silent(_: str) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Handles:
    """Running engines, as any process of the run sees them; `owner_pid` is the process that keeps them."""

    key: str
    owner_pid: int
    gen: GenHandle | None
    embeds: tuple[Handle | EmbedServerHandle, ...]
    tensor_parallel: int = 1
    mechanism: MechanismFacts | None = None
    """What the mechanism's `facts` say; None where cores stand in for GPUs."""

    def plain(self) -> dict[str, Any]:
        """Values that JSON holds; `from_plain` makes the handles of them again."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {
            "gen": asdict(self.gen) if self.gen else None,
            "embeds": [asdict(embed) for embed in self.embeds],
            "mechanism": self.mechanism.plain() if self.mechanism else None,
        }

    def pids(self) -> dict[str, list[int]]:
        """Root pids of each workload, as far as its processes can be seen."""
        embeds = [handle.pid for handle in self.embeds if handle.pid is not None]
        return {"gen": [self.gen.pid] if self.gen else [], "embed": embeds}

    def own_pids(self) -> dict[str, list[int]]:
        """`pids`, those of embed's threads in gen's processes left out: what is counted by process counts once."""
        embeds = [handle.pid for handle in self.embeds if not isinstance(handle, ThreadHandle)]
        return self.pids() | {"embed": [pid for pid in embeds if pid is not None]}

    def threads(self) -> dict[str, list[list[int]]]:
        """[pid, thread] of each embedder in a process of gen's, by workload."""
        embeds = [[handle.pid, handle.tid] for handle in self.embeds if isinstance(handle, ThreadHandle)]
        return {"embed": embeds} if embeds else {}

    def unseen_embed(self) -> bool:
        """Whether an embedding server works where no process of it can be seen."""
        return any(handle.pid is None for handle in self.embeds)

    def starts(self) -> dict[str, str | None]:
        """A name for the start of each workload's engines: trials that carry the same one ran on the same processes.

        Pids with their kernel's start times, since a pid is used again.
        """
        return {name: "+".join(map(_start_of, pids)) or None for name, pids in self.pids().items()}

    def evidence(self) -> Evidence | None:
        """Proof that the engines share the GPU as they should; raises StepFailed when they do not."""
        return verify(self.mechanism, EngineProcesses(self.pids(), {"gen": self.tensor_parallel, "embed": 1}))

    def check_alive(self) -> None:
        """Raises StepFailed, with the log's end, when an engine's root process or the mechanism is gone."""
        check_mechanism(self.mechanism)
        for name, handle in [("gen", self.gen), *(("embed", embed) for embed in self.embeds)]:
            if handle is None or handle.pid is None or _running(handle.pid):
                continue
            if not handle.log:
                raise StepFailed(f"{name}: the server at embed_url (pid {handle.pid}) ended: start it again")
            raise StepFailed(f"{name} (pid {handle.pid}) ended unasked; its last lines:\n{tail(Path(handle.log))}")


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _start_of(pid: int) -> str:
    with suppress(psutil.Error):
        return f"{pid}@{psutil.Process(pid).create_time():.2f}"
    return str(pid)


def embed_name(number: int) -> str:
    """`embed` of the first embedding process, `embed-1` of the second."""
    return f"embed-{number}" if number else "embed"


class Engines:
    """Owns the engines of one placement; `start` before use, `stop` always."""

    def __init__(
        self,
        spec: EngineSpec,
        runtime: Path,
        logs: Path,
        profilers: Mapping[str, ProfilerLaunch] = MappingProxyType({}),
        needed_gib: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.spec, self.runtime, self.logs = spec, runtime, logs
        self.profilers = profilers  # by `gen` and `embed_name`
        self.needed_gib = needed_gib  # on each GPU, of all that the run puts there
        self.gen: GenServer | None = None
        self.embeds: list[EmbedProcess | EmbedServer | EmbedUrl | EmbedThread] = []
        self.mechanism: Mechanism | None = None
        self.facts: MechanismFacts | None = None
        self.ready_s: dict[str, float] = {}

    @property
    def placement(self) -> Placement:
        """Of the step that they were started for."""
        return self.spec.placement

    def start(self, want_gen: bool, want_embed: bool, tick: Tick = silent) -> Handles:
        """Start the mechanism on GPUs that have settled, then what is wanted and not there yet.

        On GPUs one engine after the other, gen first: vLLM sizes its cache by what is free when it starts. Embed does
        no more beside it than import its libraries. Under a profiler, not even that. Raises StepFailed when one cannot
        be started or the engines do not share as they should.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        spec = self.spec
        if self._in_gen():
            want_gen = want_embed = True
        if self.mechanism is None:
            if self.placement.device == "cuda":
                before_engines(self.placement.all_devices, self.needed_gib)
            self.mechanism = start_mechanism(spec, self.runtime, self.logs)
        if want_gen and self.gen is None:
            gen = self._gen()
            if want_embed and not self.embeds and self._may_start_beside():
                # On GPUs it waits: what is free there is gen's to look at first.
                wait = self.placement.device == "cuda"
                self.embeds = [self._embed(number, devices, wait) for number, devices in enumerate(spec.embed.devices)]
            self.ready_s["gen"] = gen.wait_ready(tick)
        if want_embed and "embed" not in self.ready_s:
            self.ready_s["embed"] = 0.0
            for number, devices in enumerate(spec.embed.devices):
                if number == len(self.embeds):
                    self.embeds.append(self._embed(number, devices))
                self.ready_s["embed"] += self.embeds[number].wait_ready(tick)
        self._attach()
        return self.handles()

    def _gen(self) -> GenServer:
        """gen's server, started."""
        profiler, spec = self.profilers.get("gen"), self.spec.gen
        shared = self._shared("gen") | own_folders(self.runtime, profiled=profiler is not None)
        adjusted = self.mechanism.adjusted(spec) if self.mechanism else spec
        self.gen = GenServer(adjusted, self.logs / f"gen-{self.placement.step}.log", shared, profiler)
        return self.gen

    def _may_start_beside(self) -> bool:
        """Whether embed is a process that can be told to wait, and no profiler looks at the order of starts."""
        return (
            not self._in_gen() and self.spec.embed.server is None and not self.profilers and INJECTION not in os.environ
        )

    def _in_gen(self) -> bool:
        """Whether embed is a thread of gen's worker: without gen it is nowhere, and beside gen always there."""
        return MECHANISMS[self.placement.mechanism].in_gen

    def _embed(
        self, number: int, devices: tuple[str, ...], wait: bool = False
    ) -> EmbedProcess | EmbedServer | EmbedUrl | EmbedThread:
        """The `number`-th embedding engine, started or found, of the kind that the spec asks for.

        `wait`: it imports its libraries, and goes to its device when its `wait_ready` is called.
        """
        spec, profiler = self.spec.embed, self.profilers.get(embed_name(number))
        if self._in_gen():
            assert self.gen is not None
            assert self.mechanism is not None
            log, told, runs = Path(self.gen.handle.log), self.mechanism.embed_job(), self.gen.child.running
            return EmbedThread(spec, devices, number, self.runtime, log, told, runs)
        if spec.server is not None and spec.server.url:
            return EmbedUrl(spec)
        log, shared = self.logs / f"embed-{self.placement.step}-{number}.log", self._shared("embed", number)
        if spec.server is not None:
            shared |= own_folders(self.runtime, profiled=profiler is not None)
            return EmbedServer(spec, devices, log, self.runtime, shared, profiler)
        socket, gate = self.runtime / f"embed{number}.sock", self.runtime / f"embed{number}.go"
        for left in (socket, gate):
            left.unlink(missing_ok=True)
        held = (self.mechanism.embed_job() if self.mechanism else {}) | ({"gate": str(gate)} if wait else {})
        return EmbedProcess(spec, devices, log, socket, shared, held, profiler)

    def change_embed(self, spec: EngineSpec, tick: Tick = silent) -> Handles:
        """The embedding processes anew, as `spec` says; gen and the mechanism, of which it says the same, stay up.

        Raises StepFailed as `start` does.
        """
        for process in self.embeds:
            process.stop()
        self.embeds, self.spec = [], replace(self.spec, embed=spec.embed)
        self.ready_s.pop("embed", None)
        if self.mechanism is not None:
            self.mechanism.change(self.spec)
        return self.start(self.gen is not None, True, tick)

    def _shared(self, workload: str, number: int = 0) -> dict[str, str]:
        return self.mechanism.environment(workload, number) if self.mechanism else {}

    def _attach(self) -> None:
        """Prove once that the engines share as they should, and keep who serves them: a later one is another."""
        if self.mechanism is None:
            return
        self.facts = self.mechanism.facts()
        evidence = self.handles().evidence()
        if isinstance(self.facts, MpsFacts) and isinstance(evidence, MpsEvidence):
            self.facts = self.facts.joined(servers=evidence.servers)

    def handles(self) -> Handles:
        """What runs now."""
        return Handles(
            key=repr(self.placement.engine_key()),
            owner_pid=os.getpid(),
            gen=self.gen.handle if self.gen else None,
            embeds=tuple(process.handle for process in self.embeds),
            tensor_parallel=self.placement.tensor_parallel,
            mechanism=self.facts,
        )

    def stop(self) -> None:
        """End all of them, the embedder first, then the mechanism; nothing of them lives afterwards."""
        for process in self.embeds:
            process.stop()
        if self.gen is not None:
            self.gen.stop()
        mechanism, self.mechanism, self.facts = self.mechanism, None, None
        self.embeds, self.gen = [], None
        if mechanism is not None:
            mechanism.close()


def own_folders(runtime: Path, profiled: bool) -> dict[str, str]:
    """Where vLLM leaves its files, as variables: a temporary folder below the launcher's, and a cache that is kept.

    What it leaves in the first goes with it: a rendezvous file a start, and its sockets when it is killed. A profiler
    may look for its target in the temporary folder that both know: then the sockets alone move.
    """
    folder = runtime / "tmp"
    folder.mkdir(exist_ok=True)
    temporary = {"VLLM_RPC_BASE_PATH" if profiled else "TMPDIR": str(folder)}
    return temporary | cache_environment(instead=runtime / "cache")


def publish(handles: Handles, file: Path) -> None:
    """Write the handles where the notebooks of this run find them; the file is readable by its owner alone."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(handles.plain(), stream)


def published(placement: Placement) -> Handles | None:
    """The engines that `colo run` keeps for this placement, if it does."""
    with suppress(OSError, ValueError, KeyError):
        plain = json.loads(Path(os.environ[ENGINES_FILE]).read_text())
        if plain["key"] == repr(placement.engine_key()) and _running(plain["owner_pid"]):
            return from_plain(plain)
    return None


def from_plain(plain: dict[str, Any]) -> Handles:
    """Handles as they were before they became plain values."""
    gen = GenHandle(**plain["gen"]) if plain["gen"] else None
    embeds = tuple(_embed_handle(embed) for embed in plain["embeds"])
    mechanism = mechanism_facts(plain["mechanism"]) if plain.get("mechanism") else None
    return Handles(**(plain | {"gen": gen, "embeds": embeds, "mechanism": mechanism}))


def _embed_handle(plain: dict[str, Any]) -> Handle | EmbedServerHandle:
    kind = EmbedServerHandle if "url" in plain else ThreadHandle if "tid" in plain else Handle
    return kind(**plain)


@contextmanager
def engines_for(
    spec: EngineSpec, logs: Path, tick: Tick = silent, needed_gib: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Handles]:
    """The engines of a placement: those that are kept up for us, or our own until the block ends."""
    placement = spec.placement
    kept = published(placement)
    if kept is not None:
        yield kept
        return
    with runtime_folder() as runtime:
        engines = Engines(spec, runtime, logs, needed_gib=needed_gib)
        try:
            yield engines.start(placement.runs_gen, placement.runs_embed, tick)
        finally:
            engines.stop()
