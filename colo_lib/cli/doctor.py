"""Tell what this machine can run, with the remedy for what it cannot.

Looks at cores, memory, GPUs, MPS, Nsight Systems, the engines' interpreters, the memory budget of the chosen
pair, disk and browser. `*` marks what the params file needs. Exit code 0: it can run here; 1: it cannot;
2: wrong input.

examples:
  colo doctor                       can params/cpu.yaml run here?
  colo doctor params/h200.yaml      can the H200 pair run here, and what is missing?
"""

from __future__ import annotations

import argparse

DEFAULT = "params/cpu.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `colo doctor`."""
    parser.add_argument("params", nargs="?", metavar="PARAMS", help=f"params file (default: {DEFAULT} of the checkout)")
    parser.add_argument("--engine-timeout-s", type=float, default=120.0, help="the engines must import within this")


def carry_out(options: argparse.Namespace) -> int:
    """Print the rows and the budget; 0 when the params can run here, else 1."""
    import contextlib

    from colo_lib import doctor
    from colo_lib.errors import InputError
    from colo_lib.hardware import memory
    from colo_lib.hardware.budget import demand_of, format_budget
    from colo_lib.hardware.nvml import look_at_gpus
    from colo_lib.params import load
    from colo_lib.paths import REPOSITORY

    file = options.params or REPOSITORY / DEFAULT
    params, gpus = load(file), look_at_gpus()
    rows = doctor.examine(params, engine_timeout_s=options.engine_timeout_s, gpus=gpus)
    print(doctor.format_rows(rows))
    with contextlib.suppress(InputError):  # its row has said why
        print("\n" + format_budget(memory.budget_here(demand_of(params), gpus)))
    runs = doctor.can_run(rows)
    print(f"\n{file}: " + ("can run here" if runs else "cannot run here; see the rows marked * that are not ok"))
    return 0 if runs else 1
