"""vLLM's OpenAI server, unmodified, as a child process on a loopback port; `gen`, and what `embed` shares with it."""

from __future__ import annotations

import functools
import http.client
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from colo_lib.child_environment import engine_environment
from colo_lib.errors import InputError, StepFailed
from colo_lib.launch.child import Child, ProfilerLaunch
from colo_lib.launch.engine_cache import kept_key
from colo_lib.launch.specs import EmbedSpec, GenSpec

SERVED_NAME = "gen"
KEY_NAME = "COLO_GEN_KEY"
READY_POLL_S = 0.25
# Engines yield to the load client and the sampler, which would otherwise see tokens in bursts on shared cores.
ENGINE_NICE = 5
# Ranks meet and exchange over loopback: vLLM's address (else that of the route to the internet), NCCL's interface (else
# the first that is no loopback), Gloo's (else what the host's name resolves to), torch's RPC's. No shell widens it.
LOOPBACK = {
    "VLLM_HOST_IP": "127.0.0.1",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "TP_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True)
class GenHandle:
    """How to reach a running server from any process of this run; `key` never enters the run folder."""

    port: int
    key: str = field(repr=False)
    pid: int
    log: str


def server_command(spec: GenSpec, port: int) -> list[str]:
    """The server's command line."""
    words = [str(spec.python), "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", spec.model, "--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", spec.dtype, "--max-model-len", str(spec.max_model_len)]
    words += ["--max-num-seqs", str(spec.max_num_seqs), "--tensor-parallel-size", str(spec.tensor_parallel)]
    # A cached prefix would turn a repeated prompt into no work at all.
    words += ["--no-enable-prefix-caching", "--seed", str(spec.seed), "--disable-uvicorn-access-log"]
    # Prompts go in and out as token ids: no tokenizer is needed, and none can hold the client up.
    words += ["--skip-tokenizer-init"]
    if spec.dummy:
        words += ["--load-format", "dummy"]
    if spec.enforce_eager:
        words += ["--enforce-eager"]
    if spec.quantization:
        words += ["--quantization", spec.quantization]
    if spec.device == "cuda":
        words += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
        if spec.kv_cache_gib:
            words += ["--kv-cache-memory-bytes", str(int(spec.kv_cache_gib * 2**30))]
    return [*words, *spec.extra_args]


def gen_environment(spec: GenSpec, key: str, shared: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """gen's environment with the mechanism's additions; the API key travels here, never in the command line."""
    return server_environment(spec, spec.devices, spec.tensor_parallel, spec.kv_cache_gib, key, shared)


def server_environment(
    spec: GenSpec | EmbedSpec,
    devices: tuple[str, ...],
    ranks: int,
    kv_cache_gib: float,
    key: str,
    shared: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """The environment of a server of either role on `devices`; `kv_cache_gib` is each rank's."""
    additions = LOOPBACK | {
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(spec.ready_timeout_s) + 60),
    }
    if spec.dummy:
        additions["HF_HUB_OFFLINE"] = "1"
    if spec.device == "cpu":
        # One group of cores a tensor-parallel rank.
        separator = "|" if ranks > 1 else ","
        additions |= {
            "VLLM_CPU_OMP_THREADS_BIND": separator.join(devices),
            # Whole GiB, each rank's own, as on a GPU.
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(kv_cache_gib))),
            # Threads that spin while they wait would take the cores from the other workload and the client.
            "KMP_BLOCKTIME": "0",
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
            "VLLM_TARGET_DEVICE": "cpu",
        }
    else:
        # A forked engine core would be invisible to Nsight Systems.
        additions["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        additions["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        # NVLink multicast (NVLS) has put shared hosts out of service; who wants it says so in the environment.
        additions["NCCL_NVLS_ENABLE"] = os.environ.get("NCCL_NVLS_ENABLE", "0")
        # vLLM's other way to it: torch's symmetric memory.
        additions["VLLM_ALLREDUCE_USE_SYMM_MEM"] = os.environ.get("VLLM_ALLREDUCE_USE_SYMM_MEM", "0")
    return engine_environment(additions | dict(shared))


def free_port(wanted: int = 0) -> int:
    """A loopback port that is free now; raises InputError naming `wanted` when that one is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            remedy = "give another, or 0 for a free one"
            raise InputError(f"parameter 'gen_port' = {wanted}: {error.strerror}; {remedy}") from None
        return int(probe.getsockname()[1])


@functools.cache
def run_key() -> str:
    """The API key of every server that this process starts.

    One for all, and for later runs (`kept_key`). A capture's engines are handed the run's.
    """
    return os.environ.get(KEY_NAME) or kept_key()


class VllmServer:
    """One vLLM server under guard, of either role: `name` is gen or embed."""

    def __init__(
        self,
        name: str,
        spec: GenSpec | EmbedSpec,
        devices: tuple[str, ...],
        words: list[str],
        env: dict[str, str],
        log: Path,
        shared: Mapping[str, str] = MappingProxyType({}),
        profiler: ProfilerLaunch | None = None,
    ) -> None:
        self.name, self.ready_timeout_s, self.profiler = name, spec.ready_timeout_s, profiler
        if profiler is not None:
            words, env = profiler.around(words, env, shared)
        self.child = Child(
            name,
            words,
            log,
            env=env,
            cpus=[int(core) for core in devices] if spec.device == "cpu" else (),
            nice=ENGINE_NICE if spec.device == "cpu" else 0,
            peer=spec.device == "cpu",
        )

    def works(self) -> bool:
        """Whether it does a first piece of real work."""
        raise NotImplementedError

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> float:
        """Until it has done a first piece of work; seconds it took. Raises StepFailed with the log's end."""
        start, name = time.monotonic(), self.name
        while not self.works():
            waited = time.monotonic() - start
            if not self.child.running():
                raise StepFailed(f"{name}: the vLLM server ended while starting; its last lines:\n{self.child.tail()}")
            if waited > self.ready_timeout_s:
                raise StepFailed(
                    f"{name}: the vLLM server did not answer within ready_timeout_s = {self.ready_timeout_s:g} s; "
                    f"its last lines:\n{self.child.tail()}"
                )
            tick(f"{name} starts, {waited:.0f} s")
            time.sleep(READY_POLL_S)
        self.child.note_shared_memory()
        return time.monotonic() - start

    def engine_pid(self) -> int:
        """The server's own process, also where a profiler started it."""
        return self.child.pid if self.profiler is None else self.profiler.engine_pid()

    def stop(self) -> None:
        """End the server and its whole tree."""
        self.child.stop()


class GenServer(VllmServer):
    """gen's."""

    def __init__(
        self,
        spec: GenSpec,
        log: Path,
        shared: Mapping[str, str] = MappingProxyType({}),
        profiler: ProfilerLaunch | None = None,
    ) -> None:
        key, port = run_key(), free_port(spec.port)
        words, env = server_command(spec, port), gen_environment(spec, key, shared)
        super().__init__("gen", spec, spec.devices, words, env, log, shared, profiler)
        self.handle = GenHandle(port=port, key=key, pid=self.child.pid, log=str(log))

    def works(self) -> bool:
        """A real one-token completion."""
        return _completes(self.handle, 1.0)

    def wait_ready(self, tick: Callable[[str], None] = lambda _: None) -> float:
        """As every server's; the handle names the server's own process afterwards."""
        took_s = super().wait_ready(tick)
        self.handle = replace(self.handle, pid=self.engine_pid())
        return took_s


def _completes(handle: GenHandle, health_timeout_s: float) -> bool:
    """/health alone stays green over a dead engine: ask for one token too."""
    try:
        if request(handle, "GET", "/health", timeout_s=health_timeout_s)[0] != 200:
            return False
        body = {"model": SERVED_NAME, "prompt": [5, 6, 7], "max_tokens": 1, "ignore_eos": True, "detokenize": False}
        return request(handle, "POST", "/v1/completions", body, timeout_s=60.0)[0] == 200
    except OSError:
        return False


def request(
    handle: GenHandle, method: str, path: str, body: object = None, timeout_s: float = 5.0
) -> tuple[int, bytes]:
    """One HTTP exchange with the server: (status, body). Raises OSError when it cannot be reached in time."""
    connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=timeout_s)
    try:
        headers = {"Authorization": f"Bearer {handle.key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()


@dataclass(frozen=True)
class ServerCounters:
    """vLLM's own account of gen since it started, at monotonic time `t_ns`; gaps are between tokens."""

    t_ns: float
    tokens: float
    gap_sum_s: float
    gap_count: float
    cached_tokens: float
    preemptions: float = 0.0
    queue_s: float = 0.0
    """Time that the requests which are done spent in the queue, all together."""
    waiting: float = 0.0
    """Requests in the queue at `t_ns`."""
    kv_tokens: float = 0.0
    """What the KV cache holds; 0 where the server does not tell."""
    kv_block: float = 0.0
    """Tokens a block of it."""


CACHE = re.compile(r'vllm:cache_config_info\{(?=.*?[{,]block_size="(\d+)")(?=.*?[{,]num_gpu_blocks="(\d+)")')


def server_counters(handle: GenHandle, timeout_s: float) -> ServerCounters:
    """The counters of `/metrics`, summed over labels.

    Raises OSError when it cannot be reached, TimeoutError when it takes longer than `timeout_s`.
    """
    wanted = {
        "vllm:generation_tokens_total": "tokens",
        "vllm:inter_token_latency_seconds_sum": "gap_sum_s",
        "vllm:inter_token_latency_seconds_count": "gap_count",
        "vllm:prompt_tokens_cached_total": "cached_tokens",
        "vllm:num_preemptions_total": "preemptions",
        "vllm:request_queue_time_seconds_sum": "queue_s",
        "vllm:num_requests_waiting": "waiting",
    }
    before = time.monotonic_ns()
    _, text = request(handle, "GET", "/metrics", timeout_s=timeout_s)
    totals = dict.fromkeys(wanted.values(), 0.0)
    block = tokens = 0.0
    for line in text.decode(errors="replace").splitlines():
        name, _, rest = line.partition("{")
        if name in wanted and rest:
            totals[wanted[name]] += float(rest.rpartition(" ")[2])
        elif config := CACHE.match(line):
            block = float(config[1])
            tokens += block * float(config[2])
    return ServerCounters(t_ns=(before + time.monotonic_ns()) / 2, kv_tokens=tokens, kv_block=block, **totals)
