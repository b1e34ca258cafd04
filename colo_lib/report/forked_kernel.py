"""A Jupyter kernel without its start: a notebook's cells run in a process that is forked when all is imported already.

The cells run in ipykernel's own shell, whose messages go through a pipe; on its other side nbclient makes outputs of
them and papermill writes the notebook, as they do with a kernel. A cell that raises, takes too long or ends its process
is told in their words. What a kernel has and this has not: widgets, input, and the interruption of a cell.

For POSIX alone, and only for a process without threads: a lock that another thread holds is held for ever in its fork.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import tempfile
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

from ipykernel.ipkernel import IPythonKernel
from ipykernel.parentpoller import ParentPollerUnix
from ipykernel.zmqshell import ZMQInteractiveShell
from jupyter_client.session import Session
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import Any as AnyTrait
from traitlets.config import Config

ENGINE = "forked"  # of papermill
END_S = 5.0


class ForkedEngine(NBClientEngine):
    """Papermill's engine with the cells in a fork of this process."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, execution_timeout: int | None = None, save_path: str = "", **_: Any
    ) -> Any:
        """As papermill's own; `execution_timeout`: seconds that a cell may take; `save_path`: where papermill finds the
        notebook written that a dead process left, for it writes none where it does not write after each cell.
        """
        try:
            return ForkedClient(nb_man, timeout=execution_timeout).execute()
        except Exception:
            nb_man.output_path = save_path
            raise


papermill_engines.register(ENGINE, ForkedEngine)


class ForkedClient(PapermillNotebookClient):
    """Has the cells executed in a fork, and makes outputs of its messages."""

    def execute(self, **_: Any) -> Any:
        """The notebook with its outputs."""
        self.reset_execution_trackers()
        fork = multiprocessing.get_context("fork")
        self._ours, theirs = fork.Pipe()
        kernel = fork.Process(target=_serve, args=(theirs, self._ours, os.getpid()), daemon=True)
        kernel.start()
        theirs.close()
        ParentPollerUnix(parent_pid=os.getppid()).start()  # whoever ends our owner ends us, and so the cells
        try:
            self.papermill_execute_cells()
        finally:
            self._ours.close()
            kernel.kill()
            kernel.join(END_S)
        self.nb.metadata["language_info"] = IPythonKernel.language_info
        return self.nb

    def execute_cell(self, cell: Any, cell_index: int, *_: Any, **__: Any) -> Any:
        """One cell. Raises CellExecutionError, CellTimeoutError or DeadKernelError as nbclient does."""
        if cell.cell_type != "code" or not cell.source.strip():
            return cell
        cell["metadata"]["execution"] = {}
        self.clear_before_next_output = False
        reply = self._replied(cell, cell_index)
        cell["execution_count"] = reply["execution_count"]
        if reply["status"] == "error":
            raise CellExecutionError.from_cell_and_msg(cell, reply)
        return cell

    def _replied(self, cell: Any, cell_index: int) -> dict[str, Any]:
        timeout_s = self._get_timeout(cell)
        try:
            self._ours.send(cell.source)
            while self._ours.poll(timeout_s):
                message = self._ours.recv()
                if message["msg_type"] == "execute_reply":
                    return dict(message["content"])
                self.process_message(message, cell, cell_index)
        except (EOFError, OSError):
            raise DeadKernelError("Kernel died") from None
        words = "Cell execution timed out"
        raise CellTimeoutError.error_from_timeout_and_cell(words, timeout_s, cell)


class PipeSession(Session):
    """The session of a shell whose messages go through a pipe and not through sockets."""

    connection = AnyTrait()

    def send(self, stream: Any, msg_or_type: Any, content: Any = None, parent: Any = None, *_: Any, **more: Any) -> Any:
        """Send a message, or one of a type and content; as `Session.send`."""
        message = msg_or_type
        if not isinstance(message, dict):
            message = self.msg(msg_or_type, content=content, parent=parent, metadata=more.get("metadata"))
        self.connection.send(message)
        return message


class MessageStream(io.TextIOBase):
    """sys.stdout or sys.stderr of a cell; what was written goes off before anything else does."""

    def __init__(self, name: str, session: Session) -> None:
        self.name, self._session, self._held = name, session, ""
        self.other: MessageStream | None = None

    encoding = "utf-8"

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Hold `text` until `flush`; what the other stream holds was written earlier."""
        if self.other is not None:
            self.other.flush()
        self._held += text
        return len(text)

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            text, self._held = self._held, ""
            self._session.send(None, "stream", {"name": self.name, "text": text})


@cache
def shell() -> ZMQInteractiveShell:
    """The shell in which cells run, without history on disk: made once, before the forks."""
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    made = ZMQInteractiveShell.instance(config=config, user_ns={})
    session = PipeSession()
    for publisher in (made.displayhook, made.display_pub):
        publisher.session = session
        publisher.pub_socket = session
    made.displayhook.topic = b"execute_result"
    return made


def _serve(connection: Connection, owners: Connection, owner_pid: int) -> None:
    """Run the cells that come until the owner hangs up, or is gone."""
    owners.close()
    ParentPollerUnix(parent_pid=owner_pid).start()
    cells = shell()
    session = cells.displayhook.session
    session.connection = connection
    streams = [MessageStream(name, session) for name in ("stdout", "stderr")]
    streams[0].other, streams[1].other = streams[1], streams[0]
    sys.stdout, sys.stderr = streams
    below = [_file_below(number) for number in (1, 2)]
    while True:
        try:
            source = connection.recv()
        except EOFError:
            return
        count = cells.execution_count
        session.send(None, "execute_input", {"code": source, "execution_count": count})
        result = cells.run_cell(source, store_history=True)
        for stream, file in zip(streams, below, strict=True):
            stream.write(file.read().decode("utf-8", "replace"))
            stream.flush()
        reply: dict[str, Any] = {"status": "ok", "execution_count": count}
        if not result.success:
            error = result.error_before_exec or result.error_in_exec
            reply |= {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
            reply["traceback"] = cells._last_traceback or []
        session.send(None, "execute_reply", reply)


def _file_below(number: int) -> BinaryIO:
    """A file that receives what goes to file descriptor `number`: what libraries and programs print."""
    with tempfile.NamedTemporaryFile(prefix="colo-") as named:
        written = os.open(named.name, os.O_WRONLY | os.O_APPEND)
        os.dup2(written, number)
        os.close(written)
        return open(named.name, "rb")
