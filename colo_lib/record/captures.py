"""The captures of a run: after its trials, engines started again below nsys, one session a set of engines.

A capture that cannot be had never takes a trial with it: its folder says why, and the run ends complete without it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import psutil

from colo_lib.errors import ColoError, InputError
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import Specs
from colo_lib.nsys.capture import capture_step, write_absent
from colo_lib.nsys.commands import conflicting_words, find_nsys
from colo_lib.nsys.session import JointFailed, Session
from colo_lib.params import split_list
from colo_lib.paths import CAPTURE, capture_folder
from colo_lib.placement import Placement
from colo_lib.record.plan import Progress
from colo_lib.record.run_folder import OpenRun, trial_status
from colo_lib.records import CaptureFacts

Say = Callable[[str], None]
LOGS = Path("logs") / "captures"
NO_NSYS = "nsys is not on PATH: install Nsight Systems; without it throughput is measured and kernel overlap is not"
# What else subscribes to CUPTI or takes a GPU's counters, by the name of the process.
RIVALS = {"nv-hostengine": "DCGM's host engine", "dcgm-exporter": "DCGM's exporter", "ncu": "Nsight Compute"}


def refuse_conflicts(gen_extra_args: str, capture_s: float) -> None:
    """Raises InputError for a torch profiler in a run that is to be captured: CUPTI serves one of them."""
    words = conflicting_words(shlex.split(gen_extra_args)) if capture_s else []
    if words:
        raise InputError(
            f"parameter 'gen_extra_args' holds {words[0]!r} while capture_s = {capture_s:g}: a torch profiler "
            "and Nsight Systems cannot both subscribe to CUPTI; leave one of them out"
        )


def missing_captures(run: OpenRun, steps: list[str]) -> list[Placement]:
    """Placements of the steps whose capture is wanted and not there; steps that can share engines stand together."""
    if not run.params.capture_s:
        return []
    # What this machine cannot carry out cannot be captured either: its trials say why.
    asked = set(split_list(run.params.capture_steps)) or set(steps)
    carried_out = [step for step in steps if step in asked and trial_status(run.folder, step, 1) != "skipped"]
    placements = [run.placement(step) for step in carried_out if capture_status(run.folder, step) != "done"]
    keys = list(dict.fromkeys(placement.engine_key() for placement in placements))
    return sorted(placements, key=lambda placement: keys.index(placement.engine_key()))


def capture_status(folder: Path, step: str) -> str | None:
    """done, failed or absent; None when the capture was not tried."""
    file = capture_folder(folder, step) / CAPTURE
    return CaptureFacts.read(file).status if file.is_file() else None


def rivals() -> list[str]:
    """Processes of this machine that keep nsys from the GPU, in words."""
    others = []
    for process in psutil.process_iter(["name", "cmdline"]):
        name, words = process.info["name"] or "", process.info["cmdline"] or []
        if name in RIVALS:
            others.append(f"{RIVALS[name]} ({name}, pid {process.pid})")
        elif name == "nsys" and "--start-agent" in words:
            others.append(f"another Nsight Systems session (nsys, pid {process.pid})")
    return others


def record_captures(run: OpenRun, steps: list[str], say: Say) -> list[str]:
    """Record the captures of `steps` that a run lacks; returns what is missing in the end, a sentence each."""
    wanted = missing_captures(run, steps)
    if not wanted:
        return []
    binary, reason = find_nsys(), None
    if binary is None:
        reason = NO_NSYS
    elif run.params.device == "cuda" and (others := rivals()):
        reason = f"CUPTI is taken by {', '.join(others)}: end it (dcgmi profile --pause holds DCGM back) and resume"
    if binary is None or reason:
        for placement in wanted:
            write_absent(run.specs(placement), capture_folder(run.folder, placement.step), str(reason))
        names = ", ".join(placement.step for placement in wanted)
        return [f"no capture of {names}: {reason}"]
    missing: list[str] = []
    for _, group in groupby(wanted, key=Placement.engine_key):
        missing += _record_group([run.specs(placement) for placement in group], run, binary, say)
    return missing


def _record_group(group: list[Specs], run: OpenRun, binary: Path, say: Say) -> list[str]:
    """Captures of steps that share engines: one session as long as it holds, another one after a failure.

    A step that one session cannot hold is captured again with one for each engine, as are those that come after it.
    """
    folder, needed, missing = run.folder, run.needed_gib(), list[str]()
    joint_reason: str | None = None
    # As in the trials: what idles in memory is the same in every step.
    placements = [specs.trial.placement for specs in group]
    wanted = any(place.runs_gen for place in placements), any(place.runs_embed for place in placements)
    with runtime_folder() as runtime:
        session: Session | None = None
        try:
            for specs in group:
                placement = specs.trial.placement
                say(f"{placement.step}: capture of {specs.capture.seconds:g} s, {placement.mechanism}")
                try:
                    session = session or Session(binary, specs, runtime, folder / LOGS, joint_reason, needed)
                    try:
                        _capture(session, specs, wanted, folder, say)
                    except JointFailed as error:
                        session.close()
                        joint_reason = str(error)
                        say(f"{placement.step}: one session does not hold it, once more with one for each engine")
                        session = Session(binary, specs, runtime, folder / LOGS, joint_reason, needed)
                        _capture(session, specs, wanted, folder, say)
                except (ColoError, OSError) as error:
                    missing.append(f"no capture of {placement.step}: {error}")
                    if session is not None:
                        session.close()
                    session = None
        finally:
            if session is not None:
                session.close()
    return missing


def _capture(session: Session, specs: Specs, wanted: tuple[bool, bool], folder: Path, say: Say) -> None:
    """One attempt at a step; whatever it raises is in the step's capture.json."""
    placement = specs.trial.placement
    target = capture_folder(folder, placement.step)
    try:
        if session.handles is None:
            session.launch(placement, *wanted, Progress(5.0, say))
    except (ColoError, OSError) as error:
        write_absent(specs, target, str(error), "failed", session.joint_reason)
        raise
    capture_step(specs, session, target)
