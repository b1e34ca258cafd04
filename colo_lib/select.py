"""What a notebook reads: the run, sweep or capture that is named, else the newest that fits, else an example.

A run fits when it is finished, a sweep when it varies the notebook's parameter, a capture when its run has the step. An
example is a recorded one, else a simulated or built-in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from colo_lib import paths
from colo_lib.data.capture import StepCapture, captured_steps, read_capture, read_exports, read_files, with_threads
from colo_lib.data.run import Run, find_runs, newest_run, open_run
from colo_lib.data.sweep import Sweep, find_sweeps, measured_along, open_sweep
from colo_lib.errors import InputError
from colo_lib.examples.captures import H100_PAIR, simulated_capture
from colo_lib.examples.simulated_run import example_folder
from colo_lib.json_records import read_object
from colo_lib.params import Params, check_recorded, split_list
from colo_lib.records import CaptureFacts, Manifest
from colo_lib.steps import ALONE, CAPTURES_FIRST, STEPS, with_id

# What two runs of one pair of models have in common.
PAIR = ("gen_model", "embed_model", "weights", "gen_concurrency", "device")
H100, SIMULATED = "h100", "simulated"
RATES = ("gen_tokens_per_s", "embed_sequences_per_s")


def select_run(params: Params) -> Run:
    """The run of `params.run`, else the newest finished one of `params.runs_dir`, else an example.

    A relative path is looked for from here, then from the checkout. Raises InputError if the named run cannot be read.
    """
    if params.run:
        return _run_sentence(open_run(paths.from_checkout(params.run)))
    newest = newest_run(paths.from_checkout(params.runs_dir))
    return _run_sentence(open_run(newest)) if newest else example_run()


def named_run(name: str, runs_dir: str) -> Path:
    """The folder that a command's RUN means: a path, or the name of a run, or of an unfinished one, in `runs_dir`."""
    folder = Path(name)
    if folder.exists() or len(folder.parts) != 1:
        return folder
    named = Path(runs_dir) / folder
    unfinished = named.with_name(named.name + paths.PARTIAL)
    return unfinished if unfinished.exists() and not named.exists() else named


def example_run() -> Run:
    """So that every notebook reaches its end where nothing was measured yet: a recorded run, else a simulated one.

    Of the recorded runs that with the most trials: others are single looks without an interval.
    """
    recorded = max(find_runs(paths.RECORDED), key=_trials_listed, default=None)
    if recorded:
        run = open_run(recorded)
        device = run.manifest.machine.device_name
        print(f"EXAMPLE: no finished run was found here; this one was recorded on {device}.")
        return run
    from colo_lib.examples.simulated_run import example_folder, write_run
    from colo_lib.examples.simulated_trial import Plan

    run = open_run(write_run(example_folder(), Plan(run_id="example-simulated")))
    print("EXAMPLE: no finished run was found, so this notebook shows a SIMULATED one. `colo run` measures a real one.")
    return run


def _trials_listed(folder: Path) -> int:
    return len(read_object(folder / paths.MANIFEST).get("trials") or [])


def alike(params: Params, pair: Run, steps: tuple[str, ...]) -> Run | None:
    """A run that has `steps` and `pair`'s GPU, models and concurrency: of here, of a sweep, or a recorded one; or None.

    The newest of the first of these places that has one; damaged ones are passed over.
    """
    for root in (paths.from_checkout(params.runs_dir), paths.from_checkout(params.sweeps_dir), paths.RECORDED):
        folders = [
            *find_runs(root),
            *(run for cell in sorted(Path(root).glob("*/cells/*/runs")) for run in find_runs(cell)),
        ]
        for folder in folders:
            with suppress(InputError):
                if _fits(folder, pair, steps):
                    return open_run(folder)
    return None


def _fits(folder: Path, pair: Run, steps: tuple[str, ...]) -> bool:
    """Whether a run has `steps` and measures `pair`; raises InputError for one that is damaged."""
    manifest = Manifest.read(folder / paths.MANIFEST)
    params = check_recorded(manifest.params, str(folder))
    same_gpu = manifest.machine.device_name == pair.manifest.machine.device_name
    same = all(getattr(params, name) == getattr(pair.params, name) for name in PAIR)
    return same_gpu and same and set(steps) <= set(params.step_names())


def _run_sentence(run: Run) -> Run:
    note = " (SIMULATED: planted numbers)" if run.simulated else " (cores stand in for GPUs)" if run.stand_in else ""
    print(f"Run {run.run_id}{note}: {len(run.trials)} trials, {(run.trials['status'] == 'done').sum()} of them count.")
    return run


def select_sweep(
    params: Params, names: tuple[str, ...], example: str, steps: tuple[str, ...] = ("step2",), whole: bool = False
) -> Sweep:
    """The sweep of `params.sweep`, else the newest of `params.sweeps_dir` that fits, else a recorded or simulated one.

    One fits that varies one of `names` and has one of `steps`. Of a sweep that varies more than `names` only the cells
    are taken that differ from the first in `names` alone, unless `whole`.
    Raises InputError if the named sweep cannot be read or varies none of `names`.
    """
    if params.sweep:
        sweep = open_sweep(paths.from_checkout(params.sweep))
        if not set(names) & set(sweep.names):
            varied = f"sweep {sweep.sweep_id} varies {', '.join(sweep.names)}"
            raise InputError(f"{varied}; this notebook needs one over {' or '.join(names)}")
        return _sweep_sentence(sweep, names, whole)
    newest = next(_fitting(find_sweeps(paths.from_checkout(params.sweeps_dir)), names, steps), None)
    if newest:
        return _sweep_sentence(open_sweep(newest[0]), names, whole)
    # Others vary the parameter by the way: the longest line over it tells most.
    of_ours = _fitting(find_sweeps(paths.RECORDED), names, steps)
    if recorded := max(of_ours, key=lambda found: found[1], default=None):
        sweep = open_sweep(recorded[0])
        device = next(iter(sweep.runs.values())).manifest.machine.device_name
        print(f"EXAMPLE: no such sweep was found here; this one was recorded on {device}.")
        return _sweep_sentence(sweep, names, whole)
    return example_sweep(example)


def _fitting(folders: Iterable[Path], names: tuple[str, ...], steps: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """The sweeps of which two cells or more, a line over `names`, were measured in one of `steps`; with how many.

    None of their runs is opened, which is most of the time.
    """
    for folder in folders:
        count = measured_along(folder, names, steps)
        if count > 1:
            yield folder, count


def example_sweep(name: str) -> Sweep:
    """A small simulated sweep (a key of `examples.simulated_run.EXAMPLES`)."""
    from colo_lib.examples.simulated_run import example_folder, write_sweep

    sweep = open_sweep(write_sweep(example_folder(), name))
    print(f"EXAMPLE: no such sweep was found, so this notebook shows a SIMULATED one of {len(sweep.cells)} cells.")
    return sweep


def _sweep_sentence(sweep: Sweep, names: tuple[str, ...], whole: bool) -> Sweep:
    note = " (SIMULATED: planted numbers)" if sweep.simulated else " (cores stand in for GPUs)" * sweep.stand_in
    shown = sweep if whole else sweep.along(names)
    line = (
        ""
        if len(shown.cells) == len(sweep.cells)
        else f"; {len(shown.cells)} differ in {' and '.join(shown.names)} alone"
    )
    print(f"Sweep {sweep.sweep_id}{note}: {len(sweep.runs)} of {len(sweep.cells)} cells measured{line}.")
    return shown


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


def select_trace(params: Params, example: str = SIMULATED, alone: bool = False) -> Trace:
    """The exports of `params.exports`, else the capture of `params.trace_step` of the run, else an example.

    `example`: H100, a real capture at graph level, or SIMULATED, planted kernels of any step. `alone`: also what
    steps 1 and 4, or `params.exports_alone`, captured. Raises InputError for what is named and cannot be read.
    """
    trace = _of_exports(params) if params.exports else _of_run(params, alone) or _of_example(params, example, alone)
    print(trace.source)
    return trace


def _of_exports(params: Params) -> Trace:
    files = tuple(paths.from_checkout(name) for name in split_list(params.exports))
    source = f"Exports: {', '.join(file.name for file in files)}."
    captured = with_threads(read_files(files), params.trace_gen, params.trace_embed)
    return Trace("exports", source, captured, _named(params))


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
    wanted = params.trace_step or next(step for step in CAPTURES_FIRST if step in steps)
    beside = {name: read_capture(folder, step) for name, step in ALONE.items() if alone and step in steps}
    trials = run.trials[(run.trials["step"] == wanted) & (run.trials["status"] == "done")]
    rates = {name: float(trials[f"recorded_{name}"].mean()) for name in RATES}
    source = f"Run {run.run_id}, capture of {with_id(wanted)}."
    captured = with_threads(read_capture(folder, wanted), params.trace_gen, params.trace_embed)
    return Trace(run.run_id, source, captured, beside or _named(params), rates)


def _of_example(params: Params, example: str, alone: bool) -> Trace:
    captured, source = _example(params.trace_step, example)
    beside = {workload: _simulated(step) for workload, step in ALONE.items()} if alone else {}
    return Trace(f"example-{example}", source, captured, beside)


def _named(params: Params) -> dict[str, StepCapture]:
    files = [paths.from_checkout(name) for name in split_list(params.exports_alone)]
    return {str(place): read_files([file]) for place, file in enumerate(files)}


def _example(step: str, example: str) -> tuple[StepCapture, str]:
    if example == H100 and not step:
        source = (
            "EXAMPLE: no capture was found, so this is a REAL but short one of an H100 under MPS: a graph of "
            "matrix-vector products (the LLM's stand-in) beside matrix products (the embedder's); neither is "
            "a language model."
        )
        return read_files(H100_PAIR), source
    wanted = step or "step2"
    if wanted not in STEPS:
        raise InputError(f"there is no step {wanted!r}; there are {', '.join(STEPS)}")
    source = f"EXAMPLE: no capture was found, so this is a SIMULATED one of {with_id(wanted)}: every kernel "
    source += "in it was planted."
    return _simulated(wanted), source


def _simulated(step: str) -> StepCapture:
    file = simulated_capture(example_folder() / f"{step}.sqlite", step)
    return StepCapture(step, read_exports([file]), CaptureFacts(mechanism=STEPS[step].mechanism), (file,))
