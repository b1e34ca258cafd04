"""The owner's side of an embedding process: start it, order it about, read what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from colo_lib.child_environment import engine_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child, ProfilerLaunch
from colo_lib.launch.rpc import Handle, call
from colo_lib.launch.specs import EmbedSpec
from colo_lib.launch.vllm_server import ENGINE_NICE

WORKER = Path(__file__).with_name("embed_worker.py")


class EmbedProcess:
    """One embedding process under guard, on `devices` of the placement."""

    def __init__(
        self,
        spec: EmbedSpec,
        devices: tuple[str, ...],
        log: Path,
        socket_path: Path,
        shared: Mapping[str, str] = MappingProxyType({}),
        held: Mapping[str, Any] = MappingProxyType({}),
        profiler: ProfilerLaunch | None = None,
    ) -> None:
        self.spec, self.profiler = spec, profiler
        on_cpu = spec.device == "cpu"
        self.gate = Path(held["gate"]) if "gate" in held else None
        job = worker_job(spec, devices) | {"socket": str(socket_path)} | dict(held)
        words, env = [str(spec.python), str(WORKER), json.dumps(job)], embed_environment(spec, devices, shared)
        if profiler is not None:
            words, env = profiler.around(words, env, shared)
        self.child = Child(
            "embed",
            words,
            log,
            env=env,
            cpus=[int(core) for core in devices] if on_cpu else (),
            nice=ENGINE_NICE if on_cpu else 0,
            peer=on_cpu,
        )
        self.handle = Handle(socket=str(socket_path), pid=self.child.pid, log=str(log))

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> float:
        """Let it go to its device, until it answers; seconds it took. Raises StepFailed with the log's end."""
        start = time.monotonic()
        if self.gate is not None:
            self.gate.touch()
        while True:
            try:
                call(self.handle, "status", timeout_s=5.0)
                if self.profiler is not None:
                    self.handle = replace(self.handle, pid=self.profiler.engine_pid())
                return time.monotonic() - start
            except OSError:
                waited = time.monotonic() - start
            if not self.child.running():
                raise StepFailed(f"embed: the process ended while starting; its last lines:\n{self.child.tail()}")
            if waited > self.spec.ready_timeout_s:
                raise StepFailed(
                    f"embed: no answer within ready_timeout_s = {self.spec.ready_timeout_s:g} s; "
                    f"its last lines:\n{self.child.tail()}"
                )
            tick(f"embed starts, {waited:.0f} s")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self.child.stop()


def worker_job(spec: EmbedSpec, devices: tuple[str, ...]) -> dict[str, Any]:
    """What the process is told when it starts, but for its socket and what a mechanism adds."""
    on_cpu = spec.device == "cpu"
    return {
        "model": spec.model,
        "weights": "dummy" if spec.dummy else "hub",
        "dtype": spec.dtype,
        "torch_device": "cpu" if on_cpu else "cuda",
        "threads": len(devices) if on_cpu else 0,
        "batch_size": spec.batch_size,
        "sequence_tokens": spec.sequence_tokens,
        "pooling": spec.pooling,
        "seed": spec.seed,
    }


def embed_environment(
    spec: EmbedSpec, devices: tuple[str, ...], shared: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The embedding process's environment, with the mechanism's additions."""
    additions = {"TOKENIZERS_PARALLELISM": "false"}
    if spec.dummy:
        additions["HF_HUB_OFFLINE"] = "1"
    if spec.device == "cpu":
        additions |= {"OMP_NUM_THREADS": str(len(devices)), "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
        additions["CUDA_VISIBLE_DEVICES"] = ""
    else:
        additions["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return engine_environment(additions | dict(shared))


def read_rows(file: Path) -> np.ndarray:
    """What `stop` wrote: int64 array of shape (batches, 4): started_ns, done_ns, sequences, tokens."""
    return np.fromfile(file, dtype=np.int64).reshape(-1, 4)
