"""Execute a notebook that reads a run or a sweep, and give the parts of a page that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from colo_lib import paths
from colo_lib.errors import InputError, StepFailed
from colo_lib.parse.run_folder import Run
from colo_lib.report import parts
from colo_lib.report.page_file import write

TOLD_LINES = 12


def execute(name: str, run: Run, target: Path) -> list[dict[str, Any]]:
    """`execute_with` on a run: its folder, and as long as its own parameters allow."""
    timeout_s = int(max(1, run.params.cell_timeout_s))
    return execute_with(name, run.run_id, {"run": str(run.folder)}, timeout_s, target)


def execute_with(name: str, run_id: str, told: dict[str, str], timeout_s: int, target: Path) -> list[dict[str, Any]]:
    """Execute one notebook with the parameters `told` into `target` and give its parts; `run_id`: the run or sweep.

    Papermill's own word is not taken: a dead kernel or `sys.exit(0)` look like success in the file it leaves. The
    notebook's last cell must have said that it is done, for this run. Raises StepFailed with its last lines otherwise.
    """
    source = paths.NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        raise InputError(f"no notebook {source.name}: the report needs the checkout's notebooks/ beside the package")
    target.unlink(missing_ok=True)
    fresh = target.with_name(f".new-{target.name}")
    failure = _papermill(source, fresh, told, timeout_s)
    notebook = json.loads(fresh.read_text(encoding="utf-8")) if fresh.is_file() else {}
    fresh.unlink(missing_ok=True)
    write(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    found = parts.lift(notebook)
    last = found[-1] if found else {}
    if failure or (last.get("kind"), last.get("notebook"), last.get("run_id")) != ("done", name, run_id):
        raise StepFailed(
            f"notebook {name} did not reach its end for {run_id}: {failure or 'no record of its last cell'}"
        )
    return found


def _papermill(source: Path, target: Path, told: dict[str, str], timeout_s: int) -> str:
    import papermill

    try:
        papermill.execute_notebook(
            str(source),
            # Papermill takes an output path for a format string.
            str(target.resolve()).replace("{", "{{").replace("}", "}}"),
            parameters=told,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=120,
            execution_timeout=timeout_s,
            cwd=str(paths.REPOSITORY),
            extra_arguments=["--log-level=50"],  # what it logs is about its own sockets and its own end
        )
    except Exception as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        return "\n".join(plain[-TOLD_LINES:]) or type(error).__name__
    return ""
