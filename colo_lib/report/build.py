"""Build a run's page: execute the notebooks that read it, lift what they show.

Execute a notebook that reads a run or a sweep, and give the parts of a page that it shows.

Execute the notebooks that read a run, and write the page made of what they show.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from colo_lib import paths
from colo_lib.data.capture import captured_steps
from colo_lib.data.run import Run, open_run
from colo_lib.errors import InputError, StepFailed
from colo_lib.report import index, notebook_output, page
from colo_lib.report.page import write_page

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
    write_page(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    found = notebook_output.lift(notebook)
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


# In this order their parts stand in a section that several of them show something for.
NOTEBOOKS = ("51-verdict", "53-published", "52-gen-loss", "54-capacity-plan", "46-telemetry", "47-memory")
TRACE_NOTEBOOKS = ("41-kernel-overlap", "42-sm-occupancy", "43-idle-gaps", "44-kernel-durations", "45-categories")
MAX_PAGE_BYTES = 5_000_000


def make_report(run_folder: Path, reports_dir: Path, output: Path | None = None, figures: Path | None = None) -> Path:
    """As `colo_lib.report.make_report`; `output` names another file for the page, `figures` a folder for its figures.

    Without `output` the page lies in `reports_dir`, whose index.html tells of it.
    A figure's files are named <question>--<gpu>--<pair>, as SVG and as PNG.
    """
    run = open_run(run_folder)
    if output is None and f"{run.run_id}.html" in index.RESERVED:
        raise InputError(f"run {run.run_id}: its page would replace another in {reports_dir}; name it with -o FILE")
    if figures is not None:
        keep_figures(run, figures)
    executed = reports_dir / run.run_id
    executed.mkdir(parents=True, exist_ok=True)
    lifted = {name: execute(name, run, executed / f"{name}.ipynb") for name in notebooks_of(run)}
    html = page.render(run, [part for found in lifted.values() for part in found])
    if len(html.encode("utf-8")) > MAX_PAGE_BYTES:
        raise StepFailed(f"the page of {run.run_id} is over {MAX_PAGE_BYTES} bytes; it is meant to be passed around")
    target = output or reports_dir / f"{run.run_id}.html"
    write_page(target, html)
    if output is None:
        index.write_index(reports_dir)
    return target


def keep_figures(run: Run, figures: Path) -> None:
    """Have every notebook that is executed from now on keep its figures in a folder too."""
    figures.mkdir(parents=True, exist_ok=True)
    os.environ |= {notebook_output.FIGURES: str(figures.resolve()), notebook_output.FIGURES_END: figures_end(run)}


def figures_end(run: Run) -> str:
    """`--<gpu>--<pair>--embed-<batch>x<tokens>` of figure files (and `-eager`): words that any file system takes."""
    models = [str(run.manifest.model_of(name).name) for name in ("gen", "embed")]
    words = [run.manifest.machine.device_name, "+".join(models)]
    eager = "-eager" if run.params.gen_enforce_eager else ""
    words.append(f"embed-{run.params.embed_batch_size}x{run.params.embed_sequence_tokens}{eager}")
    plain = [re.sub(r"[^a-z0-9.+-]+", "-", str(word).lower().replace("nvidia ", "")).strip("-") for word in words]
    return "".join(f"--{word}" for word in plain)


def notebooks_of(run: Run) -> tuple[str, ...]:
    """The notebooks of a page; those that read captures only where the run has one of GPU work."""
    return NOTEBOOKS + (TRACE_NOTEBOOKS if captured_steps(run.folder) else ())
