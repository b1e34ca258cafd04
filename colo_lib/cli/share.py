"""Make a finished run or a sweep fit to share: what is known to be harmless is copied, everything else is replaced.

The frames are whole, captures are cut to milliseconds and redacted; logs, notebooks, paths, hosts, tokens and GPU UUIDs
stay behind, and the command counts them. The copy is a run like any other: every reading notebook and `colo report`
take it. The run's own name, names of kernels and of the models that come with the workbook are kept: docs/sharing.md.

examples:
  colo share h200-20261124-101500 recorded
  colo share runs/h200-20261124-101500 recorded --capture-ms 50
  colo share sweeps/h100-gen_concurrency-20261126-183618 recorded
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `colo share`."""
    parser.add_argument(
        "run", metavar="RUN", help="a finished run folder, the name of one in --runs-dir, or a sweep's folder"
    )
    parser.add_argument("parent", metavar="FOLDER", type=Path, help="the copy is made in here, under the run's name")
    parser.add_argument(
        "--capture-ms",
        type=float,
        default=50.0,
        help="kept of each capture, ms (default: 50); with --capture-tokens 0 as well, 0 leaves captures out",
    )
    parser.add_argument(
        "--capture-tokens", type=float, default=20.0, metavar="N",
        help="kept of each capture with the LLM, if that is more: as long as N tokens took (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--pack",
        action="store_true",
        help="captures as .sqlite.xz (an eighth of the size), frames written anew (half)",
    )
    parser.add_argument("--runs-dir", default="runs", help="folder that holds the runs (default: runs)")


def carry_out(options: argparse.Namespace) -> int:
    """Write the copy and list what was left out; 0 done, 2 for a run that cannot be read or is there already."""
    from colo_lib.analysis.trace.processes import printable
    from colo_lib.errors import InputError
    from colo_lib.paths import SWEEP
    from colo_lib.report.share import share, share_sweep
    from colo_lib.select import named_run

    if not 0 <= options.capture_ms <= 60_000:
        raise InputError(f"--capture-ms {options.capture_ms:g}: give milliseconds from 0 to 60,000")
    if not 0 <= options.capture_tokens <= 1e6:
        raise InputError(f"--capture-tokens {options.capture_tokens:g}: give a number of tokens from 0 on")
    keep = {"capture_ms": options.capture_ms, "capture_tokens": options.capture_tokens,
            "packed": options.pack}  # fmt: skip
    source = Path(options.run)
    if (source / SWEEP).is_file():
        folder, left_out = share_sweep(source, options.parent, **keep)
    else:
        folder, left_out = share(named_run(options.run, options.runs_dir), options.parent, **keep)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB. Left out or replaced:")
    print("\n".join(f"  {printable(line)}" for line in left_out.words()) or "  nothing")
    return 0
