"""Execute the notebooks of a page: in forks of one preloaded process where that is safe, else each in its own kernel.

Either way papermill writes the executed notebooks, with the same outputs. The start of a kernel and its imports take
longer than most notebooks; a fork has them behind it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from colo_lib import paths
from colo_lib.child_environment import package_environment, spare_grammars
from colo_lib.errors import InputError, StepFailed
from colo_lib.report import notebook_output

FAILURE_LINES = 12
READY = "ready\n"
END_S = 10.0
INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as a kernel has it
# Threads of a library's pool would be there before the fork; two notebooks at a time use the cores as well.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # Arrow's allocator
}


@dataclass(frozen=True)
class Notebook:
    """One notebook to execute: its name, the run or sweep that its last cell must name, its parameters, the seconds
    that a cell may take, and where the executed copy goes.
    """

    name: str
    run_id: str
    values: Mapping[str, str]
    timeout_s: int
    target: Path

    @property
    def source(self) -> Path:
        """The notebook's own file. Raises InputError where there is none."""
        file = paths.NOTEBOOKS / f"{self.name}.ipynb"
        if not file.is_file():
            raise InputError(f"no notebook {file.name}: the report needs the checkout's notebooks/ beside the package")
        return file

    @property
    def fresh(self) -> Path:
        """The copy while it is made."""
        return self.target.with_name(f".new-{self.target.name}")

    def order(self) -> dict[str, Any]:
        """Arguments of `with_papermill`."""
        return {"source": str(self.source), "target": str(self.fresh.resolve()), "values": dict(self.values),
                "timeout_s": self.timeout_s}  # fmt: skip


Execute = Callable[[Sequence[Notebook]], list[dict[str, Any]]]


@contextmanager
def preloaded(folder: Path) -> Iterator[Execute]:
    """What executes notebooks on `folder`, a run or a sweep, and gives their parts in the order of the notebooks.

    Its process imports and reads while the block does other things; it is gone when the block is left. The function
    raises StepFailed for the first notebook that does not reach its end; the rest are ended then.
    """
    with _forking(folder) as process:
        asked = False

        def execute(notebooks: Sequence[Notebook]) -> list[dict[str, Any]]:
            nonlocal asked
            asked = True
            orders = {each.name: each.order() for each in notebooks}
            for each in notebooks:
                each.target.unlink(missing_ok=True)
            parts: dict[str, list[dict[str, Any]]] = {}
            try:
                for each, failure in _ended(process, notebooks, orders):
                    parts[each.name] = _lifted(each, failure)
            finally:
                for each in notebooks:
                    each.fresh.unlink(missing_ok=True)
            return [part for each in notebooks for part in parts[each.name]]

        try:
            yield execute
        except BaseException:
            if process is not None and not asked:
                process.kill()  # it has forked nobody yet, and nobody is to wait for its imports
            raise


def execute_alone(notebook: Notebook) -> list[dict[str, Any]]:
    """Execute one notebook in a kernel of its own and give its parts; StepFailed where it does not reach its end."""
    order = notebook.order()
    notebook.target.unlink(missing_ok=True)
    try:
        return _lifted(notebook, with_papermill(**order))
    finally:
        notebook.fresh.unlink(missing_ok=True)


def _lifted(notebook: Notebook, failure: str) -> list[dict[str, Any]]:
    """Put the executed copy in its place and give its parts.

    Papermill's own word is not taken: a dead kernel or `sys.exit(0)` look like success in the file it leaves. The
    notebook's last cell must have said that it is done, for this run. Raises StepFailed with its last lines otherwise.
    """
    made: dict[str, Any] = {}
    if notebook.fresh.is_file():
        with suppress(ValueError):  # cut off while it was written
            made = json.loads(notebook.fresh.read_text(encoding="utf-8"))
            notebook.fresh.replace(notebook.target)
    parts = notebook_output.lift(made)
    last = parts[-1] if parts else {}
    done = ("done", notebook.name, notebook.run_id)
    if failure or (last.get("kind"), last.get("notebook"), last.get("run_id")) != done:
        words = failure or "no record of its last cell"
        raise StepFailed(f"notebook {notebook.name} did not reach its end for {notebook.run_id}: {words}")
    return parts


def with_papermill(source: str, target: str, values: dict[str, str], timeout_s: int, engine: str | None = None) -> str:
    """Why it failed, in the last lines of what papermill says; empty where it says nothing.

    `engine`: papermill's, None for a kernel.
    """
    spare_grammars()
    import papermill

    # Writing after each cell costs more than most cells.
    saving: dict[str, Any] = {} if engine is None else {"request_save_on_cell_execute": False, "save_path": target}
    try:
        papermill.execute_notebook(
            source,
            # Papermill takes an output path for a format string.
            target.replace("{", "{{").replace("}", "}}"),
            parameters=values,
            engine_name=engine,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=120,
            execution_timeout=timeout_s,
            cwd=str(paths.REPOSITORY),
            extra_arguments=["--log-level=50"],  # what it logs is about its own sockets and its own end
            **saving,
        )
    except Exception as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        return "\n".join(plain[-FAILURE_LINES:]) or type(error).__name__
    return ""


@contextmanager
def _forking(folder: Path) -> Iterator[subprocess.Popen[str] | None]:
    """A process of `preloaded`; None where there are no forks to be had."""
    if sys.platform != "linux":  # elsewhere system libraries start threads that no fork outlives
        yield None
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "colo_lib.report.preloaded", str(folder.absolute())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=INLINE | os.environ | ONE_THREAD | package_environment({}),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # It ends what it started when we hang up.
        with suppress(OSError):
            _in(process).close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _out(process).close()


def _in(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _ended(
    process: subprocess.Popen[str] | None, notebooks: Sequence[Notebook], orders: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[Notebook, str]]:
    """Every notebook as it ends, with why it failed; in kernels where the process refuses to fork."""
    if process is None or _out(process).readline() != READY:
        for each in notebooks:
            yield each, with_papermill(**orders[each.name])
        return
    waiting = {each.name: each for each in notebooks}
    figures = (notebook_output.FIGURES, notebook_output.FIGURES_END)
    order = {
        "environment": {name: os.environ[name] for name in figures if name in os.environ},
        "notebooks": [{"name": name, "papermill": order} for name, order in orders.items()],
    }
    with suppress(BrokenPipeError):
        print(json.dumps(order), file=_in(process), flush=True)
    for line in _out(process):
        name, failure = json.loads(line)
        yield waiting.pop(name), failure
        if not waiting:
            return
    yield next(iter(waiting.values())), "the process that executes notebooks died"
