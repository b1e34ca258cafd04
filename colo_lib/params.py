"""Parameters: one flat, frozen, checked set of names, the same in every notebook and params file.

A params file is plain YAML with flat values, so that `papermill -f` takes it as it is. Every value is
checked for its type and range, and an unknown name stops with the nearest right one: papermill itself
would only warn and go on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from colo_lib.errors import InputError, suggest
from colo_lib.flat_yaml import read_file
from colo_lib.paths import RUN_ID
from colo_lib.purpose import Purpose, Touch, parameters, purpose_of
from colo_lib.steps import DEFAULT_STEPS, STEP_IDS, UNDER_MPS

STEPS = STEP_IDS

# Parameters of earlier versions, with what took their place.
RETIRED = {"interleave": "'starts' says how often the engines are started anew; as many as 'blocks' is 'all'"}
CELL_HEADING = "# Parameters of this notebook: change them here. Any other of docs/parameters.md may stand here too."
INJECTED_HEADING = "# Parameters"


# The notebooks that record a step, and those that read a capture, by the beginnings of their names.
RECORDING = ("1", "2")

CAPTURES = ("41", "42", "43", "44", "45")

# Each makes the fields of one purpose.
_stored = parameters("storing", "storing")
_read = parameters("reading", "reading")
_machine = parameters("machine", "engine", "load", "trial")
_models = parameters("models", "engine")
_gen_engine = parameters("gen load", "engine")
_gen_load = parameters("gen load", "load", at_work="gen")
_embed_engine = parameters("embed load", "engine")
_embed_load = parameters("embed load", "engine", "load", at_work="embed")
_embed_told = parameters("embed load", "load", at_work="embed")
_mps_gen = parameters("mechanism", "engine", at_work="gen", mechanisms=UNDER_MPS)
_mps_embed = parameters("mechanism", "engine", at_work="embed", mechanisms=UNDER_MPS)
_sm_partition = parameters("mechanism", "engine", mechanisms=("sm-partition",))
_mig = parameters("mechanism", "engine", mechanisms=("mig",))
_inproc_gen = parameters("mechanism", "engine", at_work="gen", mechanisms=("in-process",))
_inproc_embed = parameters("mechanism", "engine", at_work="embed", mechanisms=("in-process",))
_inproc_load = parameters("mechanism", "load", at_work="both", mechanisms=("in-process",))
_pacing = parameters("mechanism", "load", at_work="both")
_planned = parameters("measuring", "plan")
_timed = parameters("measuring", "trial")
_captured = parameters("measuring", "capture")
_judged = parameters("judging", "judgement")
_paces_too = parameters("judging", "judgement", "load", at_work="both")


class Params(BaseModel):
    """Every parameter of the workbook; the field's description is its help text, its purpose says what it is for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # --- where results go ------------------------------------------------------------------------------
    run_name: str = _stored("cpu", "first part of the run folder's name", text="run name", pattern=rf"^{RUN_ID}$")
    runs_dir: str = _stored("runs", "folder that holds the run folders", text="path")
    sweeps_dir: str = _stored("sweeps", "folder that holds the sweep folders", text="path")
    # --- what is read ----------------------------------------------------------------------------------
    run: str = _read(
        "",
        "run folder; empty: a new one is made, or the newest finished one is read",
        text="path",
        notebooks=("41", "42", "43", "44", "45", "46", "47", "51", "52", "53", "54"),
    )
    sweep: str = _read(
        "",
        "sweep folder that 31-38 and 55 read; empty: the newest fitting one, or an example",
        text="path",
        notebooks=("3", "55"),
    )
    exports: str = _read(
        "", "Nsight Systems SQLite exports to read instead of a run, comma-separated", text="path", notebooks=CAPTURES
    )
    exports_alone: str = _read(
        "",
        "exports of gen or embed alone, for durations alone against shared, comma-separated",
        text="path",
        notebooks=("44",),
    )
    trace_step: str = _read(
        "", "step whose capture is read; empty: the first that has one", text="steps", notebooks=CAPTURES
    )
    trace_gen: str = _read(
        "", "pid, pid:thread or process name of gen in the exports; empty: the likely one", text="process"
    )
    trace_embed: str = _read(
        "", "pid, pid:thread or process name of embed in the exports; empty: the likely one", text="process"
    )
    trace_window: str = _read(
        "",
        "START_S:END_S of the exports to look at; empty: all of it",
        text="seconds",
        notebooks=("41", "42", "43", "45"),
    )
    capacity_devices: int = _read(8, "54: GPUs to be shared out", ge=1, le=100_000, notebooks=("54",))
    capacity_tokens_per_s: float = _read(
        0.0, "54: tokens/s wanted; 0: what half the GPUs give alone", ge=0, notebooks=("54",)
    )
    capacity_sequences_per_s: float = _read(
        0.0, "54: sequences/s wanted; 0: what a quarter of the GPUs give alone", ge=0, notebooks=("54",)
    )
    # --- machine ---------------------------------------------------------------------------------------
    device: Literal["cpu", "cuda"] = _machine(
        "cpu", "cpu: cores stand in for devices; cuda: NVIDIA GPUs", notebooks=("00", *RECORDING)
    )
    devices: str = _machine(
        "0,1",
        "cores, GPU indexes or GPU UUIDs that count as the devices, by comma",
        text="devices",
        notebooks=("00", *RECORDING),
    )
    steps: str = parameters("machine", "plan")(",".join(DEFAULT_STEPS), "steps of the run, by comma", text="steps")
    # --- the two models --------------------------------------------------------------------------------
    gen_model: str = _models(
        "tiny-gen",
        "name under colo_lib/models, or a folder with a config.json",
        text="model",
        notebooks=("00", *RECORDING),
    )
    embed_model: str = _models(
        "tiny-embed",
        "name under colo_lib/models, or a folder with a config.json",
        text="model",
        notebooks=("00", *RECORDING),
    )
    weights: Literal["dummy", "hub"] = _models(
        "dummy", "dummy: true architecture, random weights; hub: published", notebooks=RECORDING
    )
    gen_python: str = _models(
        "auto", "interpreter that has vLLM; auto: .venv-engine, else this one", text="interpreter"
    )
    embed_python: str = _models(
        "auto", "interpreter that has torch and transformers; auto: as gen_python", text="interpreter"
    )
    # --- gen: vLLM -------------------------------------------------------------------------------------
    # It also sets what the server makes room for, which an idle one has without effect.
    gen_concurrency: int = parameters("gen load", "engine", "load", at_work="gen")(
        2, "requests in flight, closed loop", ge=1, le=4096, notebooks=RECORDING
    )
    gen_arrivals: Literal["closed", "poisson", "constant"] = _gen_load(
        "closed", "closed: always gen_concurrency in flight; poisson, constant: gen_rate, whoever is busy"
    )
    gen_rate: float = _gen_load(0.0, "gen_arrivals poisson, constant: requests due a second", ge=0, le=1e6)
    gen_client_processes: int = _gen_load(
        0, "processes of gen's load client; 0: one for every 64 in flight, as cores allow", ge=0, le=64
    )
    gen_max_num_seqs: int = _gen_engine(
        0, "vLLM max_num_seqs; 0: gen_concurrency. Set, engines serve several concurrencies", ge=0, le=4096
    )
    gen_prompt_tokens: int = _gen_load(32, "prompt length, tokens", ge=1, le=1_000_000, notebooks=RECORDING)
    gen_output_tokens: int = _gen_load(
        32, "output length, tokens (ignore_eos)", ge=2, le=1_000_000, notebooks=RECORDING
    )
    gen_max_model_len: int = _gen_engine(512, "vLLM max_model_len, tokens", ge=8, le=10_000_000)
    gen_dtype: Literal["auto", "bfloat16", "float16", "float32"] = _gen_engine(
        "auto", "weights of gen; auto: bfloat16 on GPUs, float32 on CPUs, which all multiply it"
    )
    gen_quantization: Literal["", "fp8"] = _gen_engine("", "vLLM quantization; fp8 is dynamic")
    gen_enforce_eager: bool = _gen_engine(True, "no CUDA graphs")
    gen_gpu_memory_utilization: float = _gen_engine(0.45, "share of the GPU that vLLM may fill", gt=0, le=1)
    gen_kv_cache_gib: float = _gen_engine(1.0, "KV cache, GiB; 0 leaves it to vLLM (GPU only)", ge=0, le=4096)
    gen_port: int = parameters("gen load", "hosting")(0, "loopback port of the server; 0: a free one", ge=0, le=65535)
    gen_extra_args: str = _gen_engine("", "further vLLM server arguments, split as a shell would", text="arguments")
    # --- embed -----------------------------------------------------------------------------------------
    embed_batch_size: int = _embed_load(8, "sequences a batch", ge=1, le=65536, notebooks=RECORDING)
    embed_sequence_tokens: int = _embed_load(128, "tokens a sequence", ge=1, le=1_000_000, notebooks=RECORDING)
    embed_engine: Literal["transformers", "vllm", "url"] = _embed_engine(
        "transformers", "transformers: a loop in its own process; vllm: a second vLLM server; url: one that runs"
    )
    embed_concurrency: int = _embed_load(16, "embed_engine vllm, url: requests in flight, closed loop", ge=1, le=4096)
    embed_arrivals: Literal["closed", "poisson", "constant"] = _embed_told(
        "closed", "closed: flat out, or embed_concurrency in flight; poisson, constant: embed_rate"
    )
    embed_rate: float = _embed_told(0.0, "embed_arrivals poisson, constant: sequences due a second", ge=0, le=1e9)
    embed_url: str = _embed_engine("", "embed_engine url: address of the server, before /v1/embeddings", text="address")
    embed_url_model: str = _embed_engine(
        "", "embed_engine url: what the server calls the model; empty: its name or hub id", text="address"
    )
    embed_enforce_eager: bool = _embed_engine(True, "embed_engine vllm: no CUDA graphs")
    embed_pooling: Literal["mean", "last"] = _embed_engine("mean", "how token states become one vector")
    embed_dtype: Literal["auto", "bfloat16", "float16", "float32"] = _embed_engine(
        "auto", "weights of embed; auto: as of gen"
    )
    # --- sharing ---------------------------------------------------------------------------------------
    slice_ms: float = parameters("mechanism", "load", mechanisms=("cpu-alternating",))(
        50.0, "cpu-alternating: length of one workload's slice", gt=0, le=60_000, notebooks=RECORDING
    )
    mps_gen_thread_percentage: int = _mps_gen(
        100, "MPS: share of the SMs gen may use, %", ge=1, le=100, notebooks=RECORDING
    )
    mps_embed_thread_percentage: int = _mps_embed(
        100, "MPS: share of the SMs embed may use, %", ge=1, le=100, notebooks=RECORDING
    )
    mps_gen_priority: Literal["normal", "below-normal"] = _mps_gen("normal", "MPS client priority of gen")
    mps_embed_priority: Literal["normal", "below-normal"] = _mps_embed("normal", "MPS client priority of embed")
    mps_gen_memory_gib: float = _mps_gen(0.0, "MPS: memory limit of gen, GiB; 0: none", ge=0, le=4096)
    mps_embed_memory_gib: float = _mps_embed(0.0, "MPS: memory limit of embed, GiB; 0: none", ge=0, le=4096)
    sm_partition_backend: Literal["auto", "green-context", "mps-static", "libsmctrl"] = _sm_partition(
        "auto", "sm-partition: how embed is held to its SMs; auto: the first that verifies", notebooks=RECORDING
    )
    sm_partition_embed_sms: int = _sm_partition(
        32, "sm-partition: SMs that embed may use", ge=1, le=1024, notebooks=RECORDING
    )
    mig_gen_uuid: str = _mig(
        "", "mig: instance of gen, MIG-UUID; empty: the largest", text="devices", notebooks=RECORDING
    )
    mig_embed_uuid: str = _mig(
        "", "mig: instance of embed, MIG-UUID; empty: the largest other one", text="devices", notebooks=RECORDING
    )
    inproc_embed_sms: str = _inproc_embed(
        "0", "in-process: SMs that embed may use, by comma; 0: all", text="counts", notebooks=RECORDING
    )
    inproc_policy: Literal["fixed", "phase", "slo"] = _inproc_load(
        "fixed",
        "in-process: fixed: on the first size; phase: no pass beside prefill; slo: the size that gen's gap SLO leaves",
    )
    inproc_gen_priority: Literal["high", "normal"] = _inproc_gen("high", "in-process: CUDA priority of gen's streams")
    embed_pacing: Literal["none", "duty", "slo"] = _pacing(
        "none", "none: flat out; duty: a share of the time; slo: as much as gen's gap SLO leaves"
    )
    embed_duty: float = _pacing(0.5, "duty: share of the time that embed may run", gt=0, le=1)
    embed_micro_batch_size: int = _pacing(0, "sequences a forward pass; 0: the batch", ge=0, le=65536)
    # --- measuring -------------------------------------------------------------------------------------
    block: int = _planned(0, "block of trials to record; 0: all blocks of this step", ge=0, le=1000)
    blocks: int = _planned(
        5, "trials of each step, interleaved in alternating order", ge=1, le=1000, notebooks=RECORDING
    )
    starts: int = _planned(
        5, "starts of each set of engines, over which the blocks are spread; at most blocks", ge=1, le=1000
    )
    starts_on_two: int = _planned(
        0, "starts of engines over two devices, at most starts; 0: one on cores, starts on GPUs", ge=0, le=1000
    )
    warmup_s: float = _timed(1.0, "dropped before each trial's window, seconds", ge=0, le=3600)
    window_s: float = _timed(3.0, "timed window of a trial, seconds", gt=0, le=86_400, notebooks=RECORDING)
    telemetry_hz: float = _timed(10.0, "telemetry samples a second", gt=0, le=1000)
    ready_timeout_s: float = parameters("measuring", "engine")(
        180.0, "an engine must answer within this", gt=0, le=86_400
    )
    stall_timeout_s: float = _timed(120.0, "no token or batch for so long fails a trial", gt=0, le=86_400)
    cell_timeout_s: float = parameters("measuring", "hosting")(
        900.0, "a notebook cell must end within this", gt=0, le=864_000
    )
    max_drift_fraction: float = _timed(0.5, "halves of a window that differ by more make it invalid", gt=0)
    max_clock_disagreement: float = _timed(0.02, "our token rate against vLLM's own counter", gt=0)
    max_stranger_cores: float = _timed(0.3, "CPU: cores that other processes may use in a window", gt=0)
    seed: int = parameters("measuring", "engine", "load", "judgement")(
        1, "of prompts and simulated data", ge=0, le=2**31
    )
    capture_s: float = _captured(0.0, "length of each step's capture, seconds; 0: no capture", ge=0, le=600)
    capture_steps: str = _captured("", "steps that are captured, by comma; empty: every step of the run", text="steps")
    capture_graph_trace: Literal["node", "graph"] = _captured("node", "kernels of CUDA graphs, or graphs whole")
    # --- what counts as good ---------------------------------------------------------------------------
    slo_gen_stall_ms: float = _judged(1000.0, "longest time gen may go without a token", gt=0)
    slo_gen_ttft_ms: float = parameters("judging", "judgement", "load", at_work="gen")(
        2000.0, "time to first token", gt=0
    )
    slo_gen_gap_ms: float = _paces_too(
        200.0, "p99 time between two tokens of a request; paces embed", gt=0, notebooks=("33", "55")
    )
    slo_embed_batch_ms: float = parameters("judging", "judgement", "load", at_work="embed")(
        5000.0, "time from an embedding batch's start, or when it was due, to its end", gt=0
    )
    slo_embed_stall_ms: float = _paces_too(5000.0, "longest time embed may go without a finished batch", gt=0)
    min_gen_kept: float = _judged(
        0.95, "verdict: least kept fraction of gen", gt=0, le=2, notebooks=("31", "32", "35", "37", "51")
    )
    max_gap_growth: float = _judged(
        0.10, "verdict: most growth of gen's p99 inter-token gap", ge=0, notebooks=("37", "51")
    )
    min_embed_kept: float = _judged(0.20, "verdict: least kept fraction of embed", ge=0, le=2, notebooks=("51",))
    min_demand_met: float = _judged(
        0.99,
        "verdict: least share of demanded requests that are served within their SLO",
        gt=0,
        le=1,
        notebooks=("38",),
    )
    min_overlap: float = _judged(0.05, "verdict: least overlap of gen's time, no upper bound", ge=0, le=1)
    min_profiled_ratio: float = _judged(
        0.8, "verdict: least rate under the profiler / without", ge=0, le=1, notebooks=("52",)
    )

    @model_validator(mode="before")
    @classmethod
    def _dtype_of_the_device(cls, values: dict[str, Any]) -> dict[str, Any]:
        native = "bfloat16" if values.get("device", "cpu") == "cuda" else "float32"
        names = ("gen_dtype", "embed_dtype")
        return values | {name: native for name in names if values.get(name, "auto") == "auto"}

    @field_validator("steps", "capture_steps")
    @classmethod
    def _known_steps(cls, value: str, info: ValidationInfo) -> str:
        for name in split_list(value):
            if name not in STEPS:
                raise ValueError(f"unknown step {name!r}; {suggest(name, STEPS)}")
        if info.field_name == "steps" and not split_list(value):
            raise ValueError("no step named; give at least one of " + ", ".join(STEPS))
        return value

    @field_validator("inproc_embed_sms")
    @classmethod
    def _sizes(cls, value: str) -> str:
        sm_sizes(value)
        return value

    @model_validator(mode="after")
    def _room_for_every_request(self) -> Params:
        if 0 < self.gen_max_num_seqs < self.gen_concurrency and self.gen_arrivals == "closed":
            raise ValueError(
                f"gen_max_num_seqs = {self.gen_max_num_seqs} is less than gen_concurrency = {self.gen_concurrency}: "
                "requests would queue; raise it, or leave it at 0"
            )
        return self

    @model_validator(mode="after")
    def _rates_of_demands(self) -> Params:
        for name in ("gen", "embed"):
            rate = getattr(self, f"{name}_rate")
            if rate > 0 and getattr(self, f"{name}_arrivals") == "closed":
                raise ValueError(
                    f"parameter '{name}_rate' = {rate:g} has no effect on a closed loop: set {name}_arrivals to "
                    "poisson or constant, or leave the rate at 0"
                )
        return self

    @model_validator(mode="after")
    def _what_an_embedding_server_can(self) -> Params:
        if (self.embed_engine == "url") != bool(self.embed_url):
            remedy = "give both, or neither: embed_engine: url drives the server that runs at embed_url"
            raise ValueError(
                f"parameters 'embed_engine' = {self.embed_engine!r} and 'embed_url' = {self.embed_url!r}: {remedy}"
            )
        if self.embed_url and not self.embed_url.startswith(("http://", "https://")):
            raise ValueError(
                f"parameter 'embed_url' = {self.embed_url!r} is no address: it begins with http:// or https://"
            )
        if self.embed_engine != "transformers" and (self.embed_pacing != "none" or self.embed_micro_batch_size):
            raise ValueError(
                f"embed_pacing and embed_micro_batch_size hold the loop back, not a server (embed_engine = "
                f"{self.embed_engine!r}): leave them out, or set embed_engine: transformers"
            )
        if self.embed_engine == "url" and self.capture_s:
            raise ValueError(
                "capture_s: nsys records only what it starts, and the server at embed_url runs: set it to 0"
            )
        return self

    @property
    def has_demand(self) -> bool:
        """Whether requests of either workload are due at a rate."""
        return self.gen_arrivals != "closed" or self.embed_arrivals != "closed"

    def step_names(self) -> list[str]:
        """The steps of the run, in the order of `STEPS`."""
        wanted = split_list(self.steps)
        return [name for name in STEPS if name in wanted]


# Complete, or nothing that imports this starts.
PURPOSES: dict[str, Purpose] = {name: purpose_of(name, field) for name, field in Params.model_fields.items()}


def names_touching(*touches: Touch) -> tuple[str, ...]:
    """The parameters that touch nothing but these."""
    return tuple(name for name, purpose in PURPOSES.items() if purpose.touches <= set(touches))


def split_list(value: str) -> list[str]:
    """The parts of a comma-separated value, stripped, empty ones left out."""
    return [part.strip() for part in value.split(",") if part.strip()]


def sm_sizes(text: str) -> tuple[int, ...]:
    """'96,64,32' to numbers, 0 for all SMs; raises ValueError for anything else, and for a size given twice."""
    words = split_list(text)
    if not words or not all(word.isdecimal() and int(word) <= 1024 for word in words):
        raise ValueError(f"{text!r} is no list of SM counts: give whole numbers by comma, 0 for all SMs")
    if len(set(words)) != len(words):
        raise ValueError(f"{text!r} names a size twice")
    return tuple(int(word) for word in words)


def check_recorded(values: dict[str, Any], source: str) -> Params:
    """The parameters of a record that an earlier version may have written, without those that are gone.

    Raises InputError as `check` does.
    """
    return check({name: value for name, value in values.items() if name not in RETIRED}, source)


def check(values: dict[str, Any], source: str) -> Params:
    """Turn plain values into `Params`; raises InputError naming every unknown or ill-typed one and `source`."""
    fields = Params.model_fields
    if gone := [f"parameter {name!r} is gone: {RETIRED[name]}" for name in values if name in RETIRED]:
        raise InputError(f"{source}: {'; '.join(gone)}")
    unknown = [str(name) for name in values if name not in fields]
    if unknown:
        complaints = "; ".join(f"unknown parameter {name!r}: {suggest(name, fields)}" for name in unknown)
        raise InputError(f"{source}: {complaints}")
    # YAML and papermill give 1 for 1.0: a whole number is a right value of a float parameter.
    floats = {name for name, field in fields.items() if field.annotation is float}
    plain: dict[str, Any] = {
        name: float(value) if name in floats and isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }
    try:
        return Params(**plain)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_complaint(item, fields) for item in error.errors())) from None


def _complaint(item: Any, fields: Any) -> str:
    if not item["loc"]:  # of several parameters together: the sentence names them
        return str(item["msg"]).removeprefix("Value error, ")
    name = str(item["loc"][0])
    help_text = fields[name].description if name in fields else ""
    return f"parameter {name!r} = {item['input']!r}: {item['msg']} ({help_text})"


def typed(name: str, text: str) -> Any:
    """A value given as text for parameter `name`: as it stands where the parameter is text, else read as YAML would.

    Raises InputError for text that is no YAML.
    """
    field = Params.model_fields.get(name)
    if field is not None and field.annotation is str:
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"parameter {name!r} = {text!r}: not a plain value: {' '.join(str(error).split())}") from None


def load(path: str | Path, **changes: Any) -> Params:
    """Read, check and freeze a params file, with `changes` on top."""
    return check({**read_file(path), **changes}, str(path))


def from_notebook(namespace: dict[str, Any]) -> Params:
    """The parameters of a notebook, from its namespace (`globals()`).

    The names that the parameters cell and papermill's injected cell assign are read off their sources,
    so that a misspelt one is found: it would otherwise be one more variable that nobody reads.
    """
    sources = [text for text in namespace.get("In", []) if text.startswith((CELL_HEADING, INJECTED_HEADING))]
    last = max((i for i, text in enumerate(sources) if text.startswith(CELL_HEADING)), default=0)
    names = {name for text in sources[last:] for name in _assigned(text)}
    if not sources:
        names = {name for name in Params.model_fields if name in namespace}
    return check({name: namespace[name] for name in sorted(names) if name in namespace}, "this notebook")


def _assigned(source: str) -> list[str]:
    statements = ast.parse(source).body
    targets = [node.targets for node in statements if isinstance(node, ast.Assign)]
    targets += [[node.target] for node in statements if isinstance(node, ast.AnnAssign)]
    return [target.id for group in targets for target in group if isinstance(target, ast.Name)]


def cell_source(names: Iterable[str]) -> str:
    """The source of a parameters cell: the default of each of `names`, one a line, with its help."""
    fields = Params.model_fields
    return "\n".join(
        [CELL_HEADING, *(f"{name} = {fields[name].default!r}  # {fields[name].description}" for name in names)]
    )
