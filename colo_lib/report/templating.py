"""The templates of the pages: everything that is put into one is escaped, whatever a run's strings hold.

Only the style and the script of this package go in as they are; nothing that comes from a run or a notebook does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR
from colo_lib.report import timeline
from colo_lib.report.blocks import TABLE

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
