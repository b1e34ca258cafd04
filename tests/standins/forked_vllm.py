"""vLLM's own server whose engine core and ranks are forked from it: what it imports, it imports once instead of thrice.

    python forked_vllm.py vllm.entrypoints.openai.api_server WORDS OF THE SERVER …

For tests of what the launcher does with engines, not of how they start: the processes, their names, what they share and
how they die are as ever. `make(folder, python)` gives an interpreter for COLO_ENGINE_PYTHON that starts the server so.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

SERVER = "vllm.entrypoints.openai.api_server"
INTERPRETER = """#!{python} -IS
import os, sys
words = sys.argv[1:]
if words[:2] == ["-m", {server!r}]:
    words = [{here!r}, *words[1:]]
os.execv({engine!r}, [{engine!r}, *words])
"""


def make(folder: Path, engine_python: Path) -> Path:
    """Write the interpreter into `folder`; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "python"
    words = {"python": sys.executable, "server": SERVER, "here": str(Path(__file__).resolve())}
    file.write_text(INTERPRETER.format(engine=str(engine_python), **words))
    file.chmod(0o755)
    return file


def connected(one: socket.socket) -> bool:
    """Whether somebody is at the other end."""
    with suppress(OSError):
        return bool(one.getpeername())
    return False


def leave_ports() -> None:
    """In a fork: hold no port of the server's, as an interpreter that is started anew would not."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as held:
                # It has its port before it listens there.
                if held.family in (socket.AF_INET, socket.AF_INET6) and held.getsockname()[1] and not connected(held):
                    os.dup2(os.open(os.devnull, os.O_RDWR), number)


if __name__ == "__main__":
    from vllm.utils import system_utils

    # Before anybody takes it from there. vLLM forks by itself elsewhere; on cores it asks for new interpreters.
    system_utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    os.register_at_fork(after_in_child=leave_ports)
    import vllm.v1.worker.cpu_worker  # noqa: F401  # what the ranks would import, each for itself

    del sys.argv[0]
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
