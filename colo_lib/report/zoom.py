"""The timeline to zoom: what a notebook shows of a view, and such a part as HTML.

Everything that is of use without scripts is HTML: words for the picture, why it is not there, and its numbers by
stretch. The scripts draw the picture from the packed text alone, and show every name as text.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from colo_lib.analyse.pyramid import Level
from colo_lib.analyse.view import View
from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR
from colo_lib.report import packed
from colo_lib.report.blocks import text
from colo_lib.report.packed import Packed
from colo_lib.report.trace_text import percent

MOST_ROWS = 16  # stretches told in words
WITHOUT = (
    "A picture to zoom belongs here. It is drawn by a script, and no script ran: in JupyterLab, trust the notebook "
    "(command palette, 'Trust Notebook') or run its cells; in a browser, allow scripts for this page."
)


def of_view(view: View, centre_ns: int, most_characters: int = packed.MOST_CHARACTERS) -> dict[str, Any]:
    """What `parts.show_timeline` takes: `packed` text, its numbers as `columns` and `rows`, and in words what it holds.

    Where kernels do not all fit one by one, those about `centre_ns` (the capture's clock) do.
    """
    fitted = packed.fit(view, centre_ns, most_characters)
    columns, rows = numbers(fitted, list(view.workloads))
    graphs = any(active.get("graph").any() for active in view.workloads.values())
    told = words(fitted, "kernels and graph launches" if graphs else "kernels")
    return {"packed": fitted.text, "columns": columns, "rows": rows, "words": told}


def words(fitted: Packed, what: str = "kernels") -> str:
    """What can be seen by zooming in, and what cannot; `what` is counted."""
    level = fitted.levels[0]
    count = sum(int(starts.sum()) for starts in level.starts.values())
    if fitted.whole:
        return f"All {count:,} {what} can be seen one by one."
    told = f"{count:,} {what} in bins of {_lasting(level.bin_ns)} at the finest, none left out"
    if fitted.stretch_ns is None:
        return f"{told}; none fits here one by one. A shorter trace_window shows them."
    start, end = (f"{edge / 1e6:,.3f}" for edge in fitted.stretch_ns)
    return f"{told}; one by one from {start} to {end} ms. Another trace_window shows others."


def numbers(fitted: Packed, workloads: list[str]) -> tuple[list[str], list[list[str]]]:
    """The timeline as a table, a row a stretch of time: the finest level of at most `MOST_ROWS` bins."""
    level = next(level for level in fitted.levels if len(level) <= MOST_ROWS)
    width = level.width_ns(fitted.window_ns)
    heads = [f"{name} {what}" for name in workloads for what in ("busy", "kernels started")]
    columns = [values for name in workloads for values in (level.busy_ns[name] / width, level.starts[name])]
    both = len(workloads) > 1
    shown = [
        _cells(level, place, [*columns, level.overlap_ns / width] if both else columns) for place in range(len(level))
    ]
    return ["From (ms)", *heads, *(["Both at once"] if both else [])], shown


def body(part: dict[str, Any], numbers_table: str) -> str:
    """A timeline part as HTML, every string escaped; `numbers_table` is HTML of its rows.

    A part whose packed text is not one that `packed.fit` makes is told, not embedded.
    """
    caption = f'<p class="caption">{text(part.get("caption", ""))}</p>'
    if not packed.readable(part.get("packed")):
        return f'<p class="note">The timeline {text(part.get("name"))} cannot be read.</p>'
    return (
        f'<div class="colo-timeline" data-packed="{text(part["packed"])}" data-colours="{GEN_COLOUR} {EMBED_COLOUR}">'
        f'{caption}<p class="colo-without">{text(WITHOUT)}</p><p class="colo-words">{text(part.get("alt", ""))}</p>'
        f"<details><summary>This timeline in numbers</summary>{numbers_table}</details></div>"
    )


def _cells(level: Level, place: int, columns: list[Any]) -> list[str]:
    values = [column[place] for column in columns]
    return [
        f"{place * level.bin_ns / 1e6:,.3f}",
        *(f"{value:,}" if isinstance(value, np.integer) else percent(float(value)) for value in values),
    ]


def _lasting(ns: int) -> str:
    return f"{ns / 1e3:,g} us" if ns < 1e6 else f"{ns / 1e6:,g} ms"
