"""`colo run`: every trial of the plan through its notebook, engines kept up between them, then the seal.

One set of engines is up at a time, and as little of it is changed as the next trial needs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.launch.engines import ENGINES_FILE, Engines, Handles, publish
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import EngineSpec, GenSpec
from colo_lib.launch.trial import skip_trial
from colo_lib.paths import START, TRIAL, trial_folder
from colo_lib.placement import Placement
from colo_lib.record.captures import record_captures
from colo_lib.record.demand import refuse_unmet_demand
from colo_lib.record.notebook_host import NotebookHost, notebook_host
from colo_lib.record.plan import PlannedTrial, Progress, plan_run
from colo_lib.record.run_folder import OpenRun, run_lock, seal, trial_records
from colo_lib.records import Start, Trial
from colo_lib.steps import STEPS, with_id

Say = Callable[[str], None]
FIRST_ENGINE_START_S = 40.0


@dataclass
class Outcome:
    """What became of a run: its folder (finished or still `.partial`), failed trials and captures that it lacks."""

    folder: Path
    failures: list[str]
    missing: list[str]


def carry_out_run(run: OpenRun, say: Say = print) -> Outcome:
    """Record every trial and capture that a run lacks and seal it; on failed trials it stays `.partial`.

    A capture that cannot be had does not keep a run open: what it measured is complete.
    A demand that cannot be met even alone raises InputError before anything shared is measured.
    Ctrl-C and SIGTERM raise KeyboardInterrupt after everything has been ended.
    """
    folder, plan, began = run.folder, plan_run(run.params), time.monotonic()
    failures, missing = list[str](), list[str]()
    with ExitStack() as stack:
        stack.enter_context(terminable())
        stack.enter_context(run_lock(folder))
        # Also of a sitting that is interrupted: the share of measured time is over all of them.
        stack.callback(lambda: note_seconds(folder, time.monotonic() - began))
        runtime = stack.enter_context(runtime_folder())
        keeper = EngineKeeper(runtime, folder / "logs")
        stack.callback(keeper.stop)
        environment = {ENGINES_FILE: str(keeper.file)}
        host = stack.enter_context(notebook_host(runtime, folder / "logs" / "notebooks.log", environment))
        up: object = None
        for number, trial in enumerate(plan.trials, 1):
            if not run.lacks(trial.step, trial.block):
                continue
            if run.params.has_demand and trial.placement.runs_gen and trial.placement.runs_embed:
                refuse_unmet_demand(folder, run.params)
            if up not in (None, trial.round):
                keeper.stop()  # engines of an earlier round would be no fresh start
            up = trial.round
            failure = carry_out_trial(run, trial, plan.sharing(trial), keeper, host, say)
            if failure:
                failures.append(f"{trial.step}, trial {trial.block}: {failure}")
            left_s = plan.seconds_left(number, keeper.start_s, (trial.round, keeper.key))
            say(progress_line(number, len(plan.trials), folder, trial, failure, left_s))
        keeper.stop()
        if not failures:
            missing = record_captures(run, run.params.step_names(), say)
    say(time_line(folder))
    return Outcome(folder if failures else seal(folder), failures, missing)


def time_line(folder: Path) -> str:
    """Seconds inside windows of the seconds in all, over every sitting of this folder."""
    measured_s = sum(record.window_s or 0.0 for record in trial_records(folder))
    total_s = Start.read(folder / START).total_s or 0.0
    return f"measured {measured_s:.0f} s in windows of {total_s:.0f} s in all ({measured_s / max(total_s, 1e-9):.0%})"


def note_seconds(folder: Path, seconds: float) -> None:
    """Add the seconds that this sitting took to the folder's start record."""
    start = Start.read(folder / START)
    start.joined(total_s=(start.total_s or 0.0) + seconds).write(folder / START)


def carry_out_trial(
    run: OpenRun,
    trial: PlannedTrial,
    sharing: list[Placement],
    keeper: EngineKeeper,
    host: NotebookHost,
    say: Say,
) -> str | None:
    """One trial through its step's notebook; None when it left a record that counts, else the cause."""
    complaint: str | None = None
    folder, params, step = run.folder, run.params, STEPS[trial.step]
    try:
        say(f"{with_id(trial.step, step.name_on(params.device))}, block {trial.block}: {trial.placement.mechanism}")
        keeper.ready_for(run.specs(trial.placement).engines, sharing, run.needed_gib(), say)
        notebook = step.notebook
        out = folder / "notebooks" / f"{notebook}.block-{trial.block}.ipynb"
        changed = {"run": str(folder.absolute()), "block": trial.block}
        complaint = host.execute(notebook, out, params.model_dump() | changed, params.cell_timeout_s)
    except StepSkipped as skipped:
        skip_trial(trial.placement, trial_folder(folder, trial.step, trial.block), trial.block, str(skipped))
        return None
    except StepFailed as error:
        complaint = str(error)
    if not run.lacks(trial.step, trial.block):
        return None
    # An engine that failed a trial is not trusted with the next one.
    keeper.stop()
    return complaint or "its notebook ended without the trial's record"


def progress_line(
    number: int, total: int, folder: Path, trial: PlannedTrial, failure: str | None, left_s: float
) -> str:
    """What a person reads after each trial."""
    left = f"about {left_s // 60:.0f} min {left_s % 60:02.0f} s left" if left_s else "last trial done"
    outcome = trial_line(trial_folder(folder, trial.step, trial.block), failure)
    return f"[{number}/{total}] {trial.step}, block {trial.block}: {outcome}  ({left})"


def trial_line(folder: Path, failure: str | None) -> str:
    """What became of a trial: its rates and doubts, or why it failed."""
    if failure:
        return f"FAILED: {failure}"
    record = Trial.read(folder / TRIAL)
    measured = (
        ("gen", record.gen_tokens_per_s, "tokens/s"),
        ("embed", record.embed_sequences_per_s, "sequences/s"),
    )
    rates = [f"{name} {rate:.1f} {unit}" for name, rate, unit in measured if rate is not None]
    doubt = f" {record.status.upper()}: {record.reason}" if record.status != "done" else ""
    marks = "".join(f" (note: {mark})" for mark in record.marks or [])
    return f"{', '.join(rates)}{doubt}{marks}"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP act like Ctrl-C, so that every `finally` runs."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class EngineKeeper:
    """Owns the engines between trials; `stop` always."""

    def __init__(self, runtime: Path, logs: Path) -> None:
        self.runtime, self.logs = runtime, logs
        self.engines: Engines | None = None
        self.identity: EngineSpec | None = None
        self.start_s = FIRST_ENGINE_START_S
        self.skipped: dict[GenSpec, str] = {}

    @property
    def key(self) -> object:
        """Key of the engines that are up, None when none are."""
        return self.engines.placement.engine_key() if self.engines else None

    @property
    def file(self) -> Path:
        """Where notebooks find the handles."""
        return self.runtime / "engines.json"

    def ready_for(
        self, wanted: EngineSpec, sharing: Iterable[Placement], needed: Mapping[str, float], say: Say
    ) -> Handles:
        """The engines of a trial: those that are up, with other embedding processes if need be, or new ones.

        `sharing`: every placement that will use them. Both engines are up if any of these needs both: what idles in
        memory is the same in every trial. `needed`: GiB on each GPU. Raises StepFailed when they cannot be had,
        StepSkipped when this machine lacks the mechanism: asked once.
        """
        if wanted.gen in self.skipped:
            raise StepSkipped(self.skipped[wanted.gen])
        if self.engines is None or self.identity is None or self.identity.gen != wanted.gen:
            self._start(wanted, list(sharing), needed, say)
        elif self.identity.embed != wanted.embed:
            say("embed starts anew; gen stays up")
            self.identity = None  # whatever becomes of the change, the engines are no longer what they were
            publish(self.engines.change_embed(wanted, Progress(5.0, say)), self.file)
            self.identity = wanted
        return self.engines.handles()  # type: ignore[union-attr]

    def _start(self, wanted: EngineSpec, sharing: list[Placement], needed: Mapping[str, float], say: Say) -> None:
        self.stop()
        self.engines = Engines(wanted, self.runtime, self.logs, needed_gib=needed)
        began = time.monotonic()
        gen, embed = (
            any(placement.runs_gen for placement in sharing),
            any(placement.runs_embed for placement in sharing),
        )
        try:
            publish(self.engines.start(gen, embed, Progress(5.0, say)), self.file)
        except StepSkipped as skipped:
            self.skipped[wanted.gen] = str(skipped)
            self.stop()
            raise
        self.identity, self.start_s = wanted, time.monotonic() - began

    def stop(self) -> None:
        """End the engines that are up."""
        self.identity = None
        if self.engines is not None:
            self.file.unlink(missing_ok=True)
            self.engines.stop()
            self.engines = None
