"""What a step's notebook calls: record its trials, in a run that `colo run` makes or in one of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colo_lib.errors import InputError, StepSkipped
from colo_lib.launch.engines import engines_for
from colo_lib.launch.trial import run_trial, skip_trial
from colo_lib.params import Params
from colo_lib.paths import PARTIAL, trial_folder
from colo_lib.record.captures import record_captures, refuse_conflicts
from colo_lib.record.plan import Progress, to_stderr
from colo_lib.record.run_folder import OpenRun, begin_run, run_lock, seal, trial_records
from colo_lib.records import Trial

if TYPE_CHECKING:
    import pandas as pd

SHOWN = {
    "trial": "trial", "mechanism": "mechanism", "status": "status",
    "gen_tokens_per_s": "gen, tokens/s", "embed_sequences_per_s": "embed, sequences/s", "reason": "reason",
}  # fmt: skip


@dataclass(frozen=True)
class StepRecord:
    """The trials of one step so far; `folder` is the run's."""

    step: str
    folder: Path
    trials: list[Trial]

    def table(self) -> pd.DataFrame:
        """A row a trial: what ran, whether it counts, the rates."""
        import pandas as pd

        frame = pd.DataFrame([{title: getattr(trial, name) for name, title in SHOWN.items()} for trial in self.trials])
        return frame.set_index("trial") if len(frame) else frame


def record_step(params: Params, step: str) -> StepRecord:
    """Record the trials of `step` and return them.

    With `run` set (an unfinished run's folder) the trials go there, `block` alone or all blocks; without, a
    new run of this step alone is made and finished. Trials that are there already are not repeated.
    Raises InputError before anything starts, StepFailed when a trial cannot be measured.
    """
    if params.run:
        run = OpenRun(Path(params.run), params)
        if not run.folder.name.endswith(PARTIAL):
            raise InputError(
                f"parameter 'run' = {params.run!r} is a finished run, which is never written to: leave it empty"
            )
        record_trials(run, step)
        return read_step(run.folder, step)
    refuse_conflicts(params.gen_extra_args, params.capture_s)
    # The run holds this step alone, and its record says so.
    run = begin_run(params.model_copy(update={"steps": step}), step.lower())
    with run_lock(run.folder):
        record_trials(run, step)
        for sentence in record_captures(run, [step], to_stderr):
            to_stderr(sentence)
        return read_step(seal(run.folder), step)


def record_trials(run: OpenRun, step: str) -> None:
    """Carry out the trials of `step` that a run lacks, or record why this machine cannot."""
    params, folder = run.params, run.folder
    blocks = [params.block] if params.block else list(range(1, params.blocks + 1))
    missing = [block for block in blocks if run.lacks(step, block)]
    if not missing:
        return
    placement = run.placement(step)
    specs = run.specs(placement)
    try:
        with engines_for(specs.engines, folder / "logs", Progress(), run.needed_gib()) as handles:
            for block in missing:
                print(f"{step}: trial {block}, {placement.mechanism}", file=sys.stderr, flush=True)
                run_trial(specs.trial, handles, trial_folder(folder, step, block), block)
    except StepSkipped as skipped:
        print(f"{step}: skipped: {skipped}", file=sys.stderr, flush=True)
        for block in missing:
            skip_trial(placement, trial_folder(folder, step, block), block, str(skipped))


def read_step(folder: Path, step: str) -> StepRecord:
    """The trials of a step that `folder` holds."""
    return StepRecord(step, folder, [record for record in trial_records(folder) if record.step == step])
