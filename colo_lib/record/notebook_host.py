"""Notebooks as steps: a process of its own that executes them through papermill, and its owner's side.

    python -m colo_lib.record.notebook_host SOCKET

An order is a `NotebookOrder` with `"do": "execute"`, one at a time; the answer holds papermill's complaint or null. Its
word is not taken for success (a dead kernel and `sys.exit(0)` look like one): the step's own record is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colo_lib.child_environment import package_environment
from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child, wait_for
from colo_lib.launch.rpc import Handle, call
from colo_lib.paths import NOTEBOOKS

LAST_WORDS = 4000
HOST_TIMEOUT_S = 60.0
BESIDE_A_CELL_S = 120.0  # a notebook takes longer than its longest cell


@dataclass(frozen=True)
class NotebookOrder:
    """One notebook to execute: its file, where the executed copy goes, its parameters, and in which folder it runs."""

    notebook: str
    out: str
    params: Mapping[str, Any]
    cell_timeout_s: float
    cwd: str


def execute_notebook(order: NotebookOrder) -> str | None:
    """Run one notebook; None, or what went wrong in words. The executed copy appears whole or not at all."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException

    out = Path(order.out)
    temporary = out.with_name(out.stem + ".tmp.ipynb")
    complaint = None
    try:
        papermill.execute_notebook(
            order.notebook,
            # Papermill takes an output path for a format string.
            str(temporary).replace("{", "{{").replace("}", "}}"),
            parameters=dict(order.params),
            progress_bar=False,
            execution_timeout=int(order.cell_timeout_s),
            cwd=order.cwd,
            extra_arguments=["--log-level=50"],  # what it logs is about its own sockets and its own end
        )
    except CellTimeoutError:
        complaint = f"a cell did not end within cell_timeout_s = {order.cell_timeout_s:g} s"
    except DeadKernelError:
        complaint = "the notebook's kernel died"
    except PapermillException as error:
        # A bare interrupt has no words of its own; papermill's are the whole traceback.
        complaint = getattr(error, "evalue", None) or getattr(error, "ename", None) or str(error)
    except Exception as error:  # Papermill lets a full disk, a bad notebook and more through as they are.
        complaint = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError, ValueError):
        json.loads(temporary.read_text())
        temporary.replace(out)
    temporary.unlink(missing_ok=True)
    return None if complaint is None else complaint[-LAST_WORDS:]


def main() -> None:
    """Answer orders, one connection at a time, until ended."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # The kernel is an ordinary child; matplotlib must not look for a display in it.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    import papermill  # noqa: F401  (paid for once, here)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                for line in stream:
                    order = json.loads(line)
                    wanted = order.pop("do") == "execute"
                    answer = {"complaint": execute_notebook(NotebookOrder(**order))} if wanted else {}
                    stream.write(json.dumps(answer) + "\n")
                    stream.flush()


class NotebookHost:
    """Executes notebooks of this workbook; `execute` returns papermill's complaint, which alone decides nothing."""

    def __init__(self, handle: Handle, child: Child) -> None:
        self.handle, self.child = handle, child

    def execute(self, notebook: str, out: Path, parameters: Mapping[str, Any], cell_timeout_s: float) -> str | None:
        """Run `notebook` (its name, without suffix) into `out`; raises StepFailed when the host itself is lost."""
        out.parent.mkdir(parents=True, exist_ok=True)
        file = NOTEBOOKS / f"{notebook}.ipynb"
        order = NotebookOrder(str(file), str(out.absolute()), dict(parameters), cell_timeout_s, os.getcwd())
        try:
            answer = call(self.handle, "execute", timeout_s=cell_timeout_s + BESIDE_A_CELL_S, **asdict(order))
        except OSError as error:
            raise StepFailed(f"notebook {notebook}: its host is lost ({error}):\n{self.child.tail()}") from None
        complaint: str | None = answer["complaint"]
        return complaint


@contextmanager
def notebook_host(runtime: Path, log: Path, additions: Mapping[str, str]) -> Iterator[NotebookHost]:
    """A host for as long as the block lasts; `additions` go into the kernels' environment."""
    socket_path = runtime / "notebooks.sock"
    # Kernels are the user's own code: they keep the whole environment.
    env = dict(os.environ) | package_environment(dict(additions))
    command = [sys.executable, "-m", "colo_lib.record.notebook_host", str(socket_path)]
    child = Child("notebooks", command, log, env=env, grace_s=5.0)
    try:
        wait_for(socket_path.exists, child, HOST_TIMEOUT_S, "the notebook host")
        yield NotebookHost(Handle(str(socket_path), child.pid, str(log)), child)
    finally:
        child.stop()


if __name__ == "__main__":
    main()
