"""reports/index.html: every page of a folder with its verdict, written again beside each report.

A page tells about itself in one element of its head (`page.ABOUT`); the pages are all there is, so one that was deleted
is gone from the index, and one that a colleague sent is in it.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from colo_lib import __version__
from colo_lib.report import page
from colo_lib.report.page import write_page

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
