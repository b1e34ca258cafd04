"""The script and the style of what a reader can handle: tables to sort.

They are files of this package, for a page as for one output of a notebook, and fetch nothing. Scripts add to what is
there without them; each looks for elements of its own that it has not taken yet, so it may stand on a page many times.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

TABLE = "colo-table"  # class of the tables that are sorted
_FOLDER = Path(__file__).parent


@cache
def script() -> str:
    """What a script element holds; nothing in it is seen from outside."""
    body = (_FOLDER / "sorting.js").read_text(encoding="utf-8")
    return "\n".join(["(() => {", '"use strict";', body, "startSorting();", "})();"])


@cache
def style() -> str:
    """What a style element holds."""
    return (_FOLDER / "widgets.css").read_text(encoding="utf-8")
