"""The owner's side of the notebook host."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed
from colo_lib.launch.child import Child
from colo_lib.launch.load import package_environment, wait_for
from colo_lib.launch.rpc import Handle, call
from colo_lib.params import Params
from colo_lib.paths import NOTEBOOKS

HOST_TIMEOUT_S = 60.0


class NotebookHost:
    """Executes notebooks of this workbook; `execute` returns papermill's complaint, which alone decides nothing."""

    def __init__(self, handle: Handle, child: Child) -> None:
        self.handle, self.child = handle, child

    def execute(self, notebook: str, out: Path, params: Params, timeout_s: float) -> str | None:
        """Run `notebook` (its name, without suffix) into `out`; raises StepFailed when the host itself is lost."""
        out.parent.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any]
        try:
            told = call(
                self.handle,
                "execute",
                timeout_s=timeout_s,
                notebook=str(NOTEBOOKS / f"{notebook}.ipynb"),
                out=str(out.absolute()),
                params=params.model_dump(),
                cell_timeout_s=params.cell_timeout_s,
                cwd=os.getcwd(),
            )
        except OSError as error:
            raise StepFailed(f"notebook {notebook}: its host is lost ({error}):\n{self.child.tail()}") from None
        complaint: str | None = told["complaint"]
        return complaint


@contextmanager
def notebook_host(runtime: Path, log: Path, additions: Mapping[str, str]) -> Iterator[NotebookHost]:
    """A host for as long as the block lasts; `additions` go into the kernels' environment."""
    socket_path = runtime / "notebooks.sock"
    # Kernels are the user's own code: they keep the whole environment.
    env = dict(os.environ) | package_environment(dict(additions))
    command = [sys.executable, "-m", "colo_lib.record.notebook_process", str(socket_path)]
    child = Child("notebooks", command, log, env=env, grace_s=5.0)
    try:
        wait_for(socket_path.exists, child, HOST_TIMEOUT_S, "the notebook host")
        yield NotebookHost(Handle(str(socket_path), child.pid, str(log)), child)
    finally:
        child.stop()
