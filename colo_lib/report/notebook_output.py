"""What a notebook shows, as parts that the report can lift: figures, timelines, tables, texts, and that it is done.

A part rides in the metadata of an ordinary display output, so the notebook looks as usual in JupyterLab. The report
builds its page from the part's plain strings and PNG bytes and never from HTML found in a notebook.

Each part names the section of the page in which it stands, one of `sections`; inside a section the parts stand in the
order in which they were shown. `fold` is the title of something to unfold that holds the part; neighbours of one title
share it. An unknown section ends the cell with InputError.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from colo_lib.report import templating
from colo_lib.report.sections import FIRST, known

KEY = "colo"
# Folder that receives every figure as a file too, and what its names end with: `colo report --figures`.
FIGURES, FIGURES_END = "COLO_FIGURES", "COLO_FIGURES_END"


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


def show_timeline(shown: dict[str, Any], name: str, caption: str, alt: str, *, section: str) -> None:
    """Display a timeline to zoom, as `timeline.timeline_of` gives one; `alt` says in words what it shows."""
    part = {"kind": "timeline", "name": name, "section": known(section), "alt": alt}
    part |= {"caption": f"{caption} {shown['words']}"}
    part |= {key: shown[key] for key in ("packed", "columns", "rows")}
    _publish({"text/html": _html(part), "text/plain": f"{alt} {part['caption']}"}, part)


def show_table(
    frame: pd.DataFrame, name: str, caption: str, *, section: str, fold: str = "", empty: str = "None."
) -> None:
    """Display a frame whose cells are already shown as they are to be read; every cell is escaped.

    A click on a heading sorts by its column; without scripts it is a table as any other. On the page `empty` stands
    for a table without rows.
    """
    columns = [str(column) for column in frame.columns]
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in frame.itertuples(index=False)]
    part: dict[str, Any] = {"kind": "table", "name": name, "section": known(section), "fold": fold, "caption": caption}
    part |= {"columns": columns, "rows": rows, "empty": empty}
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
    told = {"missing": missing, "warnings": warnings}
    _publish({"text/html": _html(part, lines), "text/plain": "\n".join(lines)}, {**part, **told})


def finish(notebook: str, run_id: str) -> None:
    """Record that `notebook` came to its last cell; without this the report does not take it."""
    part = {"kind": "done", "name": "done", "notebook": notebook, "run_id": run_id}
    _publish({"text/plain": f"{notebook} is done for run {run_id}."}, part)


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


def _html(part: dict[str, Any], lines: Sequence[str] = ()) -> str:
    """An output of a notebook: a table or a timeline with its script and style, else `lines`."""
    zooming = part["kind"] == "timeline"
    own = {"style": Markup(templating.page_style(zooming)), "script": Markup(templating.page_script(zooming))}
    return templating.render("output.html", part=part, lines=lines, **own)


def _publish(data: dict[str, str], part: dict[str, Any]) -> None:
    from IPython.display import display

    display(data, raw=True, metadata={KEY: part})
