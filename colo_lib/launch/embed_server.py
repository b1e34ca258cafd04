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
from colo_lib.launch.vllm_server import ENGINE_NICE
from colo_lib.params import Params

WORKER = Path(__file__).with_name("embed_worker.py")


class EmbedProcess:
    """One embedding process under guard, on `devices` of the placement."""

    def __init__(
        self,
        params: Params,
        devices: tuple[str, ...],
        python: Path,
        model: str,
        log: Path,
        socket_path: Path,
        shared: Mapping[str, str] = MappingProxyType({}),
        held: Mapping[str, Any] = MappingProxyType({}),
        wrap: ProfilerLaunch | None = None,
    ) -> None:
        self.params, self.wrap = params, wrap
        on_cpu = params.device == "cpu"
        told = job(params, devices, model) | {"socket": str(socket_path)} | dict(held)
        words, env = [str(python), str(WORKER), json.dumps(told)], environment(params, devices, shared)
        if wrap is not None:
            words, env = wrap.around(words, env, shared)
        self.child = Child(
            "embed",
            words,
            log,
            env=env,
            cpus=[int(core) for core in devices] if on_cpu else (),
            nice=ENGINE_NICE if on_cpu else 0,
        )
        self.handle = Handle(socket=str(socket_path), pid=self.child.pid, log=str(log))

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> float:
        """Until it answers; seconds it took. Raises StepFailed with the log's end."""
        start = time.monotonic()
        while True:
            try:
                call(self.handle, "status", timeout_s=5.0)
                if self.wrap is not None:
                    self.handle = replace(self.handle, pid=self.wrap.engine_pid())
                return time.monotonic() - start
            except OSError:
                waited = time.monotonic() - start
            if not self.child.running():
                raise StepFailed(f"embed: the process ended while starting; its last lines:\n{self.child.tail()}")
            if waited > self.params.ready_timeout_s:
                raise StepFailed(
                    f"embed: no answer within ready_timeout_s = {self.params.ready_timeout_s:g} s; "
                    f"its last lines:\n{self.child.tail()}"
                )
            tick(f"embed starts, {waited:.0f} s")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self.child.stop()


def job(params: Params, devices: tuple[str, ...], model: str) -> dict[str, Any]:
    """What the process is told when it starts, but for its socket and what a mechanism adds."""
    on_cpu = params.device == "cpu"
    return {
        "model": model,
        "weights": params.weights,
        "dtype": params.embed_dtype,
        "torch_device": "cpu" if on_cpu else "cuda",
        "threads": len(devices) if on_cpu else 0,
        "batch_size": params.embed_batch_size,
        "sequence_tokens": params.embed_sequence_tokens,
        "pooling": params.embed_pooling,
        "seed": params.seed,
    }


def environment(
    params: Params, devices: tuple[str, ...], shared: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The embedding process's environment, with the mechanism's additions."""
    additions = {"TOKENIZERS_PARALLELISM": "false"}
    if params.weights == "dummy":
        additions["HF_HUB_OFFLINE"] = "1"
    if params.device == "cpu":
        additions |= {"OMP_NUM_THREADS": str(len(devices)), "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
        additions["CUDA_VISIBLE_DEVICES"] = ""
    else:
        additions["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return engine_environment(additions | dict(shared))


def read_rows(file: Path) -> np.ndarray:
    """What `stop` wrote: int64 array of shape (batches, 4): started_ns, done_ns, sequences, tokens."""
    return np.fromfile(file, dtype=np.int64).reshape(-1, 4)
