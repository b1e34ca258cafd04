"""A page appears whole or not at all.

The page: one self-contained HTML file, built from a run's manifest and from what its notebooks show.

No outside address; style and script are the package's own files, allowed by their hashes alone, images are embedded.
Every string that comes from a run is escaped by the templates, and the script shows it as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colo_lib import __version__
from colo_lib.data.run import Run
from colo_lib.report import provenance, sections, templating
from colo_lib.steps import DEVICES, TABLE


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


def render(run: Run, found: list[dict[str, Any]]) -> str:
    """The page as HTML; `found` are the parts lifted from the executed notebooks.

    Raises InputError for a part of a section that the page of a run has not.
    """
    parts = sections.by_section(found, (sections.FIRST, *sections.RUN_PAGE))
    verdict = next((part for part in parts[sections.FIRST] if part["kind"] == "verdict"), {})
    return document(
        "run.html",
        title=f"Co-location: {run.run_id}",
        about=page_summary(run, verdict),
        footer=f"Made by colo {__version__} from run {run.run_id}. Every interval is 95 %.",
        skip=("steps", "Skip to the table of steps"),
        zooming=any(part["kind"] == "timeline" for shown in parts.values() for part in shown),
        banner=SIMULATED if run.simulated else STAND_IN if run.stand_in else "",
        verdict=NO_VERDICT | verdict | {"warnings": merged(verdict.get("warnings", []))},
        one_line=provenance.in_one_line(run),
        first=[part for part in parts[sections.FIRST] if part["kind"] != "verdict"],
        what_was_run=provenance.what_was_run(run),
        titles=sections.RUN_PAGE,
        sections=parts,
        empty=EMPTY,
        missing=MISSING,
        clocks=_clocks(run),
        provenance=provenance.facts_of(run),
    )


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
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + templating.page_style(zooming)
    script = templating.page_script(zooming)
    own = {"style": Markup(style), "style_hash": _digest(style), "script": Markup(script)}
    own |= {"script_hash": _digest(script), "about_name": ABOUT, "about": json.dumps(about), "question": QUESTION}
    return templating.render(template, title=title, footer=footer, skip=skip, **own, **values)


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


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
    """'both under MPS: x', 'LLM alone: x' -> 'both under MPS, LLM alone: x', in the order in which each was first told.

    Names of steps may hold commas themselves: several are set in quotes.
    """
    known = {row.name_on(device) for row in TABLE for device in DEVICES}
    steps: dict[str, list[str]] = {}
    for warning in warnings:
        step, colon, words = warning.partition(": ")
        own = (step, words) if colon and step in known else ("", warning)
        steps.setdefault(own[1], []).extend([own[0]] if own[0] else [])
    return [f"{_together(names)}: {words}" if names else words for words, names in steps.items()]


def _together(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(f"'{name}'" for name in names)


def _clocks(run: Run) -> str:
    clocks = sorted({str(name) for name in run.trials["latency_clock"].dropna()})
    worst = run.trials["clock_disagreement"].max()
    told = f"Latencies of gen are by the clock of: {', '.join(clocks) or 'not recorded'}."
    if worst == worst:
        told += f" The client's token rate and the server's own counter differed by {max(worst, 0.001):.1%} at most."
    return told
