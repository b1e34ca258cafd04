"""Records of a run folder and of a sweep: what each holds, field by field, and how it is read and written.

What the records of a run folder hold, field by field: the types that docs/run-folder.md tells of.

Fields that are not named here may be there; a field that is has its type and lies within reason, so that whoever reads
a record need not ask again.

A JSON object out of a file from outside, or a sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from colo_lib.errors import InputError
from colo_lib.params import RUN_ID, STEPS

# Monotonic or UTC times of this century, in ns, and their differences, are far from what int64 holds.
Ns = Annotated[int, Field(ge=0, lt=2**62)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(ge=0)]
Ordinal = Annotated[int, Field(ge=1, le=1_000_000)]
Status = Literal["done", "invalid", "skipped", "failed"]
Step = Literal[STEPS]  # type: ignore[valid-type]
Devices = list[str | int | list[str | int]]
SAME_LENGTH_S = 1e-3


class Record(BaseModel):
    """A record from outside: no type is made another, no number is infinite or none."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


class TelemetryFacts(Record):
    """`telemetry` of a trial: the driver's reasons, when the sampler was away, memory by device."""

    absent: dict[str, dict[str, str | None]] = {}
    gaps: list[dict[str, Any]] = []
    totals_gib: dict[str, Number | None] = {}


class PacingFacts(Record):
    """`pacing` of a trial."""

    kind: str


class Trial(Record):
    """trial.json."""

    step: Step
    trial: Ordinal
    block: Ordinal | None = None
    mechanism: str | None = None
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
    devices: dict[str, Devices | None] | None = None
    pids: dict[str, list[int]] | None = None
    engine_starts: dict[str, str | None] | None = None
    memory_gib: dict[str, Number | None] | None = None
    memory_parts_gib: dict[str, dict[str, float | None] | None] | None = None
    telemetry_cost: dict[str, Number | None] | None = None
    telemetry: TelemetryFacts | None = None
    pacing: PacingFacts | None = None
    mechanism_evidence: dict[str, Any] | None = None
    stranger_cores: Number | None = None
    latency_clock: str | None = None
    measured_in: str | None = None

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
    gpu: dict[str, Any] | None = None
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


class BudgetRow(Record):
    """`budget`, a device."""

    device: str
    available_gib: Number | None = None
    parts: dict[str, Number]


class Start(Record):
    """start.json, which a manifest holds too: what was known when the run began."""

    created_utc: str | None = None
    params: dict[str, Any]
    machine: Machine
    models: dict[str, ModelFacts]
    budget: list[BudgetRow]
    notes: list[str] = []
    total_s: Number | None = None


class Manifest(Start):
    """manifest.json."""

    run_id: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    finished_utc: str | None = None
    trials: list[ListedTrial]
    captures: list[ListedCapture] = []
    files: dict[str, ListedFile]
    measured_s: Number | None = None


class Clock(Record):
    """`clock` of a capture: one moment by both clocks."""

    monotonic_ns: Ns
    utc_ns: Ns


class CaptureFacts(Record):
    """capture.json."""

    step: Step | None = None
    status: str = "done"
    reason: str | None = None
    mechanism: str | None = None
    traced: str | None = None
    granularity: str | None = None
    window_ns: Annotated[list[Ns], Field(min_length=2, max_length=2)] | None = None
    clock: Clock | None = None
    pids: dict[str, list[int]] | None = None
    visible_devices: dict[str, list[str]] | None = None
    context_switches: bool | None = None
    profiled: dict[str, Number | None] | None = None
    exports: list[str] | None = None
    command: list[str] | None = None
    joint_reason: str | None = None
    mechanism_evidence: dict[str, Any] | None = None


class SweepAxis(Record):
    """What a sweep varies together."""

    names: list[str]


class SweepRow(Record):
    """A cell of a sweep's plan: its folder's name and what it changes."""

    cell: Annotated[str, Field(pattern=f"^{RUN_ID}$")]
    changes: dict[str, bool | int | float | str]


class SweepPlan(Record):
    """sweep.json."""

    sweep_id: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    created_utc: str | None = None
    params: dict[str, Any]
    over: Annotated[list[SweepAxis], Field(min_length=1)]
    cells: Annotated[list[SweepRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _changes(self) -> SweepPlan:
        """Every cell says what it changes of each name."""
        for name in (name for axis in self.over for name in axis.names):
            for row in self.cells:
                if name not in row.changes:
                    raise ValueError(f"{row.cell} does not say its {name!r}")
        return self


class Cell(Record):
    """cell.json."""

    status: str
    reason: str | None = None
    host: str | None = None


MAX_BYTES = 64 * 2**20
MOST_TOLD = 3
REMEDY = "take it again from where it was recorded, or leave it out"

Model = TypeVar("Model", bound=BaseModel)


def damaged(what: object, told: str) -> InputError:
    """The error for a file or a folder from outside that is not what was recorded: what, how, and the remedy."""
    return InputError(f"{what}: {told}; {REMEDY}")


def read_object(file: Path, most_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object that `file` holds; raises InputError where it is larger than `most_bytes`, or no JSON object.

    Text that is no text (a NUL, half a surrogate pair) is refused here: it can be no name, no path, and not be shown.
    """
    try:
        if file.exists() and not file.is_file():
            raise ValueError("no file, but a folder, a pipe or the like")
        if file.stat().st_size > most_bytes:
            raise damaged(file, f"larger than {most_bytes} bytes, which no such file is")
        loaded = json.loads(file.read_text(encoding="utf-8"))
        for text in _texts(loaded):
            if b"\0" in text.encode():
                raise ValueError(f"the text {text[:40]!r} holds a NUL")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, f"not readable as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise damaged(file, f"holds no JSON object but a {type(loaded).__name__}")
    return loaded


def checked(model: type[Model], loaded: dict[str, Any], file: object) -> Model:
    """`loaded` as `model`; raises InputError naming `file` and the first fields that are not as they should be."""
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        told = [f"{_place(item['loc'])!r} = {_short(item['input'])}: {item['msg']}" for item in error.errors()]
        more = f" (and {len(told) - MOST_TOLD} more)" if len(told) > MOST_TOLD else ""
        raise damaged(file, "; ".join(told[:MOST_TOLD]) + more) from None


def _texts(value: Any) -> Iterator[str]:
    """Every text in it, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value:
            yield from _texts(item)
        yield from _texts(list(value.values())) if isinstance(value, dict) else ()


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the record"


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:57] + "..."


def now_utc() -> str:
    """Wall-clock time, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or nothing: temporary name, fsync, rename."""
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


BUDGET_PARTS = ("gen weights", "gen KV cache", "gen activations", "embed weights", "embed activations", "reserve")
