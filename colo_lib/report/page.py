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
from pathlib import Path
from typing import Any

from colo_lib import __version__
from colo_lib.data.run import Run
from colo_lib.report import blocks, provenance, timeline
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
CONTENTS = {
    "steps": "Steps side by side",
    "latency": "Latencies and stalls",
    "clauses": "The verdict, clause by clause",
    "gen-loss": "Where gen's loss went",
    "traces": "Inside the GPU: kernel overlap, occupancy, idle gaps, durations, categories",
    "telemetry": "Telemetry over time",
    "memory": "Memory",
    "sweeps": "Sweeps",
    "published": "Beside the published runs",
    "capacity": "Capacity: dedicate, co-locate or shard wider",
    "not-counted": "Trials that do not count",
    "provenance": "Provenance",
}


def render(run: Run, found: list[dict[str, Any]]) -> str:
    """The page as HTML; `found` are the parts lifted from the executed notebooks."""
    by_name = {part["name"]: part for part in found}
    return document(
        f"Co-location: {run.run_id}",
        page_summary(run, by_name.get("verdict", {})),
        _first_screen(run, by_name),
        _sections(run, by_name),
        f"Made by colo {__version__} from run {run.run_id}. Every interval is 95 %.",
        ("steps", "Skip to the table of steps"),
        zooming="kernel-zoom" in by_name,
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


def _first_screen(run: Run, found: dict[str, dict[str, Any]]) -> str:
    verdict = found.get("verdict", {})
    banner = SIMULATED if run.simulated else STAND_IN if run.stand_in else ""
    parts = [
        heading(1, QUESTION),
        f'<p class="banner" role="note">{text(banner)}</p>' if banner else "",
        verdict_line(str(verdict.get("status", "inconclusive"))),
        paragraph(verdict.get("sentence", "No verdict was recorded."), "lead"),
        paragraph(provenance.in_one_line(run), "note"),
        part(found, "kept"),
        cautions(verdict.get("warnings", [])),
    ]
    if verdict.get("missing"):
        parts.append(details("What is missing for a full verdict", items(verdict["missing"]), opened=False))
    parts += [heading(2, "What was run, on what"), definitions(provenance.what_was_run(run))]
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in CONTENTS.items())
    return "\n".join([*parts, f'<nav aria-label="Contents"><ul>{links}</ul></nav>'])


def _sections(run: Run, found: dict[str, dict[str, Any]]) -> str:
    bodies = {
        "steps": part(found, "steps")
        + part(found, "pays")
        + details("Kept fractions", part(found, "kept-table"), opened=False),
        "latency": part(found, "latency") + part(found, "stalls") + part(found, "bounds") + _clocks(run),
        "clauses": part(found, "clauses") + part(found, "null") + part(found, "time"),
        "traces": traces(found) if "kernel-timeline" in found else paragraph(NO_CAPTURE, "note"),
        "sweeps": paragraph(NO_SWEEP, "note"),
        **_across(found),
        "telemetry": part(found, "telemetry")
        + part(found, "telemetry-absent")
        + details("Means by step", part(found, "telemetry-table"), opened=False)
        + details("Why a value is missing", part(found, "telemetry-reasons"), opened=False)
        + "".join(part(found, name) for name in ("pacing", "pacing-table") if name in found),
        "memory": part(found, "memory") + details("Numbers", part(found, "memory-table"), opened=False),
        "not-counted": part(found, "not-counted", "None: every trial counts."),
        "provenance": provenance.provenance_blocks(run),
    }
    return "\n".join(section(name, title, bodies[name]) for name, title in CONTENTS.items())


def traces(found: dict[str, dict[str, Any]]) -> str:
    """What the notebooks on captures show: figures open, tables to unfold."""
    shown = {
        "kernel-timeline": ("kernel-overlap", "kernel-overlap-basis"),
        "sm-occupancy": ("sm-occupancy-table",),
        "idle-gaps": ("idle-gaps-table",),
        "kernel-durations": ("kernel-durations-table", "kernel-durations-one-sided"),
        "categories": ("categories-table", "top-kernels", "copies"),
    }
    body = part(found, "kernel-overlap-notes")
    for figure_name, tables in shown.items():
        body += part(found, figure_name)
        body += part(found, "kernel-zoom") if figure_name == "kernel-timeline" else ""
        body += details("Numbers", "".join(part(found, name) for name in tables), opened=False)
    return body


def _across(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The sections of the notebooks that look beyond the steps: gen's loss, the plan, the published runs."""
    return {
        "gen-loss": part(found, "gen-loss")
        + part(found, "gen-loss-mechanism")
        + part(found, "gen-loss-needs")
        + details("Numbers", part(found, "gen-loss-table"), opened=False)
        + details("By kernel category", part(found, "gen-loss-categories"), opened=False),
        "capacity": part(found, "capacity")
        + part(found, "capacity-answer")
        + part(found, "capacity-layouts")
        + details("What each unit gives", part(found, "capacity-units"), opened=False)
        + details("What the plan takes for granted", part(found, "capacity-assumptions"), opened=False),
        "published": part(found, "beside-kept")
        + part(found, "unlike-words")
        + details("Metric by metric", part(found, "beside"), opened=False)
        + details("What differs", part(found, "unlike"), opened=False),
    }


def _clocks(run: Run) -> str:
    clocks = sorted({str(name) for name in run.trials["latency_clock"].dropna()})
    worst = run.trials["clock_disagreement"].max()
    told = f"Latencies of gen are by the clock of: {', '.join(clocks) or 'not recorded'}."
    if worst == worst:
        told += f" The client's token rate and the server's own counter differed by {max(worst, 0.001):.1%} at most."
    return paragraph(told)


def part(found: dict[str, dict[str, Any]], name: str, empty: str = "None.") -> str:
    own = found.get(name)
    if own is None:
        return paragraph(f"This part is missing: its notebook showed no {name}. `colo report RUN` executes it.", "note")
    if own["kind"] == "figure":
        return figure(own)
    if own["kind"] == "table":
        return table(own) if own["rows"] else paragraph(empty, "note")
    if own["kind"] == "timeline":
        return timeline.body(own, table({**own, "caption": "By stretch of time."}))
    return paragraph(own.get("text", ""))
