"""Carry out every step of a params file through the notebooks, then write the report.

Several params files are all checked first, then carried out one after the other, each into a run and a page of its
own; one that fails does not stop the next. Their pages side by side follow.

examples:
  colo run params/cpu.yaml                       a whole run on this machine's cores
  colo run params/h100.yaml --set gen_concurrency=8
  colo run params/h100.yaml params/h200.yaml     one after the other, then side by side
  colo run --resume runs/cpu-20260101-120000     go on where an interrupted run stopped
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colo_lib.record.run_folder import OpenRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `colo run`."""
    parser.add_argument("params", nargs="*", metavar="PARAMS", help="a params file, as params/cpu.yaml; or several")
    parser.add_argument("--resume", metavar="RUN", help="an unfinished run, by folder or run id")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one parameter; may be repeated"
    )
    parser.add_argument("--no-report", action="store_true", help="record only")
    parser.add_argument("--reports-dir", default="reports", metavar="DIR", help="where reports go (default: reports)")


def changes(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` words to values, read as YAML would; raises InputError for a word without '='."""
    from colo_lib.errors import InputError
    from colo_lib.params import typed

    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r}: write NAME=VALUE")
        values[name] = typed(name, value)
    return values


def carry_out(options: argparse.Namespace) -> int:
    """Begin or resume, run, report; 0 when every trial left a record that counts and no wanted capture is missing."""
    from colo_lib.data.run import check_unfinished
    from colo_lib.errors import InputError
    from colo_lib.params import load
    from colo_lib.record.run_folder import resume

    if bool(options.params) == bool(options.resume):
        raise InputError("give a params file, as in `colo run params/cpu.yaml`, or --resume RUN")
    if options.resume:
        if options.set:
            raise InputError("--set cannot change a run that has begun: leave it out, or begin a new run")
        return record_and_report(options, resume(options.resume, "runs", check_unfinished))
    every = [load(file, **changes(options.set)) for file in options.params]
    for params in every:
        _refuse(params)
    return _begin(options, every[0])[0] if len(every) == 1 else _one_after_the_other(options, every)


def _refuse(params: Any) -> None:
    """Raises InputError for parameters that no run can be made of."""
    from colo_lib.hardware.budget import demand_of, refuse_if_too_large
    from colo_lib.hardware.engine_python import resolve_models
    from colo_lib.hardware.memory import budget_here
    from colo_lib.hardware.nvml import look_at_gpus
    from colo_lib.launch.vllm_server import free_port
    from colo_lib.record.captures import refuse_conflicts
    from colo_lib.record.plan import plan_run

    plan_run(params)
    refuse_conflicts(params.gen_extra_args, params.capture_s)
    resolve_models(params)
    refuse_if_too_large(budget_here(demand_of(params), look_at_gpus() if params.device == "cuda" else None))
    free_port(params.gen_port)


def _begin(options: argparse.Namespace, params: Any) -> tuple[int, Path]:
    from colo_lib.record.run_folder import begin_run

    run = begin_run(params, say=_say)
    return record_and_report(options, run), run.folder


def _one_after_the_other(options: argparse.Namespace, every: list[Any]) -> int:
    """Carry out each; the exit code of the worst. Wrong input and Ctrl-C stop what is left, a failure does not."""
    from colo_lib.errors import ColoError, InputError
    from colo_lib.paths import MANIFEST, PARTIAL
    from colo_lib.report.side_by_side import make_side_by_side

    codes: list[int] = []
    done: list[Path] = []
    for file, params in zip(options.params, every, strict=True):
        _say(f"== {file} ({len(codes) + 1} of {len(every)})")
        try:
            code, folder = _begin(options, params)
        except InputError:
            raise
        except ColoError as failure:
            print(f"colo: {file}: {failure}", file=sys.stderr)
            code, folder = 1, None
        if code == 130:
            return code
        codes.append(code)
        finished = folder and folder.with_name(folder.name.removesuffix(PARTIAL))
        done += [finished] if finished and (finished / MANIFEST).is_file() else []
    for file, code in zip(options.params, codes, strict=True):
        _say(f"{file}: {'done' if code == 0 else 'FAILED'}")
    if len(done) > 1 and not options.no_report:
        _say(f"side by side: {make_side_by_side(done, Path(options.reports_dir))}")
    return max(codes)


def record_and_report(options: argparse.Namespace, run: OpenRun) -> int:
    """Carry out a run; tell where everything is, whatever happens."""
    from colo_lib.hardware.engine_python import resolve_models
    from colo_lib.record.run import carry_out_run

    resolve_models(run.params)
    say = _say
    say(f"run folder: {run.folder}")
    try:
        outcome = carry_out_run(run, say)
    except KeyboardInterrupt as interrupt:
        say(f"interrupted ({interrupt or 'Ctrl-C'}): nothing is left running; colo run --resume {run.folder}")
        return 130
    if outcome.failures:
        for failure in outcome.failures:
            print(f"colo: {failure}", file=sys.stderr)
        say(f"{len(outcome.failures)} trials failed; unfinished: colo run --resume {outcome.folder}")
        return 1
    say(f"run: {outcome.folder}")
    if not options.no_report:
        from colo_lib.report import make_report

        say(f"report: {make_report(outcome.folder, Path(options.reports_dir))}")
    for sentence in outcome.missing:
        print(f"colo: {sentence}", file=sys.stderr)
    return 1 if outcome.missing else 0


def _say(text: str) -> None:
    print(text, flush=True)
