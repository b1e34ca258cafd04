"""Parameters: one flat, frozen, checked set of names, the same in every notebook and params file.

A params file is plain YAML with flat values, so that `papermill -f` takes it as it is. Every value is
checked for its type and range, and an unknown name stops with the nearest right one: papermill itself
would only warn and go on.
"""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from colo_lib.errors import InputError

RUN_ID = r"[a-z0-9][a-z0-9_-]{0,63}"
STEPS = (
    "step1", "step2", "step3", "step4", "mps-alone", "configA", "configB", "configB-one", "tp2-mps-alone", "tp2-alone",
    "mig", "sm-partition",
)  # fmt: skip
MAX_PARAMS_BYTES = 64 * 1024
# Parameters of earlier versions, with what took their place.
RETIRED = {"interleave": "'starts' says how often the engines are started anew; as many as 'blocks' is 'all'"}
CELL_HEADING = "# Parameters, the same in every notebook: `colo run`, `papermill -f` and you may change them."
INJECTED_HEADING = "# Parameters"


class Params(BaseModel):
    """Every parameter of the workbook; the field's description is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # --- where results go, and what is read -----------------------------------------------------------
    run_name: str = Field("cpu", pattern=rf"^{RUN_ID}$", description="first part of the run folder's name")
    runs_dir: str = Field("runs", description="folder that holds the run folders")
    run: str = Field("", description="run folder; empty: a new one is made, or the newest finished one is read")
    sweep: str = Field(
        "", description="sweep folder that 31-37 and 55 read; empty: the newest fitting one, or an example"
    )
    sweeps_dir: str = Field("sweeps", description="folder that holds the sweep folders")
    block: int = Field(0, ge=0, le=1000, description="block of trials to record; 0: all blocks of this step")
    exports: str = Field("", description="Nsight Systems SQLite exports to read instead of a run, comma-separated")
    exports_alone: str = Field(
        "", description="exports of gen or embed alone, for durations alone against shared, comma-separated"
    )
    trace_step: str = Field("", description="step whose capture is read; empty: the first that has one")
    trace_gen: str = Field("", description="pid or process name of gen in the exports; empty: the likely one")
    trace_embed: str = Field("", description="pid or process name of embed in the exports; empty: the likely one")
    trace_window: str = Field("", description="START_S:END_S of the exports to look at; empty: all of it")
    # --- machine ---------------------------------------------------------------------------------------
    device: Literal["cpu", "cuda"] = Field("cpu", description="cpu: cores stand in for devices; cuda: NVIDIA GPUs")
    devices: str = Field("0,1", description="cores, GPU indexes or GPU UUIDs that count as the devices, by comma")
    steps: str = Field("step1,step2,step3,step4,configA,configB", description="steps of the run, by comma")
    # --- the two models --------------------------------------------------------------------------------
    gen_model: str = Field("tiny-gen", description="name under colo_lib/models, or a folder with a config.json")
    embed_model: str = Field("tiny-embed", description="name under colo_lib/models, or a folder with a config.json")
    weights: Literal["dummy", "hub"] = Field(
        "dummy", description="dummy: true architecture, random weights; hub: published"
    )
    gen_python: str = Field("auto", description="interpreter that has vLLM; auto: .venv-engine, else this one")
    embed_python: str = Field("auto", description="interpreter that has torch and transformers; auto: as gen_python")
    # --- gen: vLLM -------------------------------------------------------------------------------------
    gen_concurrency: int = Field(2, ge=1, le=4096, description="requests in flight, closed loop")
    gen_max_num_seqs: int = Field(
        0, ge=0, le=4096, description="vLLM max_num_seqs; 0: gen_concurrency. Set, engines serve several concurrencies"
    )
    gen_prompt_tokens: int = Field(32, ge=1, le=1_000_000, description="prompt length, tokens")
    gen_output_tokens: int = Field(32, ge=2, le=1_000_000, description="output length, tokens (ignore_eos)")
    gen_max_model_len: int = Field(512, ge=8, le=10_000_000, description="vLLM max_model_len, tokens")
    gen_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="weights of gen; auto: bfloat16 on GPUs, float32 on CPUs, which all multiply it"
    )
    gen_quantization: Literal["", "fp8"] = Field("", description="vLLM quantization; fp8 is dynamic")
    gen_enforce_eager: bool = Field(True, description="no CUDA graphs")
    gen_gpu_memory_utilization: float = Field(0.45, gt=0, le=1, description="share of the GPU that vLLM may fill")
    gen_kv_cache_gib: float = Field(1.0, ge=0, le=4096, description="KV cache, GiB; 0 leaves it to vLLM (GPU only)")
    gen_port: int = Field(0, ge=0, le=65535, description="loopback port of the server; 0: a free one")
    gen_extra_args: str = Field("", description="further vLLM server arguments, split as a shell would")
    # --- embed -----------------------------------------------------------------------------------------
    embed_batch_size: int = Field(8, ge=1, le=65536, description="sequences a batch")
    embed_sequence_tokens: int = Field(128, ge=1, le=1_000_000, description="tokens a sequence")
    embed_pooling: Literal["mean", "last"] = Field("mean", description="how token states become one vector")
    embed_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="weights of embed; auto: as of gen"
    )
    # --- sharing ---------------------------------------------------------------------------------------
    slice_ms: float = Field(50.0, gt=0, le=60_000, description="cpu-alternating: length of one workload's slice")
    mps_gen_thread_percentage: int = Field(100, ge=1, le=100, description="MPS: share of the SMs gen may use, %")
    mps_embed_thread_percentage: int = Field(100, ge=1, le=100, description="MPS: share of the SMs embed may use, %")
    mps_gen_priority: Literal["normal", "below-normal"] = Field("normal", description="MPS client priority of gen")
    mps_embed_priority: Literal["normal", "below-normal"] = Field("normal", description="MPS client priority of embed")
    mps_gen_memory_gib: float = Field(0.0, ge=0, le=4096, description="MPS: memory limit of gen, GiB; 0: none")
    mps_embed_memory_gib: float = Field(0.0, ge=0, le=4096, description="MPS: memory limit of embed, GiB; 0: none")
    sm_partition_backend: Literal["auto", "green-context", "mps-static", "libsmctrl"] = Field(
        "auto", description="sm-partition: how embed is held to its SMs; auto: the first that verifies"
    )
    sm_partition_embed_sms: int = Field(32, ge=1, le=1024, description="sm-partition: SMs that embed may use")
    mig_gen_uuid: str = Field("", description="mig: instance of gen, MIG-UUID; empty: the largest")
    mig_embed_uuid: str = Field("", description="mig: instance of embed, MIG-UUID; empty: the largest other one")
    embed_pacing: Literal["none", "duty", "slo"] = Field(
        "none", description="none: flat out; duty: a share of the time; slo: as much as gen's gap SLO leaves"
    )
    embed_duty: float = Field(0.5, gt=0, le=1, description="duty: share of the time that embed may run")
    embed_micro_batch_size: int = Field(0, ge=0, le=65536, description="sequences a forward pass; 0: the batch")
    # --- Nsight Systems --------------------------------------------------------------------------------
    capture_s: float = Field(0.0, ge=0, le=600, description="length of each step's capture, seconds; 0: no capture")
    capture_steps: str = Field("", description="steps that are captured, by comma; empty: every step of the run")
    capture_graph_trace: Literal["node", "graph"] = Field("node", description="kernels of CUDA graphs, or graphs whole")
    # --- measuring -------------------------------------------------------------------------------------
    blocks: int = Field(6, ge=1, le=1000, description="trials of each step, interleaved in alternating order")
    starts: int = Field(
        3, ge=1, le=1000, description="starts of each set of engines, over which the blocks are spread; at most blocks"
    )
    warmup_s: float = Field(1.5, ge=0, le=3600, description="dropped before each trial's window, seconds")
    window_s: float = Field(3.0, gt=0, le=86_400, description="timed window of a trial, seconds")
    telemetry_hz: float = Field(10.0, gt=0, le=1000, description="telemetry samples a second")
    ready_timeout_s: float = Field(180.0, gt=0, le=86_400, description="an engine must answer within this")
    stall_timeout_s: float = Field(120.0, gt=0, le=86_400, description="no token or batch for so long fails a trial")
    cell_timeout_s: float = Field(900.0, gt=0, le=864_000, description="a notebook cell must end within this")
    max_drift_fraction: float = Field(0.5, gt=0, description="halves of a window that differ by more make it invalid")
    max_clock_disagreement: float = Field(0.02, gt=0, description="our token rate against vLLM's own counter")
    max_stranger_cores: float = Field(0.3, gt=0, description="CPU: cores that other processes may use in a window")
    seed: int = Field(1, ge=0, le=2**31, description="of prompts and simulated data")
    # --- what counts as good ---------------------------------------------------------------------------
    slo_gen_stall_ms: float = Field(1000.0, gt=0, description="longest time gen may go without a token")
    slo_gen_ttft_ms: float = Field(2000.0, gt=0, description="time to first token")
    slo_gen_gap_ms: float = Field(200.0, gt=0, description="p99 time between two tokens of a request; paces embed")
    slo_embed_batch_ms: float = Field(5000.0, gt=0, description="time from an embedding batch's start to its end")
    slo_embed_stall_ms: float = Field(5000.0, gt=0, description="longest time embed may go without a finished batch")
    min_gen_kept: float = Field(0.95, gt=0, le=2, description="verdict: least kept fraction of gen")
    max_gap_growth: float = Field(0.10, ge=0, description="verdict: most growth of gen's p99 inter-token gap")
    min_embed_kept: float = Field(0.20, ge=0, le=2, description="verdict: least kept fraction of embed")
    min_overlap: float = Field(0.05, ge=0, le=1, description="verdict: least overlap of gen's time, no upper bound")
    min_profiled_ratio: float = Field(0.8, ge=0, le=1, description="verdict: least rate under the profiler / without")
    # --- capacity plan ---------------------------------------------------------------------------------
    capacity_devices: int = Field(8, ge=1, le=100_000, description="54: GPUs to be shared out")
    capacity_tokens_per_s: float = Field(0.0, ge=0, description="54: tokens/s wanted; 0: what half the GPUs give alone")
    capacity_sequences_per_s: float = Field(
        0.0, ge=0, description="54: sequences/s wanted; 0: what a quarter of the GPUs give alone"
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

    @model_validator(mode="after")
    def _room_for_every_request(self) -> Params:
        if 0 < self.gen_max_num_seqs < self.gen_concurrency:
            raise ValueError(
                f"gen_max_num_seqs = {self.gen_max_num_seqs} is less than gen_concurrency = {self.gen_concurrency}: "
                "requests would queue; raise it, or leave it at 0"
            )
        return self

    def step_names(self) -> list[str]:
        """The steps of the run, in the order of `STEPS`."""
        wanted = split_list(self.steps)
        return [name for name in STEPS if name in wanted]


def split_list(value: str) -> list[str]:
    """The parts of a comma-separated value, stripped, empty ones left out."""
    return [part.strip() for part in value.split(",") if part.strip()]


def suggest(name: str, known: Any) -> str:
    """'did you mean …' for a misspelt name, or the list of known ones."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))


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
        told = "; ".join(f"unknown parameter {name!r}: {suggest(name, fields)}" for name in unknown)
        raise InputError(f"{source}: {told}")
    # YAML and papermill give 1 for 1.0: a whole number is a right value of a float parameter.
    floats = {name for name, field in fields.items() if field.annotation is float}
    plain: dict[str, Any] = {
        name: float(value) if name in floats and isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }
    try:
        return Params(**plain)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_told(item, fields) for item in error.errors())) from None


def _told(item: Any, fields: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "?"
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


def read_file(path: str | Path) -> dict[str, Any]:
    """Plain values of a params file, unchecked; raises InputError for anything that is not a flat mapping."""
    file = Path(path)
    if not file.is_file():
        known = sorted(str(other) for other in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        remedy = suggest(str(file), known) if known else "give a path to a .yaml file"
        raise InputError(f"no params file {file}; {remedy}")
    if file.stat().st_size > MAX_PARAMS_BYTES:
        raise InputError(f"{file}: larger than {MAX_PARAMS_BYTES} bytes, which no params file is")
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_FlatLoader)
    # TypeError: a key that is a list; RecursionError: thousands of nested brackets.
    except (yaml.YAMLError, UnicodeDecodeError, InputError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a flat YAML mapping: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: a params file is a mapping of names to plain values")
    return loaded


class _FlatLoader(yaml.SafeLoader):
    """Safe YAML that refuses what a flat file never needs: aliases, doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise InputError("aliases are not allowed in a params file")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise InputError(f"parameter {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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


def cell_source() -> str:
    """The source of the parameters cell that every notebook starts with: one plain value a line, with its help."""
    lines = [CELL_HEADING]
    for name, field in Params.model_fields.items():
        lines.append(f"{name} = {field.default!r}  # {field.description}")
    return "\n".join(lines)
