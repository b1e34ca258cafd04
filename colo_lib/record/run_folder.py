"""A run folder while it is being made, from its start record to the manifest that seals it.

It is begun, taken up again, and held by one launcher at a time. The manifest is written last: it makes a folder a run.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colo_lib.errors import InputError
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.hardware.budget import demand_of, format_budget, refuse_if_too_large
from colo_lib.hardware.engine_python import resolve_models
from colo_lib.hardware.machine import describe
from colo_lib.hardware.memory import budget_here
from colo_lib.hardware.nvml import look_at_gpus
from colo_lib.json_records import now_utc
from colo_lib.launch.preflight import preflight, preflight_embed
from colo_lib.launch.specs import Specs, specs_of
from colo_lib.params import STEPS, Params, check_recorded
from colo_lib.paths import (
    CAPTURE,
    MANIFEST,
    NOTEBOOKS,
    PARTIAL,
    START,
    TRIAL,
    capture_folder,
    from_checkout,
    partial_folder,
    trial_folder,
)
from colo_lib.placement import Placement, placement_of
from colo_lib.records import CaptureFacts, ListedCapture, ListedFile, ListedTrial, Manifest, Start, Trial

Say = Callable[[str], None]
LOCK = ".lock"


@dataclass(frozen=True)
class OpenRun:
    """A run that is being recorded: its `.partial` folder, and the parameters that its trials are recorded with."""

    folder: Path
    params: Params

    def placement(self, step: str) -> Placement:
        """Where a step runs; raises InputError when the machine's devices do not suffice."""
        return placement_of(step, self.params)

    def specs(self, placement: Placement) -> Specs:
        """What the launcher is told for a step; raises InputError as `specs_of` does."""
        return specs_of(self.params, placement)

    def lacks(self, step: str, block: int) -> bool:
        """Whether a trial is still to be recorded."""
        return not counts(trial_status(self.folder, step, block))

    def needed_gib(self) -> dict[str, float]:
        """GiB that the run puts on each device, as planned when it was begun; empty without that record."""
        if not (self.folder / START).is_file():
            return {}
        budget = Start.read(self.folder / START).budget
        return {group.device: sum(group.parts.values()) for group in budget}


def begin_run(params: Params, suffix: str = "", say: Say = print) -> OpenRun:
    """A new `.partial` folder that holds what is known at the start: parameters, machine, models, budget.

    Raises InputError, before anything is created, when the models cannot be found or cannot fit, or when a GPU's mode
    rules a step out.
    """
    models = resolve_models(params)
    gpus = look_at_gpus() if params.device == "cuda" else None
    demand = demand_of(params)
    budget = budget_here(demand, gpus)
    refuse_if_too_large(budget)
    say(format_budget(budget))
    placements = [placement_of(step, params) for step in params.step_names()] if gpus else []
    notes = preflight(demand.devices, placements, gpus) if gpus else []
    for note in notes:
        say(f"note: {note}")
    preflight_embed([specs_of(params, placement_of(step, params)).engines for step in params.step_names()])
    name = "-".join(part for part in (params.run_name, time.strftime("%Y%m%d-%H%M%S", time.gmtime()), suffix) if part)
    # A notebook of the checkout makes its runs where `colo run` does.
    root = from_checkout(params.runs_dir) if Path.cwd() == NOTEBOOKS else params.runs_dir
    folder = partial_folder(root, name)
    start = Start(
        created_utc=now_utc(),
        params=params.model_dump(),
        machine=describe(params.device, demand.devices, models.gen.python),
        models=models.facts(),
        budget=budget.record(),
        notes=notes,
    )
    # Under a name that is no run's until its start record is there: who is killed here leaves nothing to be resumed.
    unborn = folder.with_name(f".{folder.name}")
    try:
        (unborn / "steps").mkdir(parents=True)
        start.write(unborn / START)
        unborn.rename(folder)
    except OSError as error:
        raise InputError(f"parameter 'runs_dir' = {params.runs_dir!r}: {folder} cannot be made: {error}") from None
    return OpenRun(folder, params)


def resume(named: str | Path, runs_dir: str | Path, check_unfinished: Callable[[Path], None]) -> OpenRun:
    """An unfinished run, by path or run id; `check_unfinished` looks at what it holds.

    Raises InputError when there is none, or what that check raises for damage.
    """
    text = str(named).rstrip("/")
    for candidate in (Path(text), Path(text + PARTIAL), Path(runs_dir) / text, Path(runs_dir) / (text + PARTIAL)):
        # A manifest in a `.partial` folder: its launcher was killed before the folder got its name, and seals it again.
        if (candidate / MANIFEST).is_file() and not candidate.name.endswith(PARTIAL):
            raise InputError(f"{candidate} is finished: there is nothing to resume; colo report {candidate}")
        if (candidate / START).is_file():
            check_unfinished(candidate)
            return OpenRun(candidate, read_params(candidate))
    raise InputError(f"no unfinished run {text!r}: `colo list` shows what there is")


def read_params(folder: Path) -> Params:
    """The parameters a folder was begun with."""
    return check_recorded(Start.read(folder / START).params, str(folder / START))


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a folder: a second launcher on it gets an InputError. The system lets go when we die."""
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being worked on by another launcher: wait for it or end it") from None
        yield


def trial_status(folder: Path, step: str, trial: int) -> str | None:
    """done, invalid, skipped or failed; None when the trial has no record."""
    file = trial_folder(folder, step, trial) / TRIAL
    return Trial.read(file).status if file.is_file() else None


def counts(status: str | None) -> bool:
    """Whether a trial needs no repetition: it was measured, be it valid or not, or this machine cannot carry it out."""
    return status in ("done", "invalid", "skipped")


def trial_records(folder: Path) -> list[Trial]:
    """Every trial's record, in the order in which the trials ran."""
    records = []
    for step in STEPS:
        for file in sorted((folder / "steps" / step).glob(f"trial-*/{TRIAL}")):
            if not file.parent.name.endswith(PARTIAL):
                records.append(Trial.read(file))
    return sorted(records, key=lambda record: record.window_start_ns or 0)


def capture_records(folder: Path) -> list[ListedCapture]:
    """Step, status, reason and folder of every capture that was tried."""
    captures = []
    for step in STEPS:
        file = capture_folder(folder, step) / CAPTURE
        if file.is_file():
            facts, where = CaptureFacts.read(file), str(file.parent.relative_to(folder))
            captures.append(ListedCapture(step=step, status=facts.status, reason=facts.reason, folder=where))
    return captures


def remove_half_written(folder: Path) -> None:
    """Remove what `write_json` had begun when its process was killed."""
    for left in folder.rglob("*.json.tmp"):
        left.unlink()


def checksums(folder: Path) -> dict[str, ListedFile]:
    """Size and SHA-256 of every file of the folder, the manifest aside, by relative path."""
    files = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and not file.is_symlink() and name not in (MANIFEST, LOCK):
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[name] = ListedFile(bytes=file.stat().st_size, sha256=digest)
    return files


def seal(folder: Path) -> Path:
    """Write the manifest of a `.partial` folder and give the folder its name; returns it.

    Raises InputError when a folder of that name is there already.
    """
    final = folder.with_name(folder.name.removesuffix(PARTIAL))
    if final.exists():
        raise InputError(f"{final} is there already: remove it, or give the run another name")
    start = Start.read(folder / START)
    # Else the manifest would list its own beginning, which its end replaces.
    remove_half_written(folder)
    records = trial_records(folder)
    for left in folder.glob(f"steps/*/*{PARTIAL}"):
        left.rename(left.with_name(left.name.replace(PARTIAL, ".interrupted")))
    captures = capture_records(folder)
    listed = [
        ListedTrial(
            step=record.step, trial=record.trial, block=record.block, status=record.status, reason=record.reason,
            folder=str(trial_folder(folder, record.step, record.trial).relative_to(folder)),
        )
        for record in records
    ]  # fmt: skip
    Manifest(
        schema_version=SCHEMA_VERSION, run_id=final.name, status="done", **start.plain(), finished_utc=now_utc(),
        trials=listed, captures=captures, measured_s=sum(record.window_s or 0.0 for record in records),
        files=checksums(folder),
    ).write(folder / MANIFEST)  # fmt: skip
    (folder / LOCK).unlink(missing_ok=True)
    folder.rename(final)
    return final
