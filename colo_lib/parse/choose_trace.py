"""Which capture a notebook reads: the exports named, else a run's step, else a built-in example."""

from __future__ import annotations

from dataclasses import dataclass, field

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.examples.captures import H100_PAIR, STEPS, simulated_capture
from colo_lib.examples.folder import example_folder
from colo_lib.params import Params, split_list
from colo_lib.parse.captures import StepCapture, captured_steps, read_capture, read_files
from colo_lib.parse.exports import read_exports
from colo_lib.parse.run_folder import newest_run, open_run

SHARED_FIRST = ("step2", "step3", "configB", "step1", "step4", "configA")
ALONE = {"gen": "step1", "embed": "step4"}
H100, SIMULATED = "h100", "simulated"
RATES = ("gen_tokens_per_s", "embed_sequences_per_s")
MECHANISMS = {"step2": "mps", "step3": "time-sliced"}


@dataclass(frozen=True)
class Trace:
    """A capture to look at. `run_id`: of the run, or what stands for one. `source`: in words, with what it is not.

    `alone`: captures of one workload alone to set beside it, by the workload or, where that is not known, by a number.
    `unprofiled`: mean rates of the same step's trials that count, by their name in capture.json.
    """

    run_id: str
    source: str
    captured: StepCapture
    alone: dict[str, StepCapture] = field(default_factory=dict)
    unprofiled: dict[str, float] = field(default_factory=dict)


def choose_trace(params: Params, example: str = SIMULATED, alone: bool = False) -> Trace:
    """The exports of `params.exports`, else the capture of `params.trace_step` of the run, else an example.

    `example`: H100, a real capture at graph level, or SIMULATED, planted kernels of four steps. `alone`: also what
    steps 1 and 4, or `params.exports_alone`, captured. Raises InputError for what is named and cannot be read.
    """
    trace = _of_exports(params) if params.exports else _of_run(params, alone) or _of_example(params, example, alone)
    print(trace.source)
    return trace


def _of_exports(params: Params) -> Trace:
    files = tuple(paths.from_checkout(name) for name in split_list(params.exports))
    told = f"Exports: {', '.join(file.name for file in files)}."
    return Trace("exports", told, read_files(files), _named(params))


def _of_run(params: Params, alone: bool) -> Trace | None:
    """The run named, which must have a capture, else the newest run if it has one."""
    folder = paths.from_checkout(params.run) if params.run else newest_run(paths.from_checkout(params.runs_dir))
    steps = captured_steps(folder) if folder else []
    if folder is None or (not steps and not params.run):
        return None
    run = open_run(folder)
    if not steps:
        raise InputError(
            f"run {run.run_id} has no capture of GPU work: record one with capture_s above 0 on a GPU host with Nsight "
            "Systems, or give exports"
        )
    wanted = params.trace_step or next(step for step in SHARED_FIRST if step in steps)
    beside = {name: read_capture(folder, step) for name, step in ALONE.items() if alone and step in steps}
    trials = run.trials[(run.trials["step"] == wanted) & (run.trials["status"] == "done")]
    rates = {name: float(trials[f"recorded_{name}"].mean()) for name in RATES}
    told = f"Run {run.run_id}, capture of {wanted}."
    return Trace(run.run_id, told, read_capture(folder, wanted), beside or _named(params), rates)


def _of_example(params: Params, example: str, alone: bool) -> Trace:
    captured, told = _example(params.trace_step, example)
    beside = {workload: _simulated(step) for workload, step in ALONE.items()} if alone else {}
    return Trace(f"example-{example}", told, captured, beside)


def _named(params: Params) -> dict[str, StepCapture]:
    files = [paths.from_checkout(name) for name in split_list(params.exports_alone)]
    return {str(place): read_files([file]) for place, file in enumerate(files)}


def _example(step: str, example: str) -> tuple[StepCapture, str]:
    if example == H100 and not step:
        told = (
            "EXAMPLE: no capture was found, so this is a REAL but short one of an H100 under MPS: a graph of "
            "matrix-vector products (gen's stand-in) beside matrix products (embed's); neither is a language model."
        )
        return read_files(H100_PAIR), told
    wanted = step or "step2"
    if wanted not in STEPS:
        raise InputError(f"the example has no capture of {wanted}; it has {', '.join(STEPS)}")
    told = f"EXAMPLE: no capture was found, so this is a SIMULATED one of {wanted}: every kernel in it was planted."
    return _simulated(wanted), told


def _simulated(step: str) -> StepCapture:
    file = simulated_capture(example_folder() / f"{step}.sqlite", step)
    return StepCapture(step, read_exports([file]), {"mechanism": MECHANISMS.get(step, "none")}, (file,))
