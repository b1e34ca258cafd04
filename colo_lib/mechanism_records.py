"""What is told of how the GPU is shared: to whoever has to prove it, and as evidence in the records of a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from colo_lib.json_records import Count, Number, Record

# [pid, start time in seconds]: names a process also after its pid was given to another.
ProcessName = list[Number]


class MpsLimits(Record):
    """What a workload's MPS clients may use; `visible_sms` a GPU, as a first client saw them."""

    thread_percentage: Count | None = None
    priority: str | None = None
    memory_limit_gib: Number | None = None
    visible_sms: list[int] = Field(default_factory=list)


class Partition(Record):
    """A partition of the SMs with its check: how much longer a matrix product took on it, and should take."""

    backend: str | None = None
    all_sms: Count | None = None
    held_sms: Count | None = None
    slowdown_demanded: Number | None = None
    slowdown_measured: Number | None = None


class MigInstance(Record):
    """A workload's MIG instance."""

    uuid: str | None = None
    profile: str | None = None
    gib: Number | None = None
    sms: Count | None = None


class MechanismFacts(Record):
    """What any process of the run needs to prove that a mechanism is in force; `proved_by` names the proof.

    It travels with the engines' handles, in the launcher's private folder, and is in no run folder.
    """

    mechanism: str
    proved_by: str


class MpsFacts(MechanismFacts):
    """Folders and output of our own daemon, its process, and the limits of each workload."""

    pipe: str
    log: str
    output: str
    daemon: ProcessName | None
    gpus: list[str]
    limits: dict[str, MpsLimits]
    partition: Partition | None = None
    servers: list[ProcessName | None] = Field(default_factory=list)
    """Those that were seen when the engines were up: a later one is another."""


class TimeSlicedFacts(MechanismFacts):
    """The pipe folder that nobody listens in, and the devices."""

    empty_pipe: str
    default_daemon: bool
    devices: list[str]


class MigFacts(MechanismFacts):
    """The instances, by workload."""

    instances: dict[str, MigInstance]


class InProcessFacts(MechanismFacts):
    """Sockets of the embedding threads by rank, and what they were asked to be."""

    sockets: list[str]
    on_cuda: bool
    empty_pipe: str
    sizes: list[int]
    gen_priority: str


class Lane(Record):
    """Where passes of an embedder in the LLM's worker run, for one wanted size: SMs (cores, where they stand in).

    `wanted` 0: all. `backend`: green context, low priority, threads. The slowdowns are those of `Partition`.
    """

    wanted: Count
    held_sms: Count
    all_sms: Count
    backend: str
    graphs: bool | None = None
    """Whether passes are CUDA graphs, and why not."""
    why_eager: str = ""
    slowdown_demanded: Number | None = None
    slowdown_measured: Number | None = None


class HostedEmbed(Record):
    """An embedder in a thread of a rank's worker; what its policy did since it was given work.

    `passes`: [wanted size, passes on it]. `steps`, `prefill_steps`: of the engine since it began. `gaps`, `late_gaps`:
    between engine steps beside the embedder's passes, and those past the SLO.
    """

    rank: Count
    pid: Count
    tid: Count
    gen_priority: str
    lanes: list[Lane]
    policy: str | None = None
    size: Count | None = None
    passes: list[list[int]] = Field(default_factory=list)
    phase_waits: Count | None = None
    phase_waited_s: Number | None = None
    steps: Count | None = None
    prefill_steps: Count | None = None
    gaps: Count | None = None
    late_gaps: Count | None = None


class Evidence(Record):
    """`mechanism_evidence`: proof of how the GPU was shared. Nothing is computed from it: any shape is kept."""

    mechanism: str | None = None


class MpsEvidence(Evidence):
    """Engines were clients of our MPS server, by pid against its own list."""

    mechanism: str
    daemon_pid: Count
    servers: list[ProcessName | None]
    clients: list[int]
    attached: dict[str, list[int]]
    other_clients: list[int]
    limits: dict[str, MpsLimits]
    partition: Partition | None = None
    gpus: list[str]
    nvml_lists_them: bool | str


class TimeSlicedEvidence(Evidence):
    """No engine was an MPS client: by its environment, and by NVML's list of such clients."""

    mechanism: str
    mps_variables: dict[str, dict[str, str]]
    default_daemon: bool
    mps_clients_by_nvml: list[int] | str
    processes: Count


class MigEvidence(Evidence):
    """Each workload computed on its own MIG instance."""

    mechanism: str
    instances: dict[str, MigInstance]
    listed_by_nvml: dict[str, list[int]]


class InProcessEvidence(Evidence):
    """The embedder was a thread of the LLM's worker on SMs of its own, and nothing was an MPS client."""

    mechanism: str
    hosts: list[HostedEmbed]
    mps_variables: dict[str, dict[str, str]]
    mps_clients_by_nvml: list[int] | str
    processes: Count


EVIDENCE: tuple[type[Evidence], ...] = (MpsEvidence, InProcessEvidence, TimeSlicedEvidence, MigEvidence)


def _by_shape(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """The kind of evidence whose fields are there; what is of no known shape is evidence all the same."""
    if isinstance(value, dict):
        for kind in EVIDENCE:
            try:
                return kind.model_validate(value)
            except ValidationError:
                continue
    return check(value)


AnyEvidence = Annotated[SerializeAsAny[Evidence], WrapValidator(_by_shape)]
