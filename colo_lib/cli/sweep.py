"""Repeat the run of a params file over a grid of values; each cell is a run folder of its own.

Exit codes: 0 every cell was measured, 1 a cell failed, was lost, or cannot run here (its models do not fit),
2 wrong input; nothing has started then. Notebooks 31-37 and 55 read the sweep's folder.

examples:
  colo sweep params/cpu.yaml --over gen_concurrency=1,2,4,8
  colo sweep params/h100.yaml --over mps_embed_thread_percentage=10,25,50,75,100 --set blocks=3
  colo sweep params/cpu.yaml --over gen_prompt_tokens:gen_output_tokens=32:96,64:64,96:32   (two that change together)
  colo sweep params/h100.yaml --over gen_kv_cache_gib=4,16,32 --over embed_batch_size=8,64,256   (all combinations)
  colo sweep --resume sweeps/cpu-gen_concurrency-20261124-101500
  colo sweep params/h100.yaml --jointly --set gen_max_num_seqs=32 --over gen_concurrency=1,8,32
  colo sweep params/h100.yaml --over gen_concurrency=1,2,4 --ray             (a local Ray)
  colo sweep params/h100.yaml --over gen_concurrency=1,2,4 --ray 10.0.0.5:6379 (your cluster)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo_lib.record.sweep import Execute

LOCAL = "local"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `colo sweep`."""
    parser.add_argument("params", nargs="?", metavar="PARAMS", help="a params file, as params/cpu.yaml")
    parser.add_argument("--over", action="append", default=[], metavar="NAME=V1,V2", help="vary one; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one for every cell")
    parser.add_argument("--resume", metavar="SWEEP", help="go on with a sweep: cells that are not done run again")
    parser.add_argument(
        "--jointly", action="store_true", help="cells in shared blocks on engines that stay up, common trials once"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="jointly, on Ray's workers: a local one, or a cluster's address",
    )


def carry_out(options: argparse.Namespace) -> int:
    """Plan or take up, carry out, tell; 0 when every cell was measured."""
    from colo_lib.errors import InputError
    from colo_lib.record.sweep import carry_out_sweep, sweep_summary
    from colo_lib.sweep_plan import DONE, find_sweep, is_joint, read_plan

    if bool(options.params) == bool(options.resume):
        raise InputError("give a params file and --over NAME=V1,V2, or --resume SWEEP")
    if options.resume and (options.over or options.set or options.jointly):
        raise InputError(
            "--over, --set and --jointly cannot change a sweep that has begun: leave them out, or begin a new one"
        )
    folder = find_sweep(options.resume, "sweeps") if options.resume else None
    jointly = options.jointly or bool(options.ray) if folder is None else is_joint(folder)
    execute = _execute(options.ray, jointly)
    folder = folder or _begin(options, jointly)
    _, cells = read_plan(folder)
    _say(f"sweep folder: {folder} ({len(cells)} cells)")
    try:
        records = carry_out_sweep(folder, _say, execute)
    except KeyboardInterrupt as interrupt:
        _say(f"interrupted ({str(interrupt) or 'Ctrl-C'}): nothing is left running; colo sweep --resume {folder}")
        return 130
    whole = all(record.status == DONE for record in records) and len(records) == len(cells)
    print(sweep_summary(records, len(cells)), file=sys.stdout if whole else sys.stderr, flush=True)
    _say(f"sweep: {folder}" if whole else f"to go on: colo sweep --resume {folder}")
    return 0 if whole else 1


def _begin(options: argparse.Namespace, jointly: bool) -> Path:
    from colo_lib.cli.run import changes
    from colo_lib.hardware.engine_python import resolve_models
    from colo_lib.params import load
    from colo_lib.record.plan import plan_run
    from colo_lib.sweep_plan import begin_sweep, cell_params, grid, parse_axis

    params = load(options.params, **changes(options.set))
    axes = [parse_axis(word) for word in options.over]
    cells = grid(params, axes)
    for cell in cells:  # what no cell could run is told before the first one starts
        wanted = cell_params(params, cell, Path(params.sweeps_dir) / "planned")
        plan_run(wanted)
        resolve_models(wanted)
    return begin_sweep(params, axes, cells, jointly)


def _execute(ray: str | None, jointly: bool) -> Execute:
    from colo_lib.record.sweep import carry_out_here

    if ray is not None:
        from colo_lib.record.sweep_on_ray import carry_out_on

        return carry_out_on(None if ray == LOCAL else ray)
    if jointly:
        from functools import partial

        from colo_lib.data.run import check_unfinished
        from colo_lib.record.joint_sweep import carry_out_jointly

        return partial(carry_out_jointly, check_unfinished=check_unfinished)
    return carry_out_here


def _say(text: str) -> None:
    print(text, flush=True)
