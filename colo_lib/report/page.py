"""A page appears whole or not at all.

The page: one self-contained HTML file, built from a run's manifest and from what its notebooks show.

No outside address; style and script are the package's own files, allowed by their hashes alone, images are embedded.
Every string that comes from a run is escaped in `blocks`, and the script shows it as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from colo_lib import __version__
from colo_lib.data.run import Run
from colo_lib.report import blocks, provenance, sections, timeline
from colo_lib.report.blocks import definitions, details, figure, heading, items, paragraph, section, table, text
from colo_lib.steps import STEP_TITLES


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
        f"Co-location: {run.run_id}",
        page_summary(run, verdict),
        _first_screen(run, verdict, [part for part in parts[sections.FIRST] if part["kind"] != "verdict"]),
        _sections(run, parts),
        f"Made by colo {__version__} from run {run.run_id}. Every interval is 95 %.",
        ("steps", "Skip to the table of steps"),
        zooming=any(part["kind"] == "timeline" for shown in parts.values() for part in shown),
    )


def document(
    title: str, about: dict[str, Any], header: str, main: str, footer: str, skip: tuple[str, str], zooming: bool = False
) -> str:
    """A whole page. `header` and `main` are HTML made by `blocks`; `about` is what an index of pages tells of it.

    `zooming`: a timeline to zoom is among it.
    """
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + blocks.page_style(zooming)
    script = blocks.page_script(zooming)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="{ABOUT}" content="{text(json.dumps(about))}">\n'
        f"<title>{text(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#{text(skip[0])}">{text(skip[1])}</a>\n'
        f"<header>{header}</header>\n<main>\n{main}</main>\n<footer>{paragraph(footer)}</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def page_summary(run: Run, verdict: dict[str, Any]) -> dict[str, Any]:
    """What an index tells of a run's page."""
    models = run.manifest["models"]
    weights = {provenance.weights_of(models.get(name) or {}) for name in ("gen", "embed")}
    return {
        "run_id": run.run_id,
        "device": f"{run.manifest['machine'].get('device_count')} × {run.manifest['machine'].get('device_name')}",
        "models": " + ".join(str(models.get(name, {}).get("name")) for name in ("gen", "embed")),
        "weights": ", ".join(sorted(weights)),
        "status": str(verdict.get("status", "inconclusive")),
        "sentence": str(verdict.get("sentence", "No verdict was recorded.")),
        "label": "simulated" if run.simulated else "cores stand in for GPUs" if run.stand_in else "",
        "created_utc": str(run.manifest.get("created_utc", "")),
    }


def verdict_line(status: str) -> str:
    """The verdict in its colour."""
    kind = {"supported": "good", "not supported": "bad"}.get(status, "open")
    return f'<p class="verdict {kind}"><strong>Hypothesis: {text(status)}</strong></p>'


def cautions(warnings: list[str]) -> str:
    """What a reader must not overlook as one banner: sentences that differ in their step alone are told once."""
    if not warnings:
        return ""
    return f'<div class="banner" role="note"><p>Read with care:</p>{items(merged(warnings))}</div>'


def merged(warnings: list[str]) -> list[str]:
    """'step2: x', 'step3: x' -> 'step2, step3: x', in the order in which each was first told."""
    steps: dict[str, list[str]] = {}
    for warning in warnings:
        step, colon, words = warning.partition(": ")
        own = (step, words) if colon and step in STEP_TITLES else ("", warning)
        steps.setdefault(own[1], []).extend([own[0]] if own[0] else [])
    return [f"{', '.join(names)}: {words}" if names else words for words, names in steps.items()]


def _first_screen(run: Run, verdict: dict[str, Any], parts: list[dict[str, Any]]) -> str:
    banner = SIMULATED if run.simulated else STAND_IN if run.stand_in else ""
    shown = [
        heading(1, QUESTION),
        f'<p class="banner" role="note">{text(banner)}</p>' if banner else "",
        verdict_line(str(verdict.get("status", "inconclusive"))),
        paragraph(verdict.get("sentence", "No verdict was recorded."), "lead"),
        paragraph(provenance.in_one_line(run), "note"),
        body_of(parts),
        cautions(verdict.get("warnings", [])),
    ]
    if verdict.get("missing"):
        shown.append(details("What is missing for a full verdict", items(verdict["missing"]), opened=False))
    shown += [heading(2, "What was run, on what"), definitions(provenance.what_was_run(run))]
    return "\n".join([*shown, contents(sections.RUN_PAGE)])


def contents(titles: Mapping[str, str]) -> str:
    """Links to the sections, `titles` by name."""
    links = "".join(f'<li><a href="#{text(name)}">{text(title)}</a></li>' for name, title in titles.items())
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _sections(run: Run, parts: dict[str, list[dict[str, Any]]]) -> str:
    # What a section has of the run itself, beside what notebooks show.
    own = {"latency": _clocks(run), "provenance": provenance.provenance_blocks(run)}
    bodies = []
    for name, title in sections.RUN_PAGE.items():
        shown = body_of(parts[name])
        if not shown and name != "provenance":
            shown = paragraph(EMPTY.get(name, MISSING), "note")
        bodies.append(section(name, title, shown + own.get(name, "")))
    return "\n".join(bodies)


def body_of(parts: Iterable[dict[str, Any]]) -> str:
    """Parts one after another; neighbours with the same `fold` share one thing to unfold."""
    body = ""
    for fold, neighbours in groupby(parts, key=lambda part: str(part.get("fold", ""))):
        shown = "".join(_named(part) for part in neighbours)
        body += details(fold, shown, opened=False) if fold else shown
    return body


def _named(part: dict[str, Any]) -> str:
    """A part with the names that notebooks gave it, by which it can be found on the page."""
    return f'<div data-part="{text(" ".join(part["names"]))}">{_part(part)}</div>'


def _clocks(run: Run) -> str:
    clocks = sorted({str(name) for name in run.trials["latency_clock"].dropna()})
    worst = run.trials["clock_disagreement"].max()
    told = f"Latencies of gen are by the clock of: {', '.join(clocks) or 'not recorded'}."
    if worst == worst:
        told += f" The client's token rate and the server's own counter differed by {max(worst, 0.001):.1%} at most."
    return paragraph(told)


def _part(part: dict[str, Any]) -> str:
    if part["kind"] == "figure":
        return figure(part)
    if part["kind"] == "table":
        return table(part) if part["rows"] else paragraph(part.get("empty", "None."), "note")
    if part["kind"] == "timeline":
        return timeline.body(part, table({**part, "caption": "By stretch of time."}))
    return paragraph(part.get("text", ""))
