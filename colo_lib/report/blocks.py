"""The scripts and the style of what a reader can handle: tables to sort, a timeline to zoom.

They are files of this package, for a page as for one output of a notebook, and fetch nothing. Scripts add to what is
there without them; each looks for elements of its own that it has not taken yet, so it may stand on a page many times.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

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


def table_part(shown: pd.DataFrame, caption: str, empty: str = "None.") -> dict[str, Any]:
    """A frame whose cells are already as they are to be read, as a table part of the templates."""
    columns = [str(column) for column in shown.columns]
    rows = [[str(value) for value in row] for row in shown.itertuples(index=False)]
    return {"columns": columns, "rows": rows, "caption": caption, "empty": empty}
