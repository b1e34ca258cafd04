"""Executes notebooks through papermill in a process of its own, one order at a time.

    python -m colo_lib.record.notebook_process SOCKET

An order is `{"do": "execute", "notebook": …, "out": …, "params": {…}, "cell_timeout_s": …}`; the answer holds
papermill's complaint or null. Its word is not taken for success (a dead kernel and `sys.exit(0)` look like
one): the step's own record is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

LAST_WORDS = 4000


def execute(order: dict[str, Any]) -> str | None:
    """Run one notebook; None, or what went wrong in words. The executed copy appears whole or not at all."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException

    out = Path(order["out"])
    temporary = out.with_name(out.stem + ".tmp.ipynb")
    complaint = None
    try:
        papermill.execute_notebook(
            order["notebook"],
            # Papermill takes an output path for a format string.
            str(temporary).replace("{", "{{").replace("}", "}}"),
            parameters=order["params"],
            progress_bar=False,
            execution_timeout=int(order["cell_timeout_s"]),
            cwd=order.get("cwd"),
            extra_arguments=["--log-level=50"],  # what it logs is about its own sockets and its own end
        )
    except CellTimeoutError:
        complaint = f"a cell did not end within cell_timeout_s = {order['cell_timeout_s']:g} s"
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
                    told = {"complaint": execute(order)} if order["do"] == "execute" else {}
                    stream.write(json.dumps(told) + "\n")
                    stream.flush()


if __name__ == "__main__":
    main()
