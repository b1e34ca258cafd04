"""Which capture a notebook reads: the exports named, else a run's step, else a built-in example."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.examples.captures import H100_PAIR, STEPS, simulated_capture
from colo_lib.params import Params, split_list
from colo_lib.parse.captures import StepCapture, captured_steps, read_capture, read_exports
from colo_lib.parse.run_folder import newest_run

SHARED_FIRST = ("step2", "step3", "configB", "step1", "step4", "configA")
ALONE = {"gen": "step1", "embed": "step4"}
H100, SIMULATED = "h100", "simulated"
MECHANISMS = {"step2": "mps", "step3": "time-sliced"}
_kept: list[tempfile.TemporaryDirectory[str]] = []


@dataclass(frozen=True)
class Trace:
    """A capture to look at. `run_id`: of the run, or what stands for one. `source`: in words, with what it is not.

    `alone`: captures of one workload alone to set beside it, by the workload or, where that is not known, by a number.
    """

    run_id: str
    source: str
    captured: StepCapture
    alone: dict[str, StepCapture] = field(default_factory=dict)


def choose_trace(params: Params, example: str = SIMULATED, alone: bool = False) -> Trace:
    """The exports of `params.exports`, else the capture of `params.trace_step` of the run, else an example.

    `example`: H100, a real capture at graph level, or SIMULATED, planted kernels of four steps. `alone`: also what
    steps 1 and 4, or `params.exports_alone`, captured. Raises InputError for what is named and cannot be read.
    """
    if params.exports:
        files = tuple(paths.from_checkout(name) for name in split_list(params.exports))
        told = f"Exports: {', '.join(file.name for file in files)}."
        return _told("exports", told, StepCapture("", read_exports(files), {}, files), _named(params) if alone else {})
    run = _run(params)
    if run is None:
        captured, told = _example(params.trace_step, example)
        beside = {workload: _simulated(step) for workload, step in ALONE.items()} if alone else {}
        return _told(f"example-{example}", told, captured, beside)
    steps = captured_steps(run)
    wanted = params.trace_step or next(step for step in SHARED_FIRST if step in steps)
    beside = {name: read_capture(run, step) for name, step in ALONE.items() if alone and step in steps}
    return _told(run.name, f"Run {run.name}, capture of {wanted}.", read_capture(run, wanted), beside or _named(params))


def _told(run_id: str, source: str, captured: StepCapture, alone: dict[str, StepCapture]) -> Trace:
    print(source)
    return Trace(run_id, source, captured, alone)


def _run(params: Params) -> Path | None:
    """The run named, which must have a capture, else the newest run if it has one."""
    if params.run:
        named = paths.from_checkout(params.run)
        if not captured_steps(named):
            raise InputError(
                f"run {named.name} has no capture: record one with capture_s above 0 on a GPU host with Nsight Systems, "
                "or give exports"
            )
        return named
    newest = newest_run(paths.from_checkout(params.runs_dir))
    return newest if newest and captured_steps(newest) else None


def _named(params: Params) -> dict[str, StepCapture]:
    files = [paths.from_checkout(name) for name in split_list(params.exports_alone)]
    return {str(place): StepCapture("alone", read_exports([file]), {}, (file,)) for place, file in enumerate(files)}


def _example(step: str, example: str) -> tuple[StepCapture, str]:
    if example == H100 and not step:
        told = (
            "EXAMPLE: no capture was found, so this is a REAL but short one of an H100 under MPS: a graph of matrix-vector "
            "products (gen's stand-in) beside matrix products (embed's); neither is a language model."
        )
        return StepCapture("step2", read_exports(H100_PAIR), {"mechanism": "mps"}, H100_PAIR), told
    wanted = step or "step2"
    if wanted not in STEPS:
        raise InputError(f"the example has no capture of {wanted}; it has {', '.join(STEPS)}")
    told = f"EXAMPLE: no capture was found, so this is a SIMULATED one of {wanted}: every kernel in it was planted."
    return _simulated(wanted), told


def _simulated(step: str) -> StepCapture:
    folder = tempfile.TemporaryDirectory(prefix="colo-example-")
    _kept.append(folder)  # lives as long as this process: launches are read when they are asked for
    file = simulated_capture(Path(folder.name) / f"{step}.sqlite", step)
    return StepCapture(step, read_exports([file]), {"mechanism": MECHANISMS.get(step, "none")}, (file,))
