"""What there is to read: a table of runs for notebooks, and index.html over the pages of a folder.

Which runs are there to read: a table for notebooks, with the line to paste into the parameters cell.

reports/index.html: every page of a folder with its verdict, written again beside each report.

A page tells about itself in one element of its head (`page.ABOUT`); the pages are all there is, so one that was deleted
is gone from the index, and one that a colleague sent is in it.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from colo_lib import __version__, paths
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.run import find_runs, open_run
from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.report import notebook_output, page
from colo_lib.report.page import write_page
from colo_lib.report.sections import NOTEBOOK

MOST = 8  # newest runs that are judged; each costs a second or two
RUN_COLUMNS = ["To read it, set", "Hypothesis", "Device", "Models", "Trials that count", "Recorded"]


def show_runs(params: Params) -> None:
    """Display the finished runs of `params.runs_dir` and the recorded ones; nothing where `params.run` names one."""
    if not params.run:
        caption = f"Finished runs, newest first (the newest {MOST} of each place): paste a line and run all again."
        found = runs_table(paths.from_checkout(params.runs_dir), paths.RECORDED)
        notebook_output.show_table(found, "runs", caption, section=NOTEBOOK)


def runs_table(*places: Path) -> pd.DataFrame:
    """A row a finished run of each place, newest first: how to name it, its verdict, and what it ran on."""
    rows = [_row(folder) for place in places for folder in find_runs(place)[:MOST]]
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def _row(folder: Path) -> tuple[str, ...]:
    """One run; one that cannot be read is told with the reason, and stops nothing."""
    shown = folder.relative_to(paths.REPOSITORY) if folder.is_relative_to(paths.REPOSITORY) else folder
    line = f'run = "{shown.as_posix()}"'
    try:
        run = open_run(folder)
        status = RunAnalysis(run).verdict.status
    except InputError as error:
        return (line, f"unreadable: {error}", *["—"] * 4)
    label = " (SIMULATED)" if run.simulated else " (cores stand in)" if run.stand_in else ""
    counted = int((run.trials["status"] == "done").sum())
    return (
        line,
        status,
        f"{run.manifest.machine.device_name}{label}",
        " + ".join(str(run.manifest.model_of(name).name) for name in ("gen", "embed")),
        f"{counted} of {len(run.trials)}",
        run.manifest.created_utc or "not recorded",
    )


NAME = "index.html"
RESERVED = (NAME, "side-by-side.html")
HEAD_CHARACTERS = 65_536  # a page's head, style included
COLUMNS = ("Report", "Hypothesis", "In words", "Device", "Models", "Recorded")


def write_index(folder: Path) -> Path:
    """Write `folder`/index.html over the pages that lie in it; gives its path."""
    target = folder / NAME
    write_page(target, render(folder))
    return target


def render(folder: Path) -> str:
    """The index as HTML, newest recording first."""
    found = {file.name: about(file) for file in sorted(folder.glob("*.html")) if file.name != NAME}
    told = sorted(
        ((name, facts) for name, facts in found.items() if facts), key=lambda pair: pair[1]["created_utc"], reverse=True
    )
    return page.document(
        "index.html",
        title="Co-location: reports",
        about={"status": "index"},
        footer=f"Made by colo {__version__}.",
        skip=("reports", "Skip to the reports"),
        columns=COLUMNS,
        reports=[{"file": name, "title": facts["run_id"] or name, "cells": _cells(facts)} for name, facts in told],
        silent=[name for name, facts in found.items() if not facts],
    )


def about(file: Path) -> dict[str, str]:
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
    """Keeps the content of the one element that `page.document` writes."""

    def __init__(self) -> None:
        super().__init__()
        self.content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts: dict[str, Any] = dict(attrs)
        if tag == "meta" and facts.get("name") == page.ABOUT and not self.content:
            self.content = str(facts.get("content") or "")


def _cells(facts: dict[str, str]) -> list[str]:
    """The cells of a report's row after the one that names it, as `COLUMNS`."""
    label = f" ({facts['label']})" if facts["label"] else ""
    weights = f" ({facts['weights']})" if facts["weights"] else ""
    status, models = f"{facts['status']}{label}", f"{facts['models']}{weights}"
    return [status, facts["sentence"], facts["device"], models, facts["created_utc"]]
