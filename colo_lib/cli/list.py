"""List the runs of this checkout: finished ones newest first, then unfinished ones with how to resume them.

examples:
  colo list
  colo list --runs-dir /data/runs
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

HEAD = ("RUN", "STATUS", "TRIALS", "DEVICE", "CREATED")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--runs-dir", default="runs", help="where runs lie (default: %(default)s)")


def carry_out(options: argparse.Namespace) -> int:
    """Print the table; 0 also when there is no run."""
    from colo_lib.data.run import find_runs, find_unfinished

    root = Path(options.runs_dir)
    rows = [_finished(folder) for folder in find_runs(root)]
    unfinished = find_unfinished(root)
    rows += [(folder.name, "unfinished", "-", "-", "-") for folder in unfinished]
    if not rows:
        print(f"no runs in {root}; `colo run PARAMS` makes one")
        return 0
    widths = [max(len(row[column]) for row in [HEAD, *rows]) for column in range(len(HEAD))]
    for row in [HEAD, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for folder in unfinished:
        print(f"to complete {folder.name}: colo run --resume {shlex.quote(str(folder))}")
    return 0


def _finished(folder: Path) -> tuple[str, ...]:
    """A row about a finished run from its manifest alone: the files' checksums are for those who read them."""
    from colo_lib.errors import InputError
    from colo_lib.json_records import checked, read_object
    from colo_lib.paths import MANIFEST
    from colo_lib.records import Manifest

    file = folder / MANIFEST
    try:
        manifest = checked(Manifest, read_object(file), file)
    except InputError:
        return (folder.name, "unreadable", "-", "-", "-")
    done = sum(row.status == "done" for row in manifest.trials)
    device = manifest.machine.device_name or "not recorded"
    cells = (f"{done}/{len(manifest.trials)} count", device, manifest.created_utc or "—")
    return (folder.name, "finished", *("".join(char if char.isprintable() else "?" for char in cell) for cell in cells))
