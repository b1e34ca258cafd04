"""The page of `colo report RUN RUN …`: what `compare` found, as one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from colo_lib import __version__
from colo_lib.errors import InputError
from colo_lib.parse.run_folder import open_run
from colo_lib.report import compare, page, provenance, shape
from colo_lib.report.blocks import definitions, details, figure, frame, heading, items, paragraph, section, text
from colo_lib.report.compare import Compared
from colo_lib.report.index import write_index
from colo_lib.report.page_file import write

NAME = "side-by-side.html"
LABELS = {
    "simulated": "simulated. No engine and no device took part: its numbers were planted.",
    "stand-in": "cores stand in for GPUs. Its numbers were measured on CPU cores and say nothing about any GPU.",
}
TITLES = {
    "kept": "What each workload keeps",
    "clauses": "The verdict, clause by clause",
    "differs": "What differs",
    "steps": "Steps, run by run",
    "runs": "The runs",
}


def make_side_by_side(folders: Sequence[Path], reports_dir: Path, output: Path | None = None) -> Path:
    """Write the page of two or more finished runs and give its path; `output` names another file for it.

    Raises InputError for a run that cannot be read, or that is given twice.
    """
    if len(folders) < 2:
        raise InputError("one run is no comparison: give two or more")
    found = compare.compare([open_run(folder) for folder in folders])
    target = output or reports_dir / NAME
    write(target, render(found))
    if output is None:
        write_index(reports_dir)
    return target


def render(found: Sequence[Compared]) -> str:
    """The page as HTML."""
    names = ", ".join(item.run.run_id for item in found)
    bodies = {
        "kept": frame(compare.kept_rows(found), "Kept fraction or work per device [95 % interval]."),
        "clauses": frame(compare.clause_rows(found), "Each run is judged by the bounds of its own parameters."),
        "differs": _differs(found),
        "steps": "".join(_steps(item) for item in found),
        "runs": "".join(_run(item) for item in found),
    }
    sections = "\n".join(section(name, TITLES[name], body) for name, body in bodies.items())
    about = {
        "run_id": names,
        "device": "; ".join(item.label for item in found),
        "status": "side by side",
        "sentence": "; ".join(f"{item.label}: {item.verdict.status}" for item in found),
        "created_utc": max(str(item.run.manifest.get("created_utc", "")) for item in found),
    }
    footer = f"Made by colo {__version__} from runs {names}. Every interval is 95 %."
    skip = ("kept", "Skip to the kept fractions")
    return page.document(f"Co-location side by side: {names}", about, _first_screen(found), sections, footer, skip)


def _first_screen(found: Sequence[Compared]) -> str:
    verdicts = pd.DataFrame(
        [(item.label, item.verdict.status, _work(item), provenance.in_one_line(item.run)) for item in found],
        columns=["Run", "Hypothesis", "Step 2: devices' worth per device", "On what"],
    )
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title in TITLES.items())
    labels = [f"{item.label}: {words}" for item in found if (words := LABELS.get(_kind(item)))]
    return "\n".join(
        [
            heading(1, f"{len(found)} runs side by side: {page.QUESTION[0].lower()}{page.QUESTION[1:]}"),
            f'<div class="banner" role="note">{items(labels)}</div>' if labels else "",
            frame(verdicts, "The verdict of each run on the hypothesis; dedicated devices do 1 each."),
            figure(compare.picture(found)),
            paragraph("Runs that differ in more than the device compare more than devices: see what differs.", "note"),
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
        ]
    )


def _kind(item: Compared) -> str:
    return "simulated" if item.run.simulated else "stand-in" if item.run.stand_in else "measured"


def _work(item: Compared) -> str:
    rows = compare.kept_rows([item])
    found = rows[rows["Step and quantity"].str.match(r"step2 .*: aggregate per device")]
    return "not measured" if found.empty else str(found.iloc[0][item.label])


def _differs(found: Sequence[Compared]) -> str:
    told = compare.conditions(found)
    unlike, alike = (told[told["alike"] == value].drop(columns="alike") for value in (False, True))
    first = (
        frame(unlike, f"{len(unlike)} conditions differ between these runs.")
        if len(unlike)
        else paragraph("Nothing that was recorded differs.")
    )
    return first + details(
        f"{len(alike)} conditions that are alike", frame(alike, "Recorded, and the same in all."), False
    )


def _steps(item: Compared) -> str:
    caption = f"{item.label}: means over blocks [95 % interval]; latencies pooled over trials."
    return heading(3, item.label) + page.cautions(item.warnings) + frame(shape.steps(item.table), caption)


def _run(item: Compared) -> str:
    return (
        heading(3, item.label)
        + paragraph(item.sentence)
        + definitions(provenance.what_was_run(item.run))
        + paragraph(f"Its own page: colo report {item.run.run_id}", "note")
    )
