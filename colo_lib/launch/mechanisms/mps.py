"""`mps`: a control daemon of our own in private folders, its clients proved by pid, gone without trace at the end.

The machine's default daemon is never spoken to. The daemon runs in the foreground under a guardian, so that it ends
when its owner does, however that ends. Any process of the run can prove that the engines are clients of our server: by
pid, against the server's own list.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import psutil

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed
from colo_lib.hardware.nvml import look_at_gpus, mps_clients
from colo_lib.launch.child import Child, carriers, tail
from colo_lib.launch.mechanisms.base import (
    MPS_REFUSES,
    EngineProcesses,
    Mechanism,
    VisibleGpu,
    device_uuids,
    identity,
    lives,
    probe,
)
from colo_lib.launch.mechanisms.mps_control import Control, ControlFailed, check_pipe, program
from colo_lib.launch.specs import EngineSpec, Limits
from colo_lib.mechanism_records import MpsEvidence, MpsFacts, MpsLimits

FOREGROUND, STATIC = "-f", "-S"  # options of the control program
REMEDY = "; see that the engines inherit CUDA_MPS_PIPE_DIRECTORY and run as the daemon's user"


FACTS = MpsFacts
START_TIMEOUT_S = 20.0
CLIENTS_GONE_S = 20.0
QUIT_TIMEOUT_S = 15.0
DAEMON_GRACE_S = 5.0
POLL_S = 0.1
PRIORITIES = {"normal": "0", "below-normal": "1"}


def start(spec: EngineSpec, runtime: Path, logs: Path) -> Mps:
    """A daemon of ours and its first client. Raises StepFailed with the remedy."""
    return Mps(spec, runtime, logs)


def check_server(facts: MpsFacts) -> None:
    """Raises StepFailed when the daemon, or a server that was seen, is gone. Cheap: asks nobody."""
    gone = [int(who[0]) for who in [facts.daemon, *facts.servers] if who is not None and not lives(who)]
    if gone or facts.daemon is None or None in facts.servers:  # None: it went before it could be named
        raise StepFailed(
            f"mps: the daemon or its server (pid {gone}) ended: both workloads' results are void; MPS is started "
            f"again before the next trial\n{last_words(facts)}"
        )


def prove(facts: MpsFacts, engines: EngineProcesses) -> MpsEvidence:
    """Evidence that every engine is a client of our server, by pid against the server's own list.

    Raises StepFailed (the trial is void) when a process that computes is not on it, when the server is another
    user's or in the state FAULT, or when it is not the server that was seen before.
    """
    check_server(facts)
    assert facts.daemon is not None
    control = Control(Path(facts.pipe), Path(facts.log))
    servers = control.servers()
    if not servers:
        check_server(facts)  # one that was seen has ended just now: that is the cause
        raise StepFailed(f"void: mps not attached: the daemon has no server, so no engine is its client{REMEDY}")
    for server in servers:
        _check_server(control, server, facts)
    clients = sorted({pid for server in servers for pid in control.clients(server)})
    attached = attached_pids(engines, clients)
    known = {pid for pids in attached.values() for pid in pids}
    return MpsEvidence(
        mechanism=facts.mechanism,
        daemon_pid=int(facts.daemon[0]),
        servers=[identity(server) for server in servers],
        clients=clients,
        attached=attached,
        other_clients=sorted(set(clients) - known),
        limits=facts.limits,
        partition=facts.partition,
        gpus=facts.gpus,
        nvml_lists_them=nvml_lists(known),
    )


def attached_pids(engines: EngineProcesses, clients: list[int]) -> dict[str, list[int]]:
    """Which of the server's clients are whose; raises StepFailed for an engine with fewer of them than its GPUs."""
    attached: dict[str, list[int]] = {}
    for name, trees in engines.trees().items():
        attached[name] = []
        for tree in trees:
            computing = sorted(set(tree) & set(clients))
            if len(computing) < engines.gpus_each[name]:
                raise StepFailed(
                    f"void: mps not attached: {name} (pids {tree}) has {len(computing)} of {engines.gpus_each[name]} "
                    f"processes among the server's clients {clients}: it ran time-sliced{REMEDY}"
                )
            attached[name] += computing
    return attached


def _check_server(control: Control, server: int, facts: MpsFacts) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        uid = psutil.Process(server).uids().real
        if uid != os.getuid():
            raise StepFailed(
                f"mps: the server (pid {server}) runs as uid {uid}, we are uid {os.getuid()}: our clients wait for "
                "that user's to end; run everything as one user"
            )
    status = control.status(server)
    if "FAULT" in status:
        raise StepFailed(
            f"mps: the server (pid {server}) is in the state FAULT: a fatal error of one client ended them all; both "
            f"workloads are void, and the server is started again before the next trial\n{last_words(facts)}"
        )


def last_words(facts: MpsFacts) -> str:
    """The end of what the daemon and its server said."""
    return tail(Path(facts.output))


def nvml_lists(pids: set[int]) -> bool | str:
    """Whether NVML lists these as MPS clients too; in words where it could not be asked."""
    listed = mps_clients(look_at_gpus())
    return listed if isinstance(listed, str) else pids <= set(listed)


class Mps(Mechanism):
    """One control daemon over the placement's GPUs; in the foreground it and its server say all on their output."""

    name = "mps"
    flags: tuple[str, ...] = (FOREGROUND,)

    def __init__(self, spec: EngineSpec, runtime: Path, logs: Path) -> None:
        self.spec, self.placement, self.logs = spec, spec.placement, logs
        self.folder = runtime / "mps"
        self.control = Control(self.folder / "pipe", self.folder / "log")
        check_pipe(self.control.pipe)
        self.uuids = device_uuids(self.placement, look_at_gpus(), MPS_REFUSES)
        self.probes: dict[str, list[VisibleGpu]] = {}
        for folder in (self.folder, self.control.pipe, self.control.log):
            folder.mkdir(mode=0o700)
        try:
            self.child = self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        try:
            self._wait_ready()
            self.ready()
        except BaseException:
            self.close()
            raise

    def _start(self) -> Child:
        env = child_environment(self.control.environment() | {"CUDA_VISIBLE_DEVICES": ",".join(self.uuids)})
        log = self.logs / f"mps-{self.placement.step}.log"
        return Child("MPS daemon", [program(), *self.flags], log, env=env, grace_s=DAEMON_GRACE_S)

    def _wait_ready(self) -> None:
        deadline, said = time.monotonic() + START_TIMEOUT_S, ""
        while True:
            if not self.child.running():
                if STATIC in self.flags and self.child.exit_code() == 0:
                    # Asked for an option that it does not know, it prints all of its help and calls that a success.
                    raise StepFailed(
                        f"mps: this driver's nvidia-cuda-mps-control has no static partitions (no option {STATIC}); "
                        "take sm_partition_backend: green-context"
                    )
                raise StepFailed(f"mps: the control daemon ended while starting.{hint(said)}\n{self.child.tail()}")
            try:
                self.control.servers()
                break
            except ControlFailed as error:
                said = str(error)
            if time.monotonic() > deadline and self.child.running():
                raise StepFailed(
                    f"mps: the control daemon did not answer within {START_TIMEOUT_S:g} s ({said})\n{self.child.tail()}"
                )
            time.sleep(POLL_S)
        owner = psutil.Process(self.child.pid).uids().real
        if owner != os.getuid():
            raise StepFailed(
                f"mps: the control daemon runs as uid {owner}, we are uid {os.getuid()}: clients of another user would "
                "wait for ever; make nvidia-cuda-mps-control run as its caller (no setuid, no sudo wrapper)"
            )

    def ready(self) -> None:
        """A first client with each workload's environment: sees as many GPUs, and how many SMs its limit leaves."""
        python = self.spec.gen.python
        for workload, devices in (("gen", self.placement.gen_devices), ("embed", self.placement.embed_devices[0])):
            log = self.control.log / f"probe-{workload}.log"
            try:
                seen = probe(f"mps, {workload}", python, self.environment(workload), log)
            except StepFailed as error:
                raise StepFailed(f"{error}\n{self.child.tail()}") from None
            if len(seen) != len(devices):
                raise StepFailed(
                    f"mps: a client of {workload} sees {len(seen)} GPUs where it should see {len(devices)} "
                    f"({', '.join(devices)}): see devices, and CUDA_VISIBLE_DEVICES of this shell"
                )
            self.probes[workload] = seen

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """Pipe and log folders, the client's limits, and its GPUs as the daemon numbers them."""
        devices = self.placement.gen_devices if workload == "gen" else self.placement.embed_devices[number]
        variables = self.control.environment() | {"CUDA_VISIBLE_DEVICES": ",".join(self.client_devices(devices))}
        limits = self.limits(workload)
        if limits.thread_percentage < 100:
            variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(limits.thread_percentage)
        if limits.priority != "normal":
            variables["CUDA_MPS_CLIENT_PRIORITY"] = PRIORITIES[limits.priority]
        if limits.memory_gib:
            each = [f"{ordinal}={int(limits.memory_gib * 1024)}M" for ordinal in range(len(devices))]
            variables["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = ",".join(each)
        return variables

    def limits(self, workload: str) -> Limits:
        """What is left to the processes of a workload."""
        return (self.spec.gen.mechanism.limits if workload == "gen" else self.spec.embed.limits) or Limits()

    def client_devices(self, devices: tuple[str, ...]) -> list[str]:
        """How clients name their GPUs: the daemon numbers its own from 0; where that differs from NVML's, by UUID."""
        everything = self.placement.all_devices
        if all(device == str(index) for index, device in enumerate(everything)):
            return list(devices)
        return [self.uuids[everything.index(device)] for device in devices]

    def change(self, spec: EngineSpec) -> None:
        """Other limits are another environment: tried with a first client, as at the start."""
        self.spec = spec
        self.ready()

    def facts(self) -> MpsFacts:
        """Folders, the daemon's identity, and the limits of each workload."""
        limits = {
            name: MpsLimits(
                thread_percentage=self.limits(name).thread_percentage,
                priority=self.limits(name).priority,
                memory_limit_gib=self.limits(name).memory_gib or None,
                visible_sms=[gpu.sms for gpu in self.probes.get(name, [])],
            )
            for name in ("gen", "embed")
        }
        return MpsFacts(
            mechanism=self.name,
            proved_by="mps",
            pipe=str(self.control.pipe),
            log=str(self.control.log),
            output=str(self.child.log),
            daemon=identity(self.child.pid),
            gpus=self.uuids,
            limits=limits,
        )

    def close(self) -> None:
        """Wait for the clients to go, `quit`, then end what is left of ours and remove the folders."""
        if self.child.running():
            with contextlib.suppress(ControlFailed):
                self._wait_no_clients()
            with contextlib.suppress(ControlFailed):
                self.control.ask("quit", QUIT_TIMEOUT_S)
            self._wait_gone()
        self.child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        if left := carriers(self.child.token):
            raise StepFailed(
                f"mps: pids {left} of our MPS daemon cannot be ended, not even by SIGKILL: they hang in the driver; "
                "restart the host before the next run"
            )

    def _wait_no_clients(self) -> None:
        deadline = time.monotonic() + CLIENTS_GONE_S
        while time.monotonic() < deadline and any(self.control.clients(server) for server in self.control.servers()):
            time.sleep(POLL_S)

    def _wait_gone(self) -> None:
        deadline = time.monotonic() + DAEMON_GRACE_S
        while time.monotonic() < deadline and self.child.running():
            time.sleep(POLL_S)


def hint(said: str) -> str:
    """A remedy for a start that failed, where the control program's words give one away."""
    if "permission" in said.lower():
        return " The pipe folder is another user's: run everything as one user."
    return ""
