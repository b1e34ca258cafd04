"""`mps`: a control daemon of our own in private folders, its clients proved by pid, gone without trace at the end.

The machine's default daemon is never spoken to. The daemon runs in the foreground under a guardian, so that it ends
when its owner does, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil

from colo_lib.engines_env import resolve_pythons
from colo_lib.errors import StepFailed
from colo_lib.gpu_look import look_at_gpus
from colo_lib.launch.mechanisms.base import Mechanism, identity
from colo_lib.launch.mechanisms.control import Control, ControlFailed, check_pipe, program
from colo_lib.launch.mechanisms.modes import MPS_REFUSES, device_uuids
from colo_lib.launch.mechanisms.probe import probe
from colo_lib.launch.placement import Placement
from colo_lib.launch.process import Child, carriers, child_environment
from colo_lib.params import Params

START_TIMEOUT_S = 20.0
CLIENTS_GONE_S = 20.0
QUIT_TIMEOUT_S = 15.0
DAEMON_GRACE_S = 5.0
POLL_S = 0.1
PRIORITIES = {"normal": "0", "below-normal": "1"}


class Mps(Mechanism):
    """One control daemon over the placement's GPUs; in the foreground it and its server say all on their output."""

    name = "mps"
    flags: tuple[str, ...] = ("-f",)

    def __init__(self, params: Params, placement: Placement, runtime: Path, logs: Path) -> None:
        self.params, self.placement, self.logs = params, placement, logs
        self.folder = runtime / "mps"
        self.control = Control(self.folder / "pipe", self.folder / "log")
        check_pipe(self.control.pipe)
        self.uuids = device_uuids(placement, look_at_gpus(), MPS_REFUSES)
        self.probes: dict[str, Any] = {}
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
        python = resolve_pythons(self.params)[0]
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
        found = self.control.environment() | {"CUDA_VISIBLE_DEVICES": ",".join(self.client_devices(devices))}
        if (percentage := getattr(self.params, f"mps_{workload}_thread_percentage")) < 100:
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(percentage)
        if (priority := getattr(self.params, f"mps_{workload}_priority")) != "normal":
            found["CUDA_MPS_CLIENT_PRIORITY"] = PRIORITIES[priority]
        if memory_gib := getattr(self.params, f"mps_{workload}_memory_gib"):
            limits = [f"{ordinal}={int(memory_gib * 1024)}M" for ordinal in range(len(devices))]
            found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = ",".join(limits)
        return found

    def client_devices(self, devices: tuple[str, ...]) -> list[str]:
        """How clients name their GPUs: the daemon numbers its own from 0; where that differs from NVML's, by UUID."""
        everything = self.placement.all_devices
        if all(device == str(index) for index, device in enumerate(everything)):
            return list(devices)
        return [self.uuids[everything.index(device)] for device in devices]

    def change(self, params: Params) -> None:
        """Other limits are another environment: tried with a first client, as at the start."""
        self.params = params
        self.ready()

    def facts(self) -> dict[str, Any]:
        """Folders, the daemon's identity, and the limits of each workload."""
        limits = {
            name: {
                "thread_percentage": getattr(self.params, f"mps_{name}_thread_percentage"),
                "priority": getattr(self.params, f"mps_{name}_priority"),
                "memory_limit_gib": getattr(self.params, f"mps_{name}_memory_gib") or None,
                "visible_sms": [gpu["sms"] for gpu in self.probes.get(name, [])],
            }
            for name in ("gen", "embed")
        }
        return {
            "mechanism": self.name,
            "witness": "mps",
            "pipe": str(self.control.pipe),
            "log": str(self.control.log),
            "output": str(self.child.log),
            "daemon": identity(self.child.pid),
            "gpus": self.uuids,
            "limits": limits,
        }

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
