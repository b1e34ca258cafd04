"""What a notebook shows, as parts that a page can lift: figures, timelines, tables, texts, and that it is done.

A part rides in the metadata of an ordinary display output, so the notebook looks as usual in JupyterLab. A page is
built from the part's plain strings and PNG bytes and never from HTML found in a notebook.

Each part names the section of a page in which it stands; inside a section the parts stand in the order in which they
were shown. `fold` is the title of something to unfold that holds the part; neighbours of one title share it. An unknown
section ends the cell with InputError.

The templates turn parts into HTML, in a notebook as on a page. They escape everything that is put into them, whatever a
run's strings hold; only the style and the scripts of this package go in as they are. The scripts fetch nothing, add to
what is there without them, and look for elements that they have not taken yet, so they may stand on a page many times.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from colo_lib.errors import InputError
from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR
from colo_lib.report import timeline

KEY = "colo"
# Folder that receives every figure as a file too, and what its names end with: `colo report --figures`.
FIGURES, FIGURES_END = "COLO_FIGURES", "COLO_FIGURES_END"

# A section is a name, which is its address on the page, and the title that a reader sees.
FIRST = "first"  # the first screen of a run's page, above the contents

NOTEBOOK = "notebook"  # on no page: what helps whoever has the notebook open, as the list of other runs

RUN_PAGE = {
    "steps": "Steps side by side",
    "latency": "Latencies and stalls",
    "clauses": "The verdict, clause by clause",
    "gen-loss": "Where the LLM's loss went",
    "traces": "Inside the GPU: kernel overlap, occupancy, idle gaps, durations, categories",
    "telemetry": "Telemetry over time",
    "memory": "Memory",
    "sweeps": "Sweeps",
    "published": "Beside the published runs",
    "capacity": "Capacity: dedicate, co-locate or shard wider",
    "not-counted": "Trials that do not count",
    "provenance": "Provenance",
}

# The most telling first: the first section that has anything gives the sentences and the picture of the first screen.
SWEEP_PAGE = {
    "operating-point": "Where embedding comes nearest to free",
    "two-devices": "Two GPUs: one each, or sharded with embedding beside",
    "demand": "How much embedding is nearly free",
    "thread-percentage": "How much of the GPU the embedder may take",
    "concurrency": "Sharing when the LLM is busier",
    "batch-more": "Why not just batch more",
    "eager-or-graphs": "CUDA graphs or eager",
    "prefill-share": "Long prompts",
    "memory-pressure": "What fits",
    "cells": "Every cell",
    "provenance": "Provenance",
}

SIDE_BY_SIDE = {
    "kept": "What each workload keeps",
    "clauses": "The verdict, clause by clause",
    "differs": "What differs",
    "steps": "Steps, run by run",
    "runs": "The runs",
}

KNOWN = (FIRST, *RUN_PAGE, *SWEEP_PAGE, NOTEBOOK)

TABLE = "colo-table"  # class of the tables that are sorted
FILES = {
    "sorting": ("sorting.js",),
    "zooming": ("timeline_data.js", "timeline_draw.js", "timeline_pointer.js", "timeline.js"),
}
STARTS = {"sorting": "startSorting();", "zooming": "startTimelines();"}
_FOLDER = Path(__file__).parent
INTERVAL = re.compile(r"([^\[\](]+?) (\[[^\[\]]*\]|\([^()]*\))")
PNG = b"\x89PNG\r\n\x1a\n"
STATUS_CLASSES = {
    "supported": "good",
    "within": "good",
    "more than dedicated": "good",
    "not supported": "bad",
    "OVER": "bad",
    "less than dedicated": "bad",
    "inconclusive": "open",
    "not settled": "open",
}
NUMBER_CHARACTERS = 3  # of a first column that only numbers its rows


def show_figure(figure: Figure, name: str, caption: str, alt: str, *, section: str) -> None:
    """Display a figure; `caption` stands under it, `alt` says in words what it shows."""
    part = {"kind": "figure", "name": name, "section": known(section), "caption": caption, "alt": alt}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    if FIGURES in os.environ:
        _keep(figure, Path(os.environ[FIGURES]) / f"{name}{os.environ.get(FIGURES_END, '')}")
    _publish({"image/png": png, "text/plain": caption}, part)


def _keep(figure: Figure, stem: Path) -> None:
    """Save as SVG and PNG; the same figure gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "colo"}):
        figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(f"{stem}.png", dpi=200, metadata={"Software": None})


def show_timeline(content: dict[str, Any], name: str, caption: str, alt: str, *, section: str) -> None:
    """Display a timeline to zoom, as `timeline.timeline_of` gives one; `alt` says in words what it shows."""
    part = {"kind": "timeline", "name": name, "section": known(section), "alt": alt}
    part |= {"caption": f"{caption} {content['words']}"}
    part |= {key: content[key] for key in ("packed", "columns", "rows")}
    _publish({"text/html": _html(part), "text/plain": f"{alt} {part['caption']}"}, part)


def show_table(
    frame: pd.DataFrame, name: str, caption: str, *, section: str, fold: str = "", empty: str = "None."
) -> None:
    """Display a frame whose cells are already shown as they are to be read; every cell is escaped.

    A click on a heading sorts by its column; without scripts it is a table as any other. On the page `empty` stands
    for a table without rows.
    """
    part = {"kind": "table", "name": name, "section": known(section), "fold": fold} | table_part(frame, caption, empty)
    _publish({"text/html": _html(part), "text/plain": frame.to_string(index=False)}, part)


def show_text(name: str, text: str, *, section: str) -> None:
    """Display a paragraph."""
    part = {"kind": "text", "name": name, "section": known(section), "text": text}
    _publish({"text/html": _html(part, [text]), "text/plain": text}, part)


def show_verdict(status: str, sentence: str, missing: list[str], warnings: list[str]) -> None:
    """Display the verdict: its status, one sentence, what is missing, and what a reader must not overlook.

    It stands on the first screen.
    """
    lines = [f"{status.upper()}. {sentence}", *warnings, *(f"Missing: {item}" for item in missing)]
    part = {"kind": "verdict", "name": "verdict", "section": FIRST, "status": status, "sentence": sentence}
    remarks = {"missing": missing, "warnings": warnings}
    _publish({"text/html": _html(part, lines), "text/plain": "\n".join(lines)}, {**part, **remarks})


def finish(notebook: str, run_id: str) -> None:
    """Record that `notebook` came to its last cell; without this the report does not take it."""
    part = {"kind": "done", "name": "done", "notebook": notebook, "run_id": run_id}
    _publish({"text/plain": f"{notebook} is done for run {run_id}."}, part)


def _html(part: dict[str, Any], lines: Sequence[str] = ()) -> str:
    """An output of a notebook: a table or a timeline with its script and style, else `lines`."""
    zooming = part["kind"] == "timeline"
    head = {"style": Markup(page_style(zooming)), "script": Markup(page_script(zooming))}
    return render_template("output.html", part=part, lines=lines, **head)


def _publish(data: dict[str, str], part: dict[str, Any]) -> None:
    from IPython.display import display

    display(data, raw=True, metadata={KEY: part})


def table_part(frame: pd.DataFrame, caption: str, empty: str = "None.") -> dict[str, Any]:
    """A frame whose cells are already as they are to be read, as a table part of the templates."""
    columns = [str(column) for column in frame.columns]
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in frame.itertuples(index=False)]
    return {"columns": columns, "rows": rows, "caption": caption, "empty": empty}


def known(section: str) -> str:
    """`section` itself. Raises InputError where no page has it."""
    if section not in KNOWN:
        names = ", ".join(dict.fromkeys(KNOWN))
        raise InputError(f"section {section!r} is on no page: name one of {names} (colo_lib/report/notebook_output.py)")
    return section


def lift(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an executed notebook (nbformat 4 as a dict), in order; a figure's `png` is its base64 text."""
    parts = []
    for cell in notebook.get("cells", []):
        for output in cell.get("outputs", []):
            part = output.get("metadata", {}).get(KEY) if output.get("output_type") == "display_data" else None
            if isinstance(part, dict):
                png = output.get("data", {}).get("image/png")
                parts.append({**part, "png": "".join(png.split())} if isinstance(png, str) else part)
    return parts


def by_section(parts: Iterable[dict[str, Any]], page: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Section -> its parts in the order in which notebooks showed them; every section of `page`, which has all names.

    A part that tells exactly what an earlier one of its section tells stands there once; `names` has all that it goes
    by. Raises InputError for a part of a section that `page` has not: a page drops nothing.
    """
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in page}
    for part in parts:
        section = known(part.get("section", "")) if part["kind"] != "done" else NOTEBOOK
        if section == NOTEBOOK:
            continue
        if section not in sections:
            raise InputError(f"{part['name']} is for section {section!r}, which this page has not")
        same = next((earlier for earlier in sections[section] if _content(earlier) == _content(part)), None)
        if same is None:
            sections[section].append({**part, "names": [part["name"]]})
        elif part["name"] not in same["names"]:
            same["names"].append(part["name"])
    return sections


def _content(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in ("name", "names", "fold")}


def render_template(template: str, **values: Any) -> str:
    """A template of `templates/` with `values` put in. Raises jinja2.UndefinedError for a value that it lacks."""
    return _environment().get_template(template).render(**values)


def render_block(name: str, *values: Any) -> str:
    """One macro of `macros.html` with its arguments put in."""
    return str(getattr(_environment().get_template("macros.html").module, name)(*values))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("colo_lib.report"), autoescape=True, undefined=StrictUndefined, finalize=visible,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"status_class": status_class, "interval": interval, "numbered": numbered, "png": png}
    made.filters |= {"readable": readable, "folded": folded}
    made.globals |= {"TABLE": TABLE, "WITHOUT": timeline.WITHOUT, "COLOURS": f"{GEN_COLOUR} {EMBED_COLOUR}"}
    return made


def visible(value: Any) -> Any:
    """`value` as text whose control characters can be seen; what is markup already stays as it is."""
    if hasattr(value, "__html__"):
        return value
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in str(value))


def status_class(words: str) -> str:
    """The class of a cell by the status that it begins with; none for other words."""
    return STATUS_CLASSES.get(words.partition(": ")[0]) or ("bad" if " OVER " in words else "")


def interval(words: str) -> tuple[str, str] | None:
    """'0.5 [0.4, 0.6]' -> its figure and its bracket."""
    match = INTERVAL.fullmatch(words)
    return (match[1], match[2]) if match else None


def numbered(rows: Sequence[Sequence[object]]) -> bool:
    """Whether the first column only numbers the rows."""
    return all(len(str(row[0])) <= NUMBER_CHARACTERS for row in rows)


def png(part: dict[str, Any]) -> str:
    """A figure part's image as base64; empty where it holds none that is a PNG."""
    try:
        image = base64.b64decode(part.get("png", ""), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(image).decode("ascii") if image.startswith(PNG) else ""


def readable(part: dict[str, Any]) -> bool:
    """Whether a timeline part's packed text is one that `timeline.fit` makes."""
    return timeline.readable(part.get("packed"))


def folded(parts: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title of what is to be unfolded, empty for none, and the neighbouring parts that it holds."""
    return [(title, list(group)) for title, group in groupby(parts, key=lambda part: str(part.get("fold", "")))]


@cache
def page_script(zooming: bool = False) -> str:
    """What a script element holds: sorting, and zooming if asked; nothing in it is seen from outside."""
    wanted = ("sorting", "zooming") if zooming else ("sorting",)
    bodies = [(_FOLDER / file).read_text(encoding="utf-8") for name in wanted for file in FILES[name]]
    return "\n".join(["(() => {", '"use strict";', *bodies, *(STARTS[name] for name in wanted), "})();"])


@cache
def page_style(zooming: bool = False) -> str:
    """What a style element holds: that of sorted tables, and of timelines if asked."""
    whole = (_FOLDER / "widgets.css").read_text(encoding="utf-8")
    return whole if zooming else "\n".join(line for line in whole.splitlines() if f".{TABLE} " in line)
