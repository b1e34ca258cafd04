"""The timeline to zoom: a capture packed into text that a page can hold.

A capture's pyramid as text that a page can hold: columns of whole numbers as byte planes, deflated, base64.

What is packed, before deflating: 4 bytes (little-endian) with the length of a JSON header, the header, then the columns
one after another. A column of `count` numbers of `width` bytes is `width` planes of `count` bytes, the lowest first;
a signed one holds 2v for v >= 0 and -2v - 1 below. `timeline_data.js` reads it.

Everything is exact. What does not fit the budget is told by the header: kernels one by one are then those of a
stretch, and bins are wider; no row is missing from the bins.

Everything that is of use without scripts is HTML (`templates/macros.html`): words for the picture, why it is not there,
and its numbers by stretch. The scripts draw the picture from the packed text alone, and show every name as text.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from colo_lib.analysis.trace import downsample
from colo_lib.analysis.trace.downsample import Level, Rows
from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.window import TraceWindow
from colo_lib.report.trace_text import percent
from colo_lib.trace import Ints

VERSION = 1
# A notebook holds the text twice, in what is shown and in what the report lifts: 3 MB with the scripts.
MOST_CHARACTERS = 1_400_000
BINS_SHARE = 0.4  # of the budget; kernels one by one get the rest
FEWEST_BINS, MOST_BINS = 1024, 131_072
EFFORT = 9  # of deflating
NAME_WIDTH = 200
GRAPH, UNNAMED = "CUDA graph launch", "(unnamed)"
MOST_UNPACKED_BYTES = 64_000_000
Column = tuple[Ints, bool]  # numbers, and whether some may be below 0


@dataclass(frozen=True)
class Packed:
    """`text`: what a page holds. `levels`: finest first. `stretch_ns`: where kernels are held one by one, since the
    window's start; the whole window where all are, None where none is.
    """

    text: str
    levels: Sequence[Level]
    window_ns: int
    stretch_ns: tuple[int, int] | None

    @property
    def whole(self) -> bool:
        """Whether every kernel of the window is held one by one."""
        return self.stretch_ns == (0, self.window_ns)


def fit(view: TraceWindow, centre_ns: int, most_characters: int = MOST_CHARACTERS) -> Packed:
    """The view in at most `most_characters` of text; where kernels do not all fit, those about `centre_ns` are held.

    `centre_ns` is on the capture's clock.
    """
    most_bytes = most_characters // 4 * 3
    levels = _fitting_levels(view, int(most_bytes * BINS_SHARE))
    # No kernel takes less than a byte: of ten million, most need not be tried.
    most = min(sum(len(active.rows) for active in view.workloads.values()), most_bytes)
    while True:
        stretch = downsample.stretch_of(view, centre_ns, most)
        found = _deflated(view, levels, stretch)
        if len(found) <= most_bytes or stretch is None:
            break
        # As many as would fit by their size in this try, and a little fewer.
        most = min(int(most * most_bytes / len(found) * 0.95), most - 1)
    zero = view.window[0]
    since = None if stretch is None else (stretch[0] - zero, stretch[1] - zero)
    return Packed(base64.b64encode(found).decode("ascii"), levels, view.window_ns, since)


def readable(text: object) -> bool:
    """Whether `text` is one that `fit` may have made: base64 of deflated columns, all there and not too many."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        return False
    try:
        reader = zlib.decompressobj()
        raw = reader.decompress(base64.b64decode(text, validate=True), MOST_UNPACKED_BYTES)
        size = int.from_bytes(raw[:4], "little")
        header = json.loads(raw[4 : 4 + size])
        columns = sum(count * width for count, width, _ in header["columns"])
    except (binascii.Error, zlib.error, ValueError, TypeError, KeyError, RecursionError):
        return False
    return reader.eof and header["version"] == VERSION and len(raw) == 4 + size + columns


def _fitting_levels(view: TraceWindow, most_bytes: int) -> list[Level]:
    """The finest levels whose columns fit; about as many bins as kernels, since finer ones show nothing more."""
    kernels = sum(len(active.rows) for active in view.workloads.values())
    bins = min(max(kernels, FEWEST_BINS), MOST_BINS)
    while True:
        levels = downsample.pyramid_of(view, downsample.finest_bin_ns(view.window_ns, bins))
        if len(zlib.compress(_planes(_level_columns(levels))[1], EFFORT)) <= most_bytes or bins <= 1:
            return levels
        bins //= 2


def _deflated(view: TraceWindow, levels: Sequence[Level], stretch: tuple[int, int] | None) -> bytes:
    rows = downsample.rows_of(view, stretch) if stretch else {}
    names, places = _names(view.capture.names, rows)
    columns = _level_columns(levels)
    for name, own in rows.items():
        columns += _row_columns(own, places[name])
    shapes, raw = _planes(columns)
    header = {
        "version": VERSION,
        "window_ns": view.window_ns,
        "workloads": list(view.workloads),
        "bins_ns": [level.bin_ns for level in levels],
        "kernels_ns": [edge - view.window[0] for edge in stretch] if stretch else None,
        "names": names,
        "columns": shapes,
    }
    told = json.dumps(header).encode("ascii")
    return zlib.compress(len(told).to_bytes(4, "little") + told + raw, EFFORT)


def _level_columns(levels: Sequence[Level]) -> list[Column]:
    """For each level: busy and starts of each workload, then the overlap."""
    found: list[Column] = []
    for level in levels:
        for name, busy in level.busy_ns.items():
            found += [(busy, False), (level.starts[name], False)]
        found.append((level.overlap_ns, False))
    return found


def _row_columns(rows: Rows, names: Ints) -> list[Column]:
    """The hole before each kernel (negative where it began beside another), duration, name, blocks; then the spans
    switched out in the same way. Holes repeat where start times do not, so they deflate to half.
    """
    out_start, out_end = rows.out_ns
    return [
        (_holes(rows.start_ns, rows.duration_ns), True),
        (rows.duration_ns, True),
        (names, False),
        (rows.blocks, True),
        (_holes(out_start, out_end - out_start), True),
        (out_end - out_start, False),
    ]


def _holes(start: Ints, duration: Ints) -> Ints:
    before = np.concatenate((np.zeros(1, np.int64), (start + duration)[:-1]))
    return start - before[: len(start)]


def _names(known: Sequence[str], rows: Mapping[str, Rows]) -> tuple[list[str], dict[str, Ints]]:
    """Names as they may be shown, those that rows have alone, and each row's place in them."""
    codes = {name: np.where(own.graph != 0, len(known), own.name) for name, own in rows.items()}
    used = np.unique(np.concatenate([np.zeros(0, np.int64), *codes.values()]))
    shown = [
        UNNAMED if code < 0 else GRAPH if code == len(known) else printable(known[code], NAME_WIDTH)
        for code in used.tolist()
    ]
    return shown, {name: np.searchsorted(used, own) for name, own in codes.items()}


def _planes(columns: Sequence[Column]) -> tuple[list[list[int]], bytes]:
    """[count, width in bytes, 1 if signed] of each column, and the bytes of all."""
    shapes: list[list[int]] = []
    raw = []
    for values, signed in columns:
        whole = np.where(values < 0, -2 * values - 1, 2 * values) if signed else values
        width = max(1, (int(whole.max(initial=0)).bit_length() + 7) // 8)
        raw.append(whole.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes())
        shapes.append([len(values), width, int(signed)])
    return shapes, b"".join(raw)


MOST_ROWS = 16  # stretches told in words
WITHOUT = (
    "A picture to zoom belongs here. It is drawn by a script, and no script ran: in JupyterLab, trust the notebook "
    "(command palette, 'Trust Notebook') or run its cells; in a browser, allow scripts for this page."
)


def timeline_of(view: TraceWindow, centre_ns: int, most_characters: int = MOST_CHARACTERS) -> dict[str, Any]:
    """What `parts.show_timeline` takes: `packed` text, its numbers as `columns` and `rows`, and in words what it holds.

    Where kernels do not all fit one by one, those about `centre_ns` (the capture's clock) do.
    """
    fitted = fit(view, centre_ns, most_characters)
    columns, rows = numbers(fitted, list(view.workloads))
    graphs = any(active.get("graph").any() for active in view.workloads.values())
    told = timeline_in_words(fitted, "kernels and graph launches" if graphs else "kernels")
    return {"packed": fitted.text, "columns": columns, "rows": rows, "words": told}


def timeline_in_words(fitted: Packed, what: str = "kernels") -> str:
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


def _cells(level: Level, place: int, columns: list[Any]) -> list[str]:
    values = [column[place] for column in columns]
    return [
        f"{place * level.bin_ns / 1e6:,.3f}",
        *(f"{value:,}" if isinstance(value, np.integer) else percent(float(value)) for value in values),
    ]


def _lasting(ns: int) -> str:
    return f"{ns / 1e3:,g} us" if ns < 1e6 else f"{ns / 1e6:,g} ms"
