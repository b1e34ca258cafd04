"""Records of a run folder and of a sweep: what each holds, field by field. docs/run-folder.md tells of them.

Whoever writes one makes it here, whoever reads one gets it from here. A field that is added is private until
`report/share.py` lists it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from colo_lib.json_records import Count, Ns, Number, Ordinal, Record, Signed
from colo_lib.mechanism_records import AnyEvidence
from colo_lib.paths import RUN_ID
from colo_lib.steps import STEP_IDS

Status = Literal["done", "invalid", "skipped", "failed"]
Step = Literal[STEP_IDS]  # type: ignore[valid-type]
Devices = list[str | int | list[str | int]]
Value = bool | int | float | str
"""Of a parameter."""

SAME_LENGTH_S = 1e-3


class TelemetryGap(Record):
    """When the sampler was away, and why; a time is null where no sample was taken before or after."""

    start_ns: Ns | None = None
    end_ns: Ns | None = None
    reason: str | None = None


class TelemetryFacts(Record):
    """`telemetry` of a trial: the driver's reasons, when the sampler was away, memory by device."""

    absent: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    gaps: list[TelemetryGap] = Field(default_factory=list)
    totals_gib: dict[str, Number | None] = Field(default_factory=dict)
    strangers_unknown: str | None = None


class TelemetryCost(Record):
    """`telemetry_cost` of a trial: what the sampling took; empty where the sampler died before it told."""

    cpu_fraction: Number | None = None
    samples: Number | None = None
    hz: Number | None = None
    longest_sample_ms: Number | None = None


class PacingFacts(Record):
    """`pacing` of a trial: how embed was held back, if at all; `duty` where it is a fixed one."""

    kind: str
    micro_batch_size: Count | None = None
    duty: Number | None = None


class MemoryParts(Record):
    """`memory_parts_gib` of a trial, a workload: what its device memory is made of, GiB a process."""

    weights: Signed | None = None
    kv_cache: Signed | None = None
    graphs: Signed | None = None
    activations: Signed | None = None
    cached: Signed | None = None
    rest: Signed | None = None


class GenLoad(Record):
    """`gen_load` of a trial: how gen's load stood in the window (`launch/gen_load.py`, `frames.age_spread`)."""

    processes: Count | None = None
    """Of the load client."""
    client_busiest_cores: Number | None = None
    """The most of a core that one of them used over a second."""
    age_spread: Number | None = None
    """1: the ages of running requests are spread evenly; 0: all in lockstep."""
    preemptions: Count | None = None
    waiting: Number | None = None
    """Requests in vLLM's queue on average."""
    kv_tokens: Count | None = None
    """What vLLM's KV cache holds."""


class DemandFacts(Record):
    """`demand` of a trial, a workload: what was asked of it, and how many of its requests were due in the window."""

    arrivals: str
    rate: Number
    """A second: requests of gen, sequences of embed."""
    due: Count


class TrialEvidence(Record):
    """`mechanism_evidence` of a trial: proof of how the GPU was shared, before the window and after it."""

    before: AnyEvidence | None = None
    after: AnyEvidence | None = None


class WindowFacts(Record):
    """What the frames of a trial say of its window; its status says whether it counts."""

    status: Status
    reason: str | None = None
    window_start_ns: Ns | None = None
    window_end_ns: Ns | None = None
    window_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    gen_tokens: Count | None = None
    gen_tokens_per_s: Number | None = None
    gen_server_tokens_per_s: Number | None = None
    gen_server_mean_gap_ms: Number | None = None
    clock_disagreement: Number | None = None
    embed_sequences: Count | None = None
    embed_sequences_per_s: Number | None = None
    drift_fraction: dict[str, Number | None] | None = None
    neighbour: str | None = None
    stranger_cores: Number | None = None
    gen_load: GenLoad | None = None
    demand: dict[str, DemandFacts] | None = None
    marks: list[str] | None = None
    """What is worth knowing of a trial and makes it no less right."""


class MeasuredTrial(WindowFacts):
    """What a trial's measurement adds to its record."""

    memory_gib: dict[str, Number | None] | None = None
    memory_parts_gib: dict[str, MemoryParts | None] | None = None
    telemetry_cost: TelemetryCost | None = None
    telemetry: TelemetryFacts | None = None
    mechanism_evidence: TrialEvidence | None = None


class Trial(MeasuredTrial):
    """trial.json."""

    measured_in: str | None = None
    schema_version: int | None = None
    step: Step
    trial: Ordinal
    block: Ordinal | None = None
    mechanism: str | None = None
    devices: dict[str, Devices | None] | None = None
    pids: dict[str, list[int]] | None = None
    engine_starts: dict[str, str | None] | None = None
    latency_clock: str | None = None
    pacing: PacingFacts | None = None
    embed_unproved: str | None = None

    @model_validator(mode="after")
    def _window(self) -> Trial:
        """A trial that was measured has a window, which ends after it starts and is as long as it says."""
        if self.window_start_ns is None or self.window_end_ns is None:
            if self.measured:
                raise ValueError(f"the trial is {self.status} and has no window")
            return self
        length_s = (self.window_end_ns - self.window_start_ns) / 1e9
        if length_s <= 0:
            raise ValueError(f"the window is empty: it ends {-length_s:g} s before it starts")
        if self.window_s is not None and abs(length_s - self.window_s) > SAME_LENGTH_S:
            raise ValueError(f"the window is {length_s:g} s long and says {self.window_s:g} s")
        return self

    @property
    def measured(self) -> bool:
        """Whether a window was measured, be it valid or not."""
        return self.status in ("done", "invalid")


class ListedTrial(Record):
    """A row of the manifest's `trials`."""

    step: Step
    trial: Ordinal
    block: Ordinal | None = None
    status: Status
    reason: str | None = None
    folder: str | None = None


class ListedCapture(Record):
    """A row of the manifest's `captures`."""

    step: Step
    status: str
    reason: str | None = None
    folder: str | None = None


class ListedFile(Record):
    """A value of the manifest's `files`."""

    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class GpuFacts(Record):
    """`machine.gpu`: the first GPU of the run; what NVML did not tell is null. `ecc`: now, and after a reboot."""

    name: str | None = None
    uuid: str | None = None
    driver: str | None = None
    cuda: str | None = None
    memory_gib: Number | None = None
    power_limit_w: Number | None = None
    sm_clock_max_mhz: Number | None = None
    compute_mode: Count | None = None
    ecc: list[int] | None = None
    nvlinks: Count | None = None


class Machine(Record):
    """`machine`: what the run ran on; what could not be found out is null."""

    stand_in: bool | None = None
    simulated: bool | None = None
    device_kind: str | None = None
    device_name: str | None = None
    device_count: Count | None = None
    driver: str | None = None
    cuda: str | None = None
    power_limit_w: Number | None = None
    gpu: GpuFacts | None = None
    cpu: str | None = None
    cores: Count | None = None
    memory_gib: Number | None = None
    os: str | None = None
    versions: dict[str, str | None] | None = None
    vllm_settings: dict[str, str] | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    boot_id: str | None = None


class ModelFacts(Record):
    """`models`, one of them."""

    name: str | None = None
    architecture: str | None = None
    parameters: Number | None = None
    weights: str | None = None
    dtype: str | None = None


BUDGET_PARTS = ("gen weights", "gen KV cache", "gen activations", "embed weights", "embed activations", "reserve")


class BudgetRow(Record):
    """`budget`, a device; `parts`: GiB by what they are for."""

    device: str
    available_gib: Number | None = None
    parts: dict[str, Number]


class Shared(Record):
    """`shared` of a record that `colo share` made: how much of each kind was replaced."""

    removed: dict[str, int] | None = None


class Start(Record):
    """start.json, which a manifest holds too: what was known when the run began."""

    created_utc: str | None = None
    params: dict[str, Any]
    """As resolved, by the names that they had when it was recorded: `params.check_recorded` reads them."""
    machine: Machine
    models: dict[str, ModelFacts]
    budget: list[BudgetRow]
    notes: list[str] = Field(default_factory=list)
    total_s: Number | None = None
    shared: Shared | None = None

    def model_of(self, workload: str) -> ModelFacts:
        """The model of gen or embed; all of it null where none is recorded."""
        return self.models.get(workload) or ModelFacts()


class Manifest(Start):
    """manifest.json."""

    schema_version: int | None = None
    run_id: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    status: str | None = None
    finished_utc: str | None = None
    trials: list[ListedTrial]
    captures: list[ListedCapture] = Field(default_factory=list)
    files: dict[str, ListedFile]
    measured_s: Number | None = None


class Clock(Record):
    """`clock` of a capture: one moment by both clocks."""

    monotonic_ns: Ns
    utc_ns: Ns


class ProfiledRates(Record):
    """`profiled` of a capture: what both workloads did below the profiler, never used as throughput."""

    gen_tokens_per_s: Number | None = None
    embed_sequences_per_s: Number | None = None


Window = Annotated[list[Ns], Field(min_length=2, max_length=2)]


class CaptureFacts(Record):
    """capture.json."""

    schema_version: int | None = None
    step: Step | None = None
    mechanism: str | None = None
    status: str = "done"
    reason: str | None = None
    window_ns: Window | None = None
    recorded_window_ns: Window | None = None
    """The window as it was recorded, where `colo share` kept a part of it."""
    clock: Clock | None = None
    devices: dict[str, Devices | None] | None = None
    pids: dict[str, list[int]] | None = None
    threads: dict[str, list[list[int]]] | None = None
    """Of a workload that lives in a process of the other's: [pid, thread] of each thread that launches its work."""
    traced: str | None = None
    granularity: str | None = None
    context_switches: bool | None = None
    profiled: ProfiledRates | None = None
    pacing: PacingFacts | None = None
    visible_devices: dict[str, list[str]] | None = None
    mechanism_evidence: AnyEvidence | None = None
    exports: list[str] | None = None
    nsys_version: str | None = None
    command: list[str] | None = None
    sessions: str | None = None
    joint_reason: str | None = None


class SweepAxis(Record):
    """What a sweep varies together: names, and a list of values a place, one a name."""

    names: list[str]
    values: list[list[Value | None]] = Field(default_factory=list)


class SweepRow(Record):
    """A cell of a sweep's plan: its folder's name and what it changes."""

    cell: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    changes: dict[str, Value]


class SweepPlan(Record):
    """sweep.json."""

    schema_version: int | None = None
    sweep_id: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    created_utc: str | None = None
    params: dict[str, Any]
    jointly: bool | None = None
    over: Annotated[list[SweepAxis], Field(min_length=1)]
    cells: Annotated[list[SweepRow], Field(min_length=1)]
    shared: Shared | None = None

    @model_validator(mode="after")
    def _changes(self) -> SweepPlan:
        """Every cell says what it changes of each name."""
        for name in (name for axis in self.over for name in axis.names):
            for row in self.cells:
                if name not in row.changes:
                    raise ValueError(f"{row.cell} does not say its {name!r}")
        return self


class Cell(Record):
    """cell.json, as anybody may have shared it."""

    cell: str | None = None
    status: str
    reason: str | None = None
    attempts: Count | None = None
    host: str | None = None
    total_s: Number | None = None


class CellRecord(Cell):
    """cell.json as a launcher writes it. `refused`: its parameters cannot be run here, as where models do not fit."""

    cell: str
    reason: str | None
    attempts: Count
    host: str
    total_s: Number
