"""A process that has imported all that the notebooks of a page need, and forks one process for each of them.

    python -m colo_lib.report.preloaded FOLDER

It starts to import, and reads the run or sweep FOLDER, while its owner does the same; then comes one line, an `Order`
as JSON, and goes one line for each notebook that ended, `[name, failure]`. When its owner hangs up it ends all of them.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TextIO

import psutil

from colo_lib.child_environment import spare_grammars
from colo_lib.report.execute import READY, with_papermill

ROOMS = ("analysis", "data", "plot", "report")
MOST_AT_ONCE = 4
SPARE_BYTES = 512 * 1024**2  # of memory that stays free when one more notebook starts


def main() -> None:
    """See the module's own words. Refuses by its exit code where a fork would not be safe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anybody prints is no answer
    spare_grammars()
    _import_all()
    held = _read(Path(sys.argv[1]))
    threads = psutil.Process().num_threads()
    if threads > 1:
        sys.exit(f"{threads} threads: a fork would not be safe")
    answers.write(READY)
    answers.flush()
    order = sys.stdin.readline()
    if order:
        _execute(json.loads(order), answers)
    del held


def _import_all() -> None:
    """Import the rooms that notebooks use, and draw and render once: much is imported at the first time alone."""
    import seaborn  # noqa: F401
    from matplotlib.figure import Figure

    import colo_lib
    from colo_lib import select  # noqa: F401
    from colo_lib.report.forked_kernel import shell

    for room in ROOMS:
        package = importlib.import_module(f"{colo_lib.__name__}.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    figure = Figure(layout="constrained")
    figure.subplots().plot([1, 2], [1, 2], label="a")
    with open(os.devnull, "wb") as nowhere:
        figure.savefig(nowhere, format="png")
    shell()


def _read(folder: Path) -> list[Any]:
    """What several notebooks ask for, read and computed; what cannot be read is told by the owner, who reads it too.

    `open_run` gives the runs to whoever opens them, as long as somebody holds what this returns.
    """
    from colo_lib.analysis.run_analysis import RunAnalysis
    from colo_lib.analysis.thresholds import judged_by
    from colo_lib.data.run import open_run
    from colo_lib.data.sweep import open_sweep
    from colo_lib.errors import ColoError
    from colo_lib.params import Params
    from colo_lib.paths import SWEEP

    try:
        if (folder / SWEEP).is_file():
            sweep = open_sweep(folder)
            bounds = judged_by(sweep.params, Params())
            analyses = [RunAnalysis(run, bounds=bounds) for run in sweep.runs.values()]
            for analysis in analyses:
                _ = (analysis.ratios, analysis.telemetry)
        else:
            analyses = [RunAnalysis(open_run(folder))]
            _ = (analyses[0].kept, analyses[0].steps_table)
    except ColoError:
        return []
    return analyses


def _execute(order: dict[str, Any], answers: TextIO) -> None:
    os.environ.update(order["environment"])
    gc.collect()
    gc.freeze()  # a fork copies the pages that its collector writes to
    fork = multiprocessing.get_context("fork")
    waiting = deque(order["notebooks"])
    running: dict[Any, tuple[str, Any]] = {}
    owner = sys.stdin.fileno()
    while waiting or running:
        while waiting and (not running or (len(running) < _places() and _room())):
            job = waiting.popleft()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_one, args=(job, theirs))
            process.start()
            theirs.close()
            running[ours] = (job["name"], process)
        for ready in wait([owner, *running]):
            if ready == owner:
                _end(process.pid for _, process in running.values())
            connection: Any = ready
            name, process = running.pop(connection)
            try:
                failure = connection.recv()
            except EOFError:
                failure = "its process died"
            process.join()
            answers.write(json.dumps([name, failure]) + "\n")
            answers.flush()


def _places() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AT_ONCE)


def _room() -> bool:
    """Whether one more notebook may come to hold as much as this process does."""
    return psutil.virtual_memory().available > psutil.Process().memory_info().rss + SPARE_BYTES


def _one(job: dict[str, Any], answer: Any) -> None:
    """Execute a notebook in a fork of this process, whose own fork runs the cells."""
    os.setsid()
    from colo_lib.report.forked_kernel import ENGINE

    answer.send(with_papermill(**job["papermill"], engine=ENGINE))


def _end(pids: Iterable[int | None]) -> None:
    """End every notebook with its cells, and this process."""
    for pid in pids:
        if pid:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
