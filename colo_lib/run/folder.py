"""A run folder while it is being made: begun, taken up again, held by one launcher at a time."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_lib.budget import format_budget, refuse_if_too_large
from colo_lib.capture.machine import describe
from colo_lib.capture.manifest import LOCK, START, now_utc, write_json
from colo_lib.errors import InputError
from colo_lib.gpu_look import look_at_gpus
from colo_lib.launch.guard import look_before
from colo_lib.launch.models import resolve_models
from colo_lib.memory import budget_here
from colo_lib.params import Params, check_recorded
from colo_lib.paths import MANIFEST, NOTEBOOKS, PARTIAL, TRIAL, from_checkout, partial_folder, trial_folder

Say = Callable[[str], None]


def begin(params: Params, suffix: str = "", say: Say = print) -> Path:
    """A new `.partial` folder that holds what is known at the start: parameters, machine, models, budget.

    Raises InputError, before anything is created, when the models cannot be found or cannot fit, or when a GPU's mode
    rules a step out.
    """
    models = resolve_models(params)
    gpus = look_at_gpus() if params.device == "cuda" else None
    budget = budget_here(params, gpus)
    refuse_if_too_large(budget)
    say(format_budget(budget))
    notes = look_before(params, gpus) if gpus else []
    for note in notes:
        say(f"note: {note}")
    name = "-".join(part for part in (params.run_name, time.strftime("%Y%m%d-%H%M%S", time.gmtime()), suffix) if part)
    # A notebook of the checkout makes its runs where `colo run` does.
    root = from_checkout(params.runs_dir) if Path.cwd() == NOTEBOOKS else params.runs_dir
    folder = partial_folder(root, name)
    start = {
        "created_utc": now_utc(),
        "params": params.model_dump(),
        "machine": describe(params, models.gen_python),
        "models": models.facts(params),
        "budget": budget.record(),
        "notes": notes,
    }
    # Under a name that is no run's until its start record is there: who is killed here leaves nothing to be resumed.
    unborn = folder.with_name(f".{folder.name}")
    try:
        (unborn / "steps").mkdir(parents=True)
        write_json(unborn / START, start)
        unborn.rename(folder)
    except OSError as error:
        raise InputError(f"parameter 'runs_dir' = {params.runs_dir!r}: {folder} cannot be made: {error}") from None
    return folder


def resume(told: str | Path, runs_dir: str | Path) -> tuple[Path, Params]:
    """The folder and parameters of an unfinished run, by path or run id.

    Raises InputError when there is none, or what it holds is damaged.
    """
    from colo_lib.parse.unfinished import check_unfinished

    text = str(told).rstrip("/")
    for candidate in (Path(text), Path(text + PARTIAL), Path(runs_dir) / text, Path(runs_dir) / (text + PARTIAL)):
        # A manifest in a `.partial` folder: its launcher was killed before the folder got its name, and seals it again.
        if (candidate / MANIFEST).is_file() and not candidate.name.endswith(PARTIAL):
            raise InputError(f"{candidate} is finished: there is nothing to resume; colo report {candidate}")
        if (candidate / START).is_file():
            check_unfinished(candidate)
            return candidate, read_params(candidate)
    raise InputError(f"no unfinished run {text!r}: `colo list` shows what there is")


def read_params(folder: Path) -> Params:
    """The parameters a folder was begun with."""
    start: dict[str, Any] = json.loads((folder / START).read_text())
    return check_recorded(start["params"], str(folder / START))


@contextmanager
def held(folder: Path) -> Iterator[None]:
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
    return str(json.loads(file.read_text())["status"]) if file.is_file() else None


def counts(status: str | None) -> bool:
    """Whether a trial needs no repetition: it was measured, be it valid or not, or this machine cannot carry it out."""
    return status in ("done", "invalid", "skipped")
