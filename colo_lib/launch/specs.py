"""What the launcher is told: engines, loads and windows, made once of the parameters. Below it nobody knows parameters.

What running engines are made of is their spec: trials whose engines have equal specs can use the same ones. What only
the load decides (concurrency, lengths of prompts, pacing) is not in it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path

from colo_lib.errors import InputError
from colo_lib.hardware.budget import embed_kv_cache_gib
from colo_lib.hardware.engine_python import EngineModels, resolve_models
from colo_lib.launch.arrivals import CLOSED
from colo_lib.params import Params, sm_sizes
from colo_lib.placement import Placement
from colo_lib.steps import MECHANISMS, UNDER_MPS

# vLLM's own default of max_num_seqs in its server on most GPUs.
MOST_SEQUENCES = 256
REFUSED_ARGS = ("--host", "--port", "--api-key", "--model", "--uds", "--max-num-seqs")


@dataclass(frozen=True)
class Limits:
    """What MPS leaves to the processes of one workload; `memory_gib` 0: no limit."""

    thread_percentage: int = 100
    priority: str = "normal"
    memory_gib: float = 0.0


@dataclass(frozen=True)
class PartitionSpec:
    """How embed is held to its SMs. `verified_with`: embed's limits, under which the partition is measured."""

    backend: str
    embed_sms: int
    verified_with: Limits


@dataclass(frozen=True)
class MechanismSpec:
    """What is below both workloads, started before them; `name` is `plain` where nothing is."""

    name: str
    limits: Limits | None = None
    """Of gen."""
    partition: PartitionSpec | None = None
    instances: tuple[str, str] | None = None
    """MIG instances wanted for gen and for embed; empty: the largest."""
    gen_priority: str = ""
    """In one process: CUDA priority of gen's streams."""


@dataclass(frozen=True)
class GenSpec:
    """One vLLM server over `devices`, and the mechanism below it."""

    python: Path
    model: str
    """A folder with a config.json, or a hub id."""
    dummy: bool
    device: str
    devices: tuple[str, ...]
    beside: tuple[tuple[str, ...], ...]
    """Devices of each embedding process that the mechanism makes room for."""
    tensor_parallel: int
    dtype: str
    quantization: str
    max_model_len: int
    max_num_seqs: int
    enforce_eager: bool
    gpu_memory_utilization: float
    kv_cache_gib: float
    extra_args: tuple[str, ...]
    seed: int
    ready_timeout_s: float
    mechanism: MechanismSpec
    port: int = field(default=0, compare=False)
    """Wanted; 0: a free one."""


@dataclass(frozen=True)
class EmbedServerSpec:
    """A server of OpenAI's `/v1/embeddings`: vLLM's own, started for this run, or the one at `url`, which runs."""

    url: str
    """Empty: a server of our own."""
    names: tuple[str, ...]
    """By which of these the server at `url` may call the model."""
    width: int
    """Numbers a vector."""
    max_num_seqs: int
    enforce_eager: bool
    kv_cache_gib: float


@dataclass(frozen=True)
class EmbedSpec:
    """The embedding processes, one on each entry of `devices`."""

    python: Path
    model: str
    dummy: bool
    device: str
    devices: tuple[tuple[str, ...], ...]
    dtype: str
    pooling: str
    batch_size: int
    sequence_tokens: int
    seed: int
    ready_timeout_s: float
    limits: Limits | None = None
    sizes: tuple[int, ...] = ()
    """In gen's process: how many SMs it may use, 0 for all; the first unless a policy chooses."""
    server: EmbedServerSpec | None = None
    """Where a server embeds; None: the loop of `embed_worker`."""


@dataclass(frozen=True)
class EngineSpec:
    """The engines of a placement; equal ones can be shared, and with equal `gen` another embed can be had beside it."""

    gen: GenSpec
    embed: EmbedSpec
    placement: Placement = field(compare=False)
    """The first step that uses them."""


@dataclass(frozen=True)
class PacingSpec:
    """How embed holds back beside gen: the SLOs that it must leave are in milliseconds."""

    kind: str
    duty: float
    micro_batch_size: int
    gen_gap_ms: float
    embed_stall_ms: float
    policy: str = "fixed"
    """In gen's process: when a pass may begin, and on which size."""


@dataclass(frozen=True)
class EmbedLoadSpec:
    """The closed loop that drives an embedding server; what is drawn lies below `vocab_size`."""

    concurrency: int
    batch_size: int
    sequence_tokens: int
    vocab_size: int


@dataclass(frozen=True)
class DemandSpec:
    """Requests that are due at a rate. `patience_s`: how long what was due in a window is waited for after its end."""

    arrivals: str
    """A kind of `arrivals.due_times`."""
    rate: float
    """Requests a second, of all processes of the workload together."""
    size: int
    """Sequences a request; 1 of gen."""
    patience_s: float


@dataclass(frozen=True)
class LoadSpec:
    """What the workloads are told to do in a trial."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    seed: int
    slice_ms: float
    pacing: PacingSpec
    embed: EmbedLoadSpec | None = None
    """None where embed needs no client."""
    processes: int = 0
    """Of gen's load client; 0: as many as the load needs."""
    stagger: bool = True
    """Whether every slot of gen begins with an output of a random length, so that they do not end all at once."""
    gen_demand: DemandSpec | None = None
    """None: a closed loop."""
    embed_demand: DemandSpec | None = None
    """None: a closed loop, or flat out where a loop embeds."""


@dataclass(frozen=True)
class WindowSpec:
    """How a trial is timed, and what makes it doubtful."""

    warmup_s: float
    window_s: float
    telemetry_hz: float
    stall_timeout_s: float
    max_drift_fraction: float
    max_clock_disagreement: float
    max_stranger_cores: float


@dataclass(frozen=True)
class TrialSpec:
    """One trial of a placement. `kv_cache_gib`: what gen's server was given; 0: it decided itself."""

    placement: Placement
    load: LoadSpec
    window: WindowSpec
    kv_cache_gib: float


@dataclass(frozen=True)
class CaptureSpec:
    """A profiled window of `seconds`, beside the trials; `graphs`: kernels of CUDA graphs, or graphs whole."""

    seconds: float
    graphs: str


@dataclass(frozen=True)
class Specs:
    """All that a step needs: its engines, a trial of it, and a capture."""

    engines: EngineSpec
    trial: TrialSpec
    capture: CaptureSpec


def specs_of(params: Params, placement: Placement) -> Specs:
    """The engines and the trial of a placement, as the parameters want them.

    Raises InputError as `resolve_models` does, and for server arguments that would undo the launcher's own.
    """
    wanted = _Wanted(params, placement, resolve_models(params))
    engines = EngineSpec(wanted.gen(), wanted.embed(), placement)
    window = WindowSpec(**{entry.name: getattr(params, entry.name) for entry in fields(WindowSpec)})
    trial = TrialSpec(placement, wanted.load(), window, params.gen_kv_cache_gib)
    return Specs(engines, trial, CaptureSpec(params.capture_s, params.capture_graph_trace))


def extra_args(text: str) -> tuple[str, ...]:
    """`gen_extra_args`, split; raises InputError for one that would undo the launcher's own."""
    words = shlex.split(text)
    for word in words:
        if word.split("=")[0] in REFUSED_ARGS:
            raise InputError(f"parameter 'gen_extra_args' holds {word!r}, which the launcher sets itself: leave it out")
    return tuple(words)


def demand(arrivals: str, rate: float, size: int, slo_ms: float) -> DemandSpec | None:
    """A demand of `rate` a second (requests of gen, sequences of embed), in requests of `size`; None: a closed loop."""
    return None if arrivals == CLOSED else DemandSpec(arrivals, rate / size, size, slo_ms / 1e3)


@dataclass(frozen=True)
class _Wanted:
    """Where the names of parameters end and those of specs begin."""

    params: Params
    placement: Placement
    models: EngineModels

    def limits(self, workload: str) -> Limits | None:
        if self.placement.mechanism not in UNDER_MPS:
            return None
        return Limits(**{entry.name: getattr(self.params, f"mps_{workload}_{entry.name}") for entry in fields(Limits)})

    def mechanism(self) -> MechanismSpec:
        params, name, partition = self.params, str(self.placement.engine_key()[-1]), None
        if MECHANISMS[self.placement.mechanism].holds_embed and (held := self.limits("embed")) is not None:
            partition = PartitionSpec(params.sm_partition_backend, params.sm_partition_embed_sms, held)
        instances = (params.mig_gen_uuid, params.mig_embed_uuid) if name == "mig" else None
        priority = params.inproc_gen_priority if MECHANISMS[self.placement.mechanism].in_gen else ""
        return MechanismSpec(name, self.limits("gen"), partition, instances, priority)

    def gen(self) -> GenSpec:
        params, placement = self.params, self.placement
        return GenSpec(
            python=self.models.gen.python,
            model=self.models.gen.source,
            dummy=params.weights == "dummy",
            device=placement.device,
            devices=placement.gen_devices,
            beside=placement.embed_devices,
            tensor_parallel=placement.tensor_parallel,
            dtype=params.gen_dtype,
            quantization=params.gen_quantization,
            max_model_len=params.gen_max_model_len,
            max_num_seqs=params.gen_max_num_seqs or params.gen_concurrency,
            enforce_eager=params.gen_enforce_eager,
            gpu_memory_utilization=params.gen_gpu_memory_utilization,
            kv_cache_gib=params.gen_kv_cache_gib,
            extra_args=extra_args(params.gen_extra_args),
            seed=params.seed,
            ready_timeout_s=params.ready_timeout_s,
            mechanism=self.mechanism(),
            port=params.gen_port,
        )

    def embed(self) -> EmbedSpec:
        params, in_gen = self.params, MECHANISMS[self.placement.mechanism].in_gen
        return EmbedSpec(
            python=self.models.embed.python,
            model=self.models.embed.source,
            dummy=params.weights == "dummy",
            device=self.placement.device,
            devices=self.placement.embed_devices,
            dtype=params.embed_dtype,
            pooling=params.embed_pooling,
            batch_size=params.embed_batch_size,
            sequence_tokens=params.embed_sequence_tokens,
            seed=params.seed,
            ready_timeout_s=params.ready_timeout_s,
            limits=self.limits("embed"),
            sizes=sm_sizes(params.inproc_embed_sms) if in_gen else (),
            server=self.embed_server(),
        )

    def embed_server(self) -> EmbedServerSpec | None:
        params, model = self.params, self.models.embed.model
        if params.embed_engine == "transformers":
            return None
        own = params.embed_engine == "vllm"
        named = params.embed_url_model
        known = [model.hub_id, model.name, self.models.embed.source]
        return EmbedServerSpec(
            url="" if own else params.embed_url.rstrip("/").removesuffix("/embeddings").removesuffix("/v1"),
            names=() if own else (named,) if named else tuple(name for name in known if name),
            width=int(model.config["hidden_size"]),
            max_num_seqs=min(params.embed_concurrency * params.embed_batch_size, MOST_SEQUENCES) if own else 0,
            enforce_eager=params.embed_enforce_eager,
            kv_cache_gib=embed_kv_cache_gib(model.config, params) if own else 0.0,
        )

    def embed_load(self) -> EmbedLoadSpec | None:
        params = self.params
        if params.embed_engine == "transformers":
            return None
        return EmbedLoadSpec(
            concurrency=params.embed_concurrency,
            batch_size=params.embed_batch_size,
            sequence_tokens=params.embed_sequence_tokens,
            vocab_size=int(self.models.embed.model.config["vocab_size"]),
        )

    def load(self) -> LoadSpec:
        params = self.params
        pacing = PacingSpec(
            kind=params.embed_pacing,
            duty=params.embed_duty,
            micro_batch_size=params.embed_micro_batch_size,
            gen_gap_ms=params.slo_gen_gap_ms,
            embed_stall_ms=params.slo_embed_stall_ms,
            policy=params.inproc_policy,
        )
        return LoadSpec(
            concurrency=params.gen_concurrency,
            prompt_tokens=params.gen_prompt_tokens,
            output_tokens=params.gen_output_tokens,
            vocab_size=self.models.gen_vocab_size,
            seed=params.seed,
            slice_ms=params.slice_ms,
            pacing=pacing,
            embed=self.embed_load(),
            processes=params.gen_client_processes,
            gen_demand=demand(params.gen_arrivals, params.gen_rate, 1, params.slo_gen_ttft_ms),
            embed_demand=demand(
                params.embed_arrivals, params.embed_rate, params.embed_batch_size, params.slo_embed_batch_ms
            ),
        )
