"""The templates of the pages: everything that is put into one is escaped, whatever a run's strings hold.

Only the style and the script of this package go in as they are; nothing that comes from a run or a notebook does.

The scripts and the style of what a reader can handle: tables to sort, a timeline to zoom.

They are files of this package, for a page as for one output of a notebook, and fetch nothing. Scripts add to what is
there without them; each looks for elements of its own that it has not taken yet, so it may stand on a page many times.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR
from colo_lib.report import timeline

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


def render(template: str, **values: Any) -> str:
    """A template of `templates/` with `values` put in. Raises jinja2.UndefinedError for a value that it lacks."""
    return _environment().get_template(template).render(**values)


def block(name: str, *values: Any) -> str:
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
    found = INTERVAL.fullmatch(words)
    return (found[1], found[2]) if found else None


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
    return [(title, list(own)) for title, own in groupby(parts, key=lambda part: str(part.get("fold", "")))]


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


def table_part(shown: pd.DataFrame, caption: str, empty: str = "None.") -> dict[str, Any]:
    """A frame whose cells are already as they are to be read, as a table part of the templates."""
    columns = [str(column) for column in shown.columns]
    rows = [[str(value) for value in row] for row in shown.itertuples(index=False)]
    return {"columns": columns, "rows": rows, "caption": caption, "empty": empty}
