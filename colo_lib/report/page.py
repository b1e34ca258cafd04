"""The page of a run: execute the notebooks that read it, lift what they show, and write one self-contained HTML file.

No outside address; style and script are the package's own files, allowed by their hashes alone, images are embedded.
Every string that comes from a run is escaped by the templates, and the script shows it as text. A page appears whole or
not at all. `document` serves the page of a sweep and that of several runs too.

index.html lists every page of a folder with its verdict, written again beside each report. A page tells about itself in
one element of its head (`ABOUT`); the pages are all there is, so one that was deleted is gone from the index, and one
that a colleague sent is in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colo_lib import __version__
from colo_lib.data.capture import captured_steps
from colo_lib.data.run import Run, open_run
from colo_lib.errors import InputError, StepFailed
from colo_lib.report import notebook_output, provenance
from colo_lib.report.execute import Notebook, execute_alone, preloaded
from colo_lib.report.notebook_output import FIRST, RUN_PAGE, by_section, page_script, page_style, render_template
from colo_lib.steps import DEVICES, TABLE

# In this order their parts stand in a section that several of them show something for.
NOTEBOOKS = ("51-verdict", "53-published", "52-gen-loss", "54-capacity-plan", "46-telemetry", "47-memory")
TRACE_NOTEBOOKS = ("41-kernel-overlap", "42-sm-occupancy", "43-idle-gaps", "44-kernel-durations", "45-categories")
MAX_PAGE_BYTES = 5_000_000

ABOUT = "colo-report"  # name of the element that tells an index what a page says
QUESTION = "Can an embedding model and a generative LLM share a GPU, and get more work out of it than dedicated GPUs?"
SIMULATED = (
    "Simulated. No engine and no device took part: every number on this page was planted, to show what a report "
    "looks like."
)
STAND_IN = (
    "Cores stand in for GPUs. These numbers were measured on CPU cores with true engines; they show that the workbook "
    "works, and say nothing about any GPU."
)
NO_CAPTURE = (
    "No capture of GPU work in this run, so no kernel overlap, occupancy, idle gaps, durations or categories. "
    "capture_s above 0 in the params file records one of each step, on a GPU host with Nsight Systems; "
    "`colo doctor PARAMS` says whether this machine can."
)
NO_SWEEP = (
    "One run has one value of everything. `colo sweep PARAMS --over gen_concurrency=1,2,4` repeats it over a grid; "
    "`colo report SWEEP` makes a page of the thread percentage, concurrency, batch size, eager against graphs, prefill "
    "share, memory, and of the operating point among them."
)
NO_VERDICT = {"status": "inconclusive", "sentence": "No verdict was recorded.", "missing": []}
MISSING = "This part is missing: no notebook showed anything for it. `colo report RUN` executes them."

# What stands in a section for which no notebook showed anything, where there is more to say than MISSING.
EMPTY = {"traces": NO_CAPTURE, "sweeps": NO_SWEEP}

INDEX = "index.html"
RESERVED = (INDEX, "side-by-side.html")
HEAD_CHARACTERS = 65_536  # a page's head, style included
INDEX_COLUMNS = ("Report", "Hypothesis", "In words", "Device", "Models", "Recorded")


def make_report(run_folder: Path, reports_dir: Path, output: Path | None = None, figures: Path | None = None) -> Path:
    """As `colo_lib.report.make_report`; `output` names another file for the page, `figures` a folder for its figures.

    Without `output` the page lies in `reports_dir`, whose index.html tells of it.
    A figure's files are named <question>--<gpu>--<pair>, as SVG and as PNG.
    """
    with preloaded(run_folder) as execute_all:
        run = open_run(run_folder)
        if output is None and f"{run.run_id}.html" in RESERVED:
            raise InputError(f"run {run.run_id}: its page would replace another in {reports_dir}; name it with -o FILE")
        if figures is not None:
            keep_figures(run, figures)
        executed = reports_dir / run.run_id
        executed.mkdir(parents=True, exist_ok=True)
        parts = execute_all([to_execute(name, run, executed / f"{name}.ipynb") for name in notebooks_of(run)])
    html = run_html(run, parts)
    if len(html.encode("utf-8")) > MAX_PAGE_BYTES:
        raise StepFailed(f"the page of {run.run_id} is over {MAX_PAGE_BYTES} bytes; it is meant to be passed around")
    target = output or reports_dir / f"{run.run_id}.html"
    write_page(target, html)
    if output is None:
        write_index(reports_dir)
    return target


def keep_figures(run: Run, figures: Path, varied: str = "") -> None:
    """Have every notebook that is executed from now on keep its figures in a folder too.

    `varied` as in `figures_end`.
    """
    figures.mkdir(parents=True, exist_ok=True)
    end = figures_end(run, varied)
    os.environ |= {notebook_output.FIGURES: str(figures.resolve()), notebook_output.FIGURES_END: end}


def figures_end(run: Run, varied: str = "") -> str:
    """`--<gpu>--<pair>--embed-<batch>x<tokens>` of figure files (`-vllm-16`, `-eager-32-cores`): words for any
    file system.

    `varied`: a parameter that a sweep varies; two sweeps of one pair would else take each other's files.
    """
    models = [str(run.manifest.model_of(name).name) for name in ("gen", "embed")]
    words = [run.manifest.machine.device_name, "+".join(models)]
    # Without CUDA graphs the host launches every kernel: its cores are part of what was measured.
    cores = run.manifest.machine.cores
    eager = (f"-eager-{cores}-cores" if cores else "-eager") if run.params.gen_enforce_eager else ""
    engine = run.params.embed_engine
    served = "" if engine == "transformers" else f"-{engine}-{run.params.embed_concurrency}"
    words.append(f"embed-{run.params.embed_batch_size}x{run.params.embed_sequence_tokens}{served}{eager}")
    words += [f"over-{varied}"] if varied else []
    plain = [re.sub(r"[^a-z0-9.+-]+", "-", str(word).lower().replace("nvidia ", "")).strip("-") for word in words]
    return "".join(f"--{word}" for word in plain)


def notebooks_of(run: Run) -> tuple[str, ...]:
    """The notebooks of a page; those that read captures only where the run has one of GPU work."""
    return NOTEBOOKS + (TRACE_NOTEBOOKS if captured_steps(run.folder) else ())


def to_execute(name: str, run: Run, target: Path) -> Notebook:
    """A notebook on a run: its folder, and as long as its own parameters allow."""
    timeout_s = int(max(1, run.params.cell_timeout_s))
    return Notebook(name, run.run_id, {"run": str(run.folder)}, timeout_s, target)


def execute(name: str, run: Run, target: Path) -> list[dict[str, Any]]:
    """Execute one notebook on a run in a kernel of its own, and give its parts."""
    return execute_alone(to_execute(name, run, target))


def run_html(run: Run, parts: list[dict[str, Any]]) -> str:
    """The page as HTML, of the parts lifted from the executed notebooks.

    Raises InputError for a part of a section that the page of a run has not.
    """
    sections = by_section(parts, (FIRST, *RUN_PAGE))
    verdict = next((part for part in sections[FIRST] if part["kind"] == "verdict"), {})
    return document(
        "run.html",
        title=f"Co-location: {run.run_id}",
        about=page_summary(run, verdict),
        footer=f"Made by colo {__version__} from run {run.run_id}. Every interval is 95 %.",
        skip=("steps", "Skip to the table of steps"),
        zooming=any(part["kind"] == "timeline" for shown in sections.values() for part in shown),
        banner=SIMULATED if run.simulated else STAND_IN if run.stand_in else "",
        verdict=NO_VERDICT | verdict | {"warnings": merged(verdict.get("warnings", []))},
        one_line=provenance.in_one_line(run),
        first=[part for part in sections[FIRST] if part["kind"] != "verdict"],
        what_was_run=provenance.what_was_run(run),
        titles=RUN_PAGE,
        sections=sections,
        empty=EMPTY,
        missing=MISSING,
        clocks=_clocks(run),
        provenance=provenance.facts_of(run),
    )


def page_summary(run: Run, verdict: dict[str, Any]) -> dict[str, Any]:
    """What an index tells of a run's page."""
    machine, models = run.manifest.machine, [run.manifest.model_of(name) for name in ("gen", "embed")]
    return {
        "run_id": run.run_id,
        "device": f"{machine.device_count} × {machine.device_name}",
        "models": " + ".join(str(model.name) for model in models),
        "weights": ", ".join(sorted({provenance.weights_of(model) for model in models})),
        "status": str(verdict.get("status", "inconclusive")),
        "sentence": str(verdict.get("sentence", "No verdict was recorded.")),
        "label": "simulated" if run.simulated else "cores stand in for GPUs" if run.stand_in else "",
        "created_utc": run.manifest.created_utc or "",
    }


def merged(warnings: list[str]) -> list[str]:
    """'both under MPS: x', 'LLM alone: x' -> 'both under MPS, LLM alone: x', in the order in which each first came.

    Names of steps may hold commas themselves: several are set in quotes.
    """
    known = {row.name_on(device) for row in TABLE for device in DEVICES}
    steps: dict[str, list[str]] = {}
    for warning in warnings:
        step, colon, words = warning.partition(": ")
        if colon and step in known:
            steps.setdefault(words, []).append(step)
        else:
            steps.setdefault(warning, [])
    return [f"{provenance.in_quotes(names)}: {words}" if names else words for words, names in steps.items()]


def _clocks(run: Run) -> str:
    clocks = sorted({str(name) for name in run.trials["latency_clock"].dropna()})
    worst = run.trials["clock_disagreement"].max()
    words = f"Latencies of the LLM are by the clock of: {', '.join(clocks) or 'not recorded'}."
    if worst == worst:
        words += f" The client's token rate and the server's own counter differed by {max(worst, 0.001):.1%} at most."
    return words


def document(
    template: str,
    *,
    title: str,
    about: dict[str, Any],
    footer: str,
    skip: tuple[str, str],
    zooming: bool = False,
    **values: Any,
) -> str:
    """A whole page of a template that extends `page.html`; `about` is what an index of pages tells of it.

    `skip`: address and words of the link past the first screen. `zooming`: a timeline to zoom is among it.
    """
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + page_style(zooming)
    script = page_script(zooming)
    head = {"style": Markup(style), "style_hash": _digest(style), "script": Markup(script)}
    head |= {"script_hash": _digest(script), "about_name": ABOUT, "about": json.dumps(about), "question": QUESTION}
    return render_template(template, title=title, footer=footer, skip=skip, **head, **values)


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def write_page(target: Path, text: str) -> None:
    """Write beside the target and rename: a reader never sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_index(folder: Path) -> Path:
    """Write `folder`/index.html over the pages that lie in it; gives its path."""
    target = folder / INDEX
    write_page(target, index_html(folder))
    return target


def index_html(folder: Path) -> str:
    """The index as HTML, newest recording first."""
    pages = {file.name: read_about(file) for file in sorted(folder.glob("*.html")) if file.name != INDEX}
    dated = sorted((pair for pair in pages.items() if pair[1]), key=lambda pair: pair[1]["created_utc"], reverse=True)
    reports = [{"file": name, "title": facts["run_id"] or name, "cells": _cells(facts)} for name, facts in dated]
    return document(
        "index.html",
        title="Co-location: reports",
        about={"status": "index"},
        footer=f"Made by colo {__version__}.",
        skip=("reports", "Skip to the reports"),
        columns=INDEX_COLUMNS,
        reports=reports,
        silent=[name for name, facts in pages.items() if not facts],
    )


def read_about(file: Path) -> dict[str, str]:
    """What a page tells of itself, every value as text; empty when it is no page of ours."""
    reader = _Head()
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            reader.feed(stream.read(HEAD_CHARACTERS))
        facts = json.loads(reader.content)
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict) or facts.get("status") == "index":
        return {}
    names = ("run_id", "device", "models", "weights", "status", "sentence", "label", "created_utc")
    return {name: str(facts.get(name, "")) for name in names}


class _Head(HTMLParser):
    """Keeps the content of the one element that `document` writes."""

    def __init__(self) -> None:
        super().__init__()
        self.content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts: dict[str, Any] = dict(attrs)
        if tag == "meta" and facts.get("name") == ABOUT and not self.content:
            self.content = str(facts.get("content") or "")


def _cells(facts: dict[str, str]) -> list[str]:
    """The cells of a report's row after the one that names it, as `INDEX_COLUMNS`."""
    label = f" ({facts['label']})" if facts["label"] else ""
    weights = f" ({facts['weights']})" if facts["weights"] else ""
    status, models = f"{facts['status']}{label}", f"{facts['models']}{weights}"
    return [status, facts["sentence"], facts["device"], models, facts["created_utc"]]
