"""Damage run folders in many ways and look at what the workbook makes of them.

    python -m tests.campaigns.damaged_folders --count 200 --seed 1

The folders are copies of a recorded run of a real GPU and of a simulated run with a capture; half of the damage to
files is hidden by mending the manifest's checksums. Each copy is read in another process, in at most 20 s, as
`colo list` and `colo report` read it, as `colo run --resume` would take it up, and as `colo share` does; where reading
succeeds the cells of every notebook of its page are carried out too (no limit but 300 s), and the true `colo report`
for one in `--page-every` of these. What must hold: exit code 0 or 2, no traceback, and where the exit code is 0 either
a warning or everything that the page shows is as for the whole run.

Not told here: rows and records that were changed so that they still agree with each other. A manifest is no signature.
A bit flipped in a frame whose checksum was mended is found by the checksum of its page, which frames have that were
written since those exist; recorded ones are older, and such a flip is done to the simulated run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from colo_lib.paths import MANIFEST, NOTEBOOKS, PARTIAL, RECORDED, REPOSITORY, START
from tests.campaigns.damage import DAMAGES, bytes_of_a_frame, mend_checksums

READ_S, PAGE_S = 20.0, 300.0
READ = ("read", "read, with a warning")
PATHS = re.compile(r"/\S+")


def originals(folder: Path) -> list[Path]:
    """A small recorded run and a simulated one with a capture and a start record."""
    from tests.run_folders import Plan, add_capture, reseal, write_run

    recorded = folder / "recorded"
    shutil.copytree(next(RECORDED.glob("h100-llama-*[0-9]/cells/cell-002/runs/*")), recorded)
    run = write_run(folder, Plan(run_id="simulated", blocks=2, window_s=1.0, device="cuda"))
    add_capture(run, "step2", command=["nsys", "launch"])
    manifest = json.loads((run / MANIFEST).read_text())
    start = {name: manifest[name] for name in ("created_utc", "params", "machine", "models", "budget", "total_s")}
    (run / START).write_text(json.dumps(start))
    reseal(run, START)
    return [recorded, run]


def damaged_copy(originals_: list[Path], target: Path, number: int, seed: int) -> str:
    """Make the damaged copy of a number; what was done, in words."""
    chance = random.Random(f"{seed} {number}")
    source = chance.choice(originals_)
    shutil.copytree(source, target)
    damage, mended = chance.choice(DAMAGES), chance.random() < 0.5
    if damage is bytes_of_a_frame and source.name == "recorded":
        mended = False
    told = damage(target, chance)
    if mended:
        mend_checksums(target)
    return f"{source.name}: {told}{', checksums mended' if mended else ''}"


class Reader:
    """A process that reads one folder after the other; a new one where it died or took too long."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, what: str, folder: Path, limit_s: float) -> dict[str, Any]:
        """`{"code": …, "told": …, "shown": …}`; code None with the reason for one that was no answer."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.campaigns.damaged_folders", "--serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY,
            )  # fmt: skip
            self._line(120.0)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, str(folder)]) + "\n")
        self.process.stdin.flush()
        line = self._line(limit_s)
        if not line:
            self.close()
            return {"code": None, "told": f"no answer within {limit_s:g} s, or the process died", "shown": {}}
        found: dict[str, Any] = json.loads(line)
        return found

    def _line(self, limit_s: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], limit_s)[0]
        return self.process.stdout.readline() if ready else ""

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def serve() -> None:
    """Answer on what was standard output; nothing else may write there."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import matplotlib

    matplotlib.use("agg")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        what, folder = json.loads(line)
        print(json.dumps(answer(what, Path(folder))), file=out, flush=True)


def answer(what: str, folder: Path) -> dict[str, Any]:
    """One command or the page's cells on a folder, with what it said and showed."""
    said = io.StringIO()
    code: int | None
    shown: dict[str, Any] = {}
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if what == "cells":
                code, shown = cells(folder)
            else:
                code = command(what, folder)
        except SystemExit as error:
            code = int(str(error.code or 0))
        except BaseException:
            code = 1
            said.write(traceback.format_exc())
    return {"code": code, "told": said.getvalue(), "shown": shown}


def command(what: str, folder: Path) -> int:
    """A command of `colo`, or of it what reads."""
    from colo_lib.cli import main as colo
    from colo_lib.data.capture import captured_steps
    from colo_lib.data.run import check_unfinished, open_run
    from colo_lib.errors import ColoError
    from colo_lib.record.run_folder import resume

    if what == "list":
        return colo(["list", "--runs-dir", str(folder.parent)])
    if what == "share":
        return colo(["share", str(folder), str(folder.parent / "shared")])
    if what == "report":
        return colo(["report", str(folder), "--reports-dir", str(folder.parent / "reports")])
    try:
        if what == "resume":
            partial = folder.with_name(folder.name + PARTIAL)
            folder.rename(partial)
            try:
                resume(partial, folder.parent, check_unfinished)
            finally:
                partial.rename(folder)
        else:
            captured_steps(open_run(folder).folder)
    except ColoError as error:
        print(f"colo: {error}")
        return error.exit_code
    return 0


def cells(folder: Path) -> tuple[int, dict[str, Any]]:
    """Carry out the cells of the page's notebooks here; everything that they show, by its name."""
    import matplotlib.pyplot as plt

    from colo_lib.data.run import open_run
    from colo_lib.errors import ColoError
    from colo_lib.report import notebook_output, page

    shown: dict[str, Any] = {}
    publish = mock.patch.object(notebook_output, "_publish", lambda _, part: shown.__setitem__(part["name"], part))
    try:
        publish.start()
        for name in page.notebooks_of(open_run(folder)):
            source = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
            space: dict[str, Any] = {"__name__": "__main__"}
            for number, cell in enumerate(cell for cell in source if cell["cell_type"] == "code"):
                exec("".join(cell["source"]), space)
                if number == 0:
                    space |= {"run": str(folder), "runs_dir": str(folder / "none")}
            plt.close("all")
    except ColoError as error:
        print(f"colo: {error}")
        return error.exit_code, shown
    finally:
        publish.stop()
    return 0, {name: part for name, part in shown.items() if part["kind"] in ("table", "text", "verdict")}


def case(reader: Reader, folder: Path, truth: dict[str, Any], page: Callable[[], bool]) -> tuple[str, list[str]]:
    """(what became of a damaged folder, what is wrong, a line each); `page`: whether one that is read gets its page."""
    wrong = []
    asked = ["list", "open", "resume", "share"]
    found = {}
    for what in asked:
        found[what] = reader.ask(what, folder, READ_S)
        wrong += faults(what, found[what])
    if found["open"]["code"] != 0:
        return "refused", wrong
    told = reader.ask("cells", folder, PAGE_S)
    wrong += faults("cells", told)
    if page():
        wrong += faults("report", reader.ask("report", folder, PAGE_S))
    if told["code"] != 0:
        return "refused by a notebook", wrong
    different = [name for name in truth if plain(told["shown"].get(name)) != plain(truth[name])]
    warned = told["shown"]["verdict"]["warnings"] != truth["verdict"]["warnings"]
    if different and not warned and not only_words(different, told["shown"], truth):
        wrong.append(f"shown otherwise, without a warning: {difference(different[0], told['shown'], truth)}")
    return "read, with a warning" if warned else "read", wrong


def faults(what: str, told: dict[str, Any]) -> list[str]:
    """A traceback, a code that is none, a limit that was not kept."""
    if told["code"] not in (0, 2):
        return [f"{what}: exit code {told['code']}: {told['told'][-900:]}"]
    return [f"{what}: a traceback: {told['told'][-900:]}"] if "Traceback" in told["told"] else []


def plain(part: Any) -> str:
    """What a part shows, without paths."""
    return PATHS.sub("/", json.dumps(part, sort_keys=True))


def only_words(names: list[str], shown: dict[str, Any], truth: dict[str, Any]) -> bool:
    """Whether nothing but labels differ: no figure of the two is another."""
    number = re.compile(r"\d+(?:\.\d+)?")
    return all(
        name in shown and sorted(number.findall(plain(shown[name]))) == sorted(number.findall(plain(truth[name])))
        for name in names
    )


def difference(name: str, shown: dict[str, Any], truth: dict[str, Any]) -> str:
    """Where a part begins to differ from the truth."""
    mine, true = plain(shown.get(name)), plain(truth[name])
    at = next((place for place, (a, b) in enumerate(zip(mine, true, strict=False)) if a != b), 0)
    return f"{name}: …{mine[max(0, at - 60) : at + 60]}… for …{true[max(0, at - 60) : at + 60]}…"


def carry_out(count: int, seed: int, page_every: int, first: int = 1) -> Counter[str]:
    """Carry out the cases and tell each; how many were refused, read, wrong."""
    tally: Counter[str] = Counter()
    reader = Reader()
    with tempfile.TemporaryDirectory(prefix="damaged-") as name:
        root = Path(name)
        whole = originals(root / "whole")
        truths: dict[str, Any] = {}
        try:
            for source in whole:
                told = reader.ask("cells", source, PAGE_S)
                assert told["code"] == 0, told["told"]
                truths[source.name] = told["shown"]
            for number in range(first, first + count):
                folder = root / "case" / "run"
                did, began_s = damaged_copy(whole, folder, number, seed), time.monotonic()
                page = lambda: bool(page_every) and sum(tally[name] for name in READ) % page_every == 0  # noqa: E731
                became, wrong = case(reader, folder, truths[did.partition(":")[0]], page)
                tally[became] += 1
                tally["wrong"] += bool(wrong)
                print(f"{number}: {did!r}: {became} ({time.monotonic() - began_s:.1f} s)", flush=True)
                for line in wrong:
                    print(f"   WRONG: {line}", flush=True)
                shutil.rmtree(root / "case")
        finally:
            reader.close()
    return tally


def main() -> int:
    """The command line; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=1, help="number of the first case (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page-every", type=int, default=3, metavar="N", help="of those read; 0: never (default: 3)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    tally = carry_out(options.count, options.seed, options.page_every, options.first)
    print(", ".join(f"{name}: {count}" for name, count in sorted(tally.items())))
    return 1 if tally["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
