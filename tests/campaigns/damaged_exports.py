"""Damage exports in many ways and see what `colo trace` makes of them.

    python -m tests.campaigns.damaged_exports --count 1000 --seed 1     a thousand; `--only N` repeats one of them
    python -m tests.campaigns.damaged_exports --keep FOLDER             keeps the files of what failed

Each must end within 20 s by exit code 0, or 2 with one sentence, without a traceback and with nothing written beside
it; and SQLite's rows and those read from the file's pages must come to the same words. Where it is read without a word
of warning that the sound file does not have, every figure must be the one that a second, naive reader takes from the
same file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from colo_lib.cli import main as command
from colo_lib.data import nsys_pages
from colo_lib.data.packed_export import unpacked
from colo_lib.examples.captures import EMBED_PID, GEN_PID, simulated_capture
from colo_lib.paths import RECORDED
from tests.campaigns.damages import DAMAGES, no_file
from tests.exports import EMBED, GEN
from tests.naive_differences import differences
from tests.naive_trace import answers
from tests.twisted import twisted

LIMIT_S = 20
REFUSED, WARNED, TOLD = "refused", "read with a warning", "read without"


@dataclass(frozen=True)
class Source:
    """A sound export: how to make a copy of it, and who is gen and embed in it."""

    make: Callable[[Path], Any]
    members: dict[str, set[int]]


@dataclass(frozen=True)
class Outcome:
    """One damaged export: what became of it; `problem` is empty where that is as it must be."""

    number: int
    damage: str
    ended: str
    problem: str = ""


def sources() -> list[Source]:
    """Real captures of this checkout and planted ones."""
    found = [
        Source(lambda file, step=step: simulated_capture(file, step, 6.0), {"gen": {GEN_PID}, "embed": {EMBED_PID}})
        for step in ("step2", "step3")
    ]
    found += [
        Source(lambda file, seed=seed: twisted(file, seed), {"gen": {GEN}, "embed": {EMBED}})
        for seed in (3, 11, 17, 30)
    ]
    for pattern, gen, embed in (
        ("h200-big-*/steps/step3/capture/trace.sqlite*", {5741, 5828, 5829}, {6030}),
        ("h100-llama-*/cells/cell-001/runs/*/steps/step2/capture/trace.sqlite*", {7691}, {7847}),
        ("h100-x2-*/cells/cell-001/runs/*/steps/configB/capture/trace.sqlite*", {6564, 6565}, {6755, 6836}),
    ):
        found += [Source(_copied(file), {"gen": gen, "embed": embed}) for file in sorted(RECORDED.glob(pattern))[:1]]
    return found


def _copied(source: Path) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(unpacked(source).read_bytes())


@dataclass(frozen=True)
class Done:
    """How `colo trace --json` ended; `code` is None where it did not within the limit."""

    code: int | None
    out: str
    err: str


NEVER, ALWAYS = 10**9, 0  # pages that a table must have for its rows to be read from them


def trace(file: Path, members: dict[str, set[int]], least_leaves: int = NEVER) -> Done:
    """`colo trace --json` in a process of its own, forked from this one, in which everything is imported already."""
    words = [word for name, pids in members.items() for word in (f"--{name}", ",".join(map(str, sorted(pids))))]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            nsys_pages.LEAST_LEAVES = least_leaves
            _be_the_command(["trace", str(file), *words, "--json"], out.fileno(), err.fileno())
        code = _waited_for(child)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Done(code, *texts)


def _be_the_command(words: list[str], out: int, err: int) -> NoReturn:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 they end with the process
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ["COLO_EXPORT_CACHE"] = ""
        code = command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited_for(child: int) -> int | None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@cache
def sound(place: int) -> tuple[frozenset[str], frozenset[str]]:
    """What the undamaged source is told with: its notes and omissions."""
    source = sources()[place]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.sqlite"
        source.make(file)
        done = trace(file, source.members)
        found = json.loads(done.out) if done.code == 0 else {"notes": [], "omissions": []}
    return frozenset(found["notes"]), frozenset(found["omissions"])


def one(seed: int, number: int, keep: Path | None = None) -> Outcome:
    """Damage one export, read it, and judge what comes out."""
    rng = random.Random(seed * 1_000_003 + number)
    place = rng.randrange(len(sources()))
    source = sources()[place]
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        file = Path(folder) / "trace.sqlite"
        source.make(file)
        damages = rng.choices(
            [act for _, act in DAMAGES], [weight for weight, _ in DAMAGES], k=rng.choice((1, 1, 1, 2))
        )
        told = []
        # What is no file any more cannot be damaged further: opening a pipe would wait for its writer.
        for act in sorted(damages, key=lambda act: act is no_file):
            try:
                told.append(act(file, rng))
            except Exception as error:  # a second damage may find nothing left to damage
                told.append(f"no {act.__name__} ({type(error).__name__})")
        damage = f"source {place}: {'; '.join(told)}"
        before = sorted(item.name for item in Path(folder).iterdir())
        ended, problem = _judged(file, source, place)
        if sorted(item.name for item in Path(folder).iterdir()) != before:
            problem = "something was written beside it"
        if problem and keep is not None:
            shutil.copytree(folder, keep / str(number), dirs_exist_ok=True, symlinks=True, copy_function=_plain_copy)
        return Outcome(number, damage, ended, problem)


def _plain_copy(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copy2(source, target)


def _judged(file: Path, source: Source, place: int) -> tuple[str, str]:
    done = trace(file, source.members)
    if trace(file, source.members, ALWAYS) != done:
        return "told otherwise", "by its pages the file says something else than by SQLite"
    if done.code is None:
        return "hung", f"not done within {LIMIT_S} s"
    if "Traceback" in done.err or done.code not in (0, 2):
        return "crashed", f"exit code {done.code}: {done.err.strip()[-300:]}"
    if done.code == 2:
        sentence = done.err.startswith("colo: ") and done.err.count("\n") == 1 and not done.out
        return REFUSED, "" if sentence else f"not one sentence: {done.err[:300]!r}"
    found = json.loads(done.out)
    notes, omissions = sound(place)
    if set(found["notes"]) - notes or set(found["omissions"]) - omissions:
        return WARNED, ""
    try:
        truth = answers(file, source.members)
    except Exception as error:
        return TOLD, f"the naive reader cannot read it: {error!r}"
    return TOLD, "; ".join(differences(found, truth)[:3])


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one of them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the files of what fails")
    options = parser.parse_args(words)
    numbers = range(options.count) if options.only is None else [options.only]
    with ProcessPoolExecutor(options.workers, get_context("fork")) as pool:
        ended: Counter[str] = Counter()
        bad = 0
        for outcome in pool.map(partial(one, options.seed, keep=options.keep), numbers):
            ended[outcome.ended] += 1
            if not sum(ended.values()) % 100:
                print(f"{sum(ended.values())} done", file=sys.stderr, flush=True)
            if outcome.problem or options.only is not None:
                bad += bool(outcome.problem)
                print(f"{outcome.number}  {outcome.damage}\n    {outcome.ended}: {outcome.problem}", flush=True)
    told = ", ".join(f"{count} {what}" for what, count in ended.most_common())
    print(f"{sum(ended.values())} exports: {told}; {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
