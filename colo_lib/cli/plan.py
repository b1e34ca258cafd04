"""Tell how many starts of the engines, blocks and seconds would settle each clause of the verdict.

From the spread that a run showed between starts and between blocks: the newest one of these models, or the one that is
named. A pilot of three starts with two blocks each is enough.

examples:
  colo plan params/h100.yaml
  colo plan params/h100.yaml --from runs/h100-20260101-120000
  colo run params/h100.yaml --set starts=3 --set blocks=6      a pilot
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo_lib.analysis.verdict import Costs, Need
    from colo_lib.data.run import Run
    from colo_lib.params import Params

LEAST_START_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("params", metavar="PARAMS", help="a params file: the run to plan")
    parser.add_argument("--from", dest="run", metavar="RUN", help="the run whose spread is taken (default: the newest)")


def carry_out(options: argparse.Namespace) -> int:
    """Print a row a clause and the cheapest run that settles all that can be settled."""
    from colo_lib.analysis.run_analysis import RunAnalysis
    from colo_lib.analysis.thresholds import Thresholds
    from colo_lib.analysis.verdict import needs, together
    from colo_lib.params import load

    params = load(options.params)
    run = _source(options.run, params)
    asked, costs = RunAnalysis(run, bounds=Thresholds.of(params)).clauses, costs_of(run, params)
    print(f"from {run.run_id}: {_seconds(costs.starts_s)} to start all engines, {_seconds(costs.block_s)} a block")
    rows = [*needs(asked, costs), together(asked, costs)]
    width = max(len(row.clause) for row in rows)
    for row in rows:
        print(f"{row.clause:<{width}}  {_need_in_words(row)}")
    whole = rows[-1]
    if whole.starts is not None and whole.blocks_a_start is not None:
        blocks = whole.starts * whole.blocks_a_start
        print(f"colo run {options.params} --set starts={whole.starts} --set blocks={blocks}")
    return 0


def _source(named: str | None, params: Params) -> Run:
    from colo_lib.data.run import find_runs, open_run
    from colo_lib.errors import InputError

    if named:
        return open_run(named)
    names = ("gen_model", "embed_model", "device")
    for folder in find_runs(params.runs_dir):
        run = open_run(folder)
        if all(getattr(run.params, name) == getattr(params, name) for name in names):
            return run
    raise InputError(
        f"no run of {params.gen_model} and {params.embed_model} in {params.runs_dir}: make a pilot with `colo run "
        "PARAMS --set starts=3 --set blocks=6`, or name a run with --from"
    )


def costs_of(run: Run, params: Params) -> Costs:
    """What a start of all engines and a block of all steps take: a run's time, less its trials, over its starts."""
    from colo_lib.analysis.verdict import Costs
    from colo_lib.record.plan import plan_run, starts_over_two
    from colo_lib.steps import STEPS

    steps, plan = len(params.step_names()), plan_run(params)
    of_set = {trial.placement.engine_key(): trial.step for trial in plan.trials}
    few = starts_over_two(params)
    seldom = sum(STEPS[step].needs_two for step in of_set.values()) if few < params.starts else 0
    mine = run.trials
    starts = max(1, len(set(zip(mine["gen_start"], mine["embed_start"], strict=True)) - {("", "")}))
    spent_s = float(run.manifest.total_s or 0.0) - len(mine) * plan_run(run.params).trial_s
    start_s = max(LEAST_START_S, spent_s / starts)
    return Costs((len(of_set) - seldom) * start_s, steps * plan.trial_s, seldom * few * start_s)


def _need_in_words(row: Need) -> str:
    if row.starts is None or row.blocks_a_start is None:
        return f"not settled by any run within reason ({row.assumed})"
    note = f" ({row.assumed})" if row.assumed else ""
    return f"{row.starts} starts x {row.blocks_a_start} blocks, about {_seconds(row.seconds)}{note}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
