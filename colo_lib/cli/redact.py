"""Make an Nsight Systems export fit to share: a new file without host, user, paths, environment, other processes.

What the workbook reads is kept, everything else stays behind; the command lists what it left out. Kernel names are
kept: if those are secret, do not share the file.

examples:
  colo redact trace.sqlite shared.sqlite
  colo redact trace.sqlite small.sqlite --window 4.0:4.2 --keep 777,774
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `colo redact`."""
    parser.add_argument("source", type=Path, metavar="IN.sqlite", help="an Nsight Systems export; it is not changed")
    parser.add_argument("target", type=Path, metavar="OUT.sqlite", help="the new file")
    parser.add_argument(
        "--keep", default="", metavar="PID|NAME", help="processes, by comma (default: who launched work)"
    )
    parser.add_argument("--window", default="", metavar="START_S:END_S", help="keep this part alone")


def carry_out(options: argparse.Namespace) -> int:
    """Write the file and list what was left out; 0 done, 2 for a file that cannot be read or written."""
    from colo_lib.analysis.trace.processes import launchers, matching, printable
    from colo_lib.analysis.trace.residency import host_pids
    from colo_lib.analysis.trace.window import window_of
    from colo_lib.data.export import read_export
    from colo_lib.data.redact import redact

    capture = read_export(options.source)
    keep = options.keep.strip()
    places = matching(capture, keep) if keep else [item.place for item in launchers(capture)]
    pids = {capture.processes[place].pid for place in places}
    left_out = redact(options.source, options.target, pids | host_pids(capture, pids), window_of(options.window))
    print(f"{options.target}: {options.target.stat().st_size:,} bytes. Left out:")
    print("\n".join(f"  {printable(line)}" for line in left_out.lines) or "  nothing")
    return 0
