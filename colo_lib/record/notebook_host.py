"""Notebooks as steps: a process of its own that executes them through papermill, and its owner's side.

    python -m colo_lib.record.notebook_host SOCKET

An order is a `NotebookOrder` with `"do": "execute"`, one at a time; the answer holds papermill's complaint or null. Its
word is not taken for success (a dead kernel and `sys.exit(0)` look like one): the step's own record is.

One kernel serves all notebooks, each in a namespace of its own; one that failed a notebook is not used again.
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

from colo_lib.child_environment import package_environment, spare_grammars
from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child, wait_for
from colo_lib.launch.rpc import Handle, call
from colo_lib.paths import NOTEBOOKS

LAST_WORDS = 4000
HOST_TIMEOUT_S = 60.0
BESIDE_A_CELL_S = 120.0  # a notebook takes longer than its longest cell
ENGINE = "lasting-kernel"  # by this name papermill finds ours
# What an earlier notebook named, drew or changed to is not there for the next one; imported modules are.
FORGET = """
import os, sys
os.chdir({cwd!r})
"matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"].close("all")
get_ipython().reset(new_session=True)
"""


@dataclass(frozen=True)
class NotebookOrder:
    """One notebook to execute: its file, where the executed copy goes, its parameters, and in which folder it runs."""

    notebook: str
    out: str
    params: Mapping[str, Any]
    cell_timeout_s: float
    cwd: str


class Kernel:
    """The kernel in which notebooks run one after the other, started when the first one needs it."""

    def __init__(self) -> None:
        from papermill.engines import papermill_engines

        self.manager: Any = None
        papermill_engines.register(ENGINE, engine_on(self))

    def lasting_manager(self, name: str) -> Any:
        """The manager of the kernel that is there, or of one that its first notebook will start."""
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        if self.manager is not None and not (self.manager.kernel_name == name and run_sync(self.manager.is_alive)()):
            self.end()
        if self.manager is None:
            self.manager = AsyncKernelManager(kernel_name=name)
        return self.manager

    def end(self) -> None:
        """End the kernel; the next notebook gets a new one."""
        from jupyter_core.utils import run_sync

        manager, self.manager = self.manager, None
        if manager is not None and manager.has_kernel:
            run_sync(manager.shutdown_kernel)(now=True)


def engine_on(kernel: Kernel) -> type:
    """Papermill's way to execute a notebook, on a kernel that outlives it."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            forget = FORGET.format(cwd=os.getcwd())
            self.wait_for_reply(self.kc.execute(forget, silent=True, store_history=False))
            super().papermill_execute_cells()

    class LastingKernelEngine(Engine):
        @classmethod
        def execute_managed_notebook(
            cls, nb_man: Any, kernel_name: str, *, start_timeout: int, execution_timeout: int,
            extra_arguments: list[str], **_: Any,
        ) -> None:  # fmt: skip
            client = Client(
                nb_man, km=kernel.lasting_manager(kernel_name), kernel_name=kernel_name,
                timeout=execution_timeout, startup_timeout=start_timeout, extra_arguments=extra_arguments,
            )  # fmt: skip
            try:
                client.execute()
            finally:
                if client.kc is not None:
                    client.kc.stop_channels()

    return LastingKernelEngine


def execute_notebook(order: NotebookOrder, kernel: Kernel) -> str | None:
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
            engine_name=ENGINE,
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
    if complaint is not None:
        kernel.end()
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
    spare_grammars()
    import papermill  # noqa: F401  (paid for once, here)

    kernel = Kernel()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                for line in stream:
                    order = json.loads(line)
                    wanted = order.pop("do") == "execute"
                    answer = {"complaint": execute_notebook(NotebookOrder(**order), kernel)} if wanted else {}
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
