"""The scripts and the style of what a reader can handle: tables to sort, a timeline to zoom.

They are files of this package, for a page as for one output of a notebook, and fetch nothing. Scripts add to what is
there without them; each looks for elements of its own that it has not taken yet, so it may stand on a page many times.

The page's building blocks. Every one of them escapes what it is given: no caller hands over HTML but `body`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

TABLE = "colo-table"  # class of the tables that are sorted
FILES = {
    "sorting": ("sorting.js",),
    "zooming": ("timeline_data.js", "timeline_draw.js", "timeline_pointer.js", "timeline.js"),
}
STARTS = {"sorting": "startSorting();", "zooming": "startTimelines();"}
_FOLDER = Path(__file__).parent


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


def text(value: object) -> str:
    """`value` as text that is safe between tags and in double-quoted attributes; control characters are shown."""
    plain = "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in str(value))
    return escape(plain, quote=True)


def heading(level: int, title: str) -> str:
    """A heading of `level` 1 to 4."""
    return f"<h{level}>{text(title)}</h{level}>"


def paragraph(words: object, kind: str = "") -> str:
    """A paragraph, with one of the page's own classes."""
    return f'<p class="{text(kind)}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def items(values: Iterable[object]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>"


def link(address: str, words: object) -> str:
    """A link to a file that lies beside the page; `address` is a plain file name."""
    return f'<a href="{text(quote(address))}">{text(words)}</a>'


def section(name: str, title: str, body: str) -> str:
    """A section with its heading; `body` is HTML made by this module."""
    own = text(name)
    head = f'<h2 id="{own}-title">{text(title)}</h2>'
    return f'<section id="{own}" aria-labelledby="{own}-title">\n{head}\n{body}\n</section>'


def details(title: str, body: str, opened: bool) -> str:
    """Something to unfold; `body` is HTML made by this module."""
    return f"<details{' open' if opened else ''}><summary>{text(title)}</summary>{body}</details>"


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and what they stand for."""
    return (
        "<dl>" + "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs) + "</dl>"
    )


def table(part: dict[str, Any]) -> str:
    """A table part: the first column heads its row; wider than the page, it scrolls by itself."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in part["columns"])
    rows = "".join(f"<tr>{_row(row)}</tr>" for row in part["rows"])
    caption = text(part.get("caption", ""))
    label = caption or "Table"
    numbered = " numbered" if all(len(str(row[0])) <= NUMBER_CHARACTERS for row in part["rows"]) else ""
    return (
        f'<p class="caption">{caption}</p><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="{TABLE}{numbered}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def frame(shown: pd.DataFrame, caption: str) -> str:
    """A frame whose cells are already as they are to be read."""
    columns = [str(column) for column in shown.columns]
    rows = [[str(value) for value in row] for row in shown.itertuples(index=False)]
    return table({"columns": columns, "rows": rows, "caption": caption}) if rows else paragraph("None.", "note")


def figure(part: dict[str, Any]) -> str:
    """A figure part as an embedded PNG; anything that is not one is told, not embedded."""
    try:
        image = base64.b64decode(part.get("png", ""), validate=True)
    except (binascii.Error, ValueError):
        image = b""
    if not image.startswith(PNG):
        return paragraph(f"The figure {part.get('name')} is not there.", "note")
    source = base64.b64encode(image).decode("ascii")
    return (
        f'<figure><div class="picture" tabindex="0" role="region" aria-label="{text(part.get("caption", "Figure"))}">'
        f'<img alt="{text(part.get("alt", ""))}" src="data:image/png;base64,{source}"></div>'
        f"<figcaption>{text(part.get('caption', ''))}</figcaption></figure>"
    )


def _row(cells: list[str]) -> str:
    head, *rest = cells
    return f'<th scope="row">{text(head)}</th>' + "".join(cell(words) for words in rest)


def cell(words: str) -> str:
    """A cell of a table; a status has its colour, an interval stays whole."""
    kind = STATUS_CLASSES.get(words.partition(": ")[0]) or ("bad" if " OVER " in words else "")
    figure = INTERVAL.fullmatch(words)
    # The bracket stands on its own line rather than being torn apart.
    shown = f'{text(figure[1])} <span class="aside">{text(figure[2])}</span>' if figure else text(words)
    return f'<td class="{kind}">{shown}</td>' if kind else f"<td>{shown}</td>"
