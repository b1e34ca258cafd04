"""Execute the notebooks that read a run, and write the page made of what they show."""

from __future__ import annotations

import os
import re
from pathlib import Path

from colo_lib.errors import InputError, StepFailed
from colo_lib.parse.captures import captured_steps
from colo_lib.parse.run_folder import Run, open_run
from colo_lib.report import index, page, parts
from colo_lib.report.execute import execute
from colo_lib.report.page_file import write

NOTEBOOKS = ("51-verdict", "52-gen-loss", "54-capacity-plan", "53-published", "46-telemetry", "47-memory")
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
    write(target, html)
    if output is None:
        index.write_index(reports_dir)
    return target


def keep_figures(run: Run, figures: Path) -> None:
    """Have every notebook that is executed from now on keep its figures in a folder too."""
    figures.mkdir(parents=True, exist_ok=True)
    os.environ |= {parts.FIGURES: str(figures.resolve()), parts.FIGURES_END: figures_end(run)}


def figures_end(run: Run) -> str:
    """`--<gpu>--<pair>--embed-<batch>x<tokens>` of figure files: lower-case words that any file system takes."""
    models = run.manifest["models"]
    words = [run.manifest["machine"]["device_name"], "+".join(models[name]["name"] for name in ("gen", "embed"))]
    words.append(f"embed-{run.params.embed_batch_size}x{run.params.embed_sequence_tokens}")
    plain = [re.sub(r"[^a-z0-9.+-]+", "-", str(word).lower().replace("nvidia ", "")).strip("-") for word in words]
    return "".join(f"--{word}" for word in plain)


def notebooks_of(run: Run) -> tuple[str, ...]:
    """The notebooks of a page; those that read captures only where the run has one of GPU work."""
    return NOTEBOOKS + (TRACE_NOTEBOOKS if captured_steps(run.folder) else ())
