"""A window of a capture to zoom: packed into text that a page can hold, or as a file for the Perfetto viewer.

On a page: a pyramid of bins and rows as columns of whole numbers, as byte planes, deflated, base64.
What is packed, before deflating: 4 bytes (little-endian) with the length of a JSON header, the header, then the columns
one after another. A column of `count` numbers of `width` bytes is `width` planes of `count` bytes, the lowest first;
a signed one holds 2v for v >= 0 and -2v - 1 below. `timeline_data.js` reads it.

Everything is exact. What does not fit the budget is told by the header: kernels one by one are then those of a
stretch, and bins are wider; no row is missing from the bins.

Everything that is of use without scripts is HTML (`templates/macros.html`): words for the picture, why it is not there,
and its numbers by stretch. The scripts draw the picture from the packed text alone, and show every name as text.

For Perfetto: a Chrome trace (JSON), a process a workload, a track a stream; a list of complete events, `ts` and `dur`
in microseconds. Beyond `MOST_EVENTS` the window is refused: the viewer in a browser would not hold it.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colo_lib.analysis.trace import downsample, intervals
from colo_lib.analysis.trace.downsample import Level, Rows
from colo_lib.analysis.trace.kernels import categorise
from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.errors import InputError
from colo_lib.report.trace_text import percent
from colo_lib.steps import WORKLOADS
from colo_lib.trace import COPY_KINDS, Ints

VERSION = 1
# A notebook holds the text twice, in what is shown and in what the report lifts: 3 MB with the scripts.
MOST_CHARACTERS = 1_400_000
BINS_SHARE = 0.4  # of the budget; kernels one by one get the rest
FEWEST_BINS, MOST_BINS = 1024, 131_072
EFFORT = 9  # of deflating
NAME_WIDTH = 200
GRAPH, UNNAMED = "CUDA graph launch", "(unnamed)"
MOST_UNPACKED_BYTES = 64_000_000
MOST_EVENTS = 1_000_000
COUNTER_PID, FIRST_PID = 1, 10
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
        deflated = _deflated(view, levels, stretch)
        if len(deflated) <= most_bytes or stretch is None:
            break
        # As many as would fit by their size in this try, and a little fewer.
        most = min(int(most * most_bytes / len(deflated) * 0.95), most - 1)
    zero = view.window[0]
    since = None if stretch is None else (stretch[0] - zero, stretch[1] - zero)
    return Packed(base64.b64encode(deflated).decode("ascii"), levels, view.window_ns, since)


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
        levels = downsample.every_level(view, downsample.finest_bin_ns(view.window_ns, bins))
        if len(zlib.compress(_planes(_level_columns(levels))[1], EFFORT)) <= most_bytes or bins <= 1:
            return levels
        bins //= 2


def _deflated(view: TraceWindow, levels: Sequence[Level], stretch: tuple[int, int] | None) -> bytes:
    rows = downsample.rows_of(view, stretch) if stretch else {}
    names, places = _names(view.capture.names, rows)
    columns = _level_columns(levels)
    for name, kernels in rows.items():
        columns += _row_columns(kernels, places[name])
    shapes, raw = _planes(columns)
    header = {
        "version": VERSION,
        "window_ns": view.window_ns,
        "workloads": [WORKLOADS[name] for name in view.workloads],
        "bins_ns": [level.bin_ns for level in levels],
        "kernels_ns": [edge - view.window[0] for edge in stretch] if stretch else None,
        "names": names,
        "columns": shapes,
    }
    head = json.dumps(header).encode("ascii")
    return zlib.compress(len(head).to_bytes(4, "little") + head + raw, EFFORT)


def _level_columns(levels: Sequence[Level]) -> list[Column]:
    """For each level: busy and starts of each workload, then the overlap."""
    columns: list[Column] = []
    for level in levels:
        for name, busy in level.busy_ns.items():
            columns += [(busy, False), (level.starts[name], False)]
        columns.append((level.overlap_ns, False))
    return columns


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
    codes = {name: np.where(kernels.graph != 0, len(known), kernels.name) for name, kernels in rows.items()}
    used = np.unique(np.concatenate([np.zeros(0, np.int64), *codes.values()]))
    shown = [
        UNNAMED if code < 0 else GRAPH if code == len(known) else printable(known[code], NAME_WIDTH)
        for code in used.tolist()
    ]
    return shown, {name: np.searchsorted(used, code) for name, code in codes.items()}


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
    """What `notebook_output.show_timeline` takes: `packed` text, its numbers as `columns` and `rows`, and `words`.

    Where kernels do not all fit one by one, those about `centre_ns` (the capture's clock) do.
    """
    fitted = fit(view, centre_ns, most_characters)
    columns, rows = numbers(fitted, list(view.workloads))
    graphs = any(active.get("graph").any() for active in view.workloads.values())
    words = timeline_in_words(fitted, "kernels and graph launches" if graphs else "kernels")
    return {"packed": fitted.text, "columns": columns, "rows": rows, "words": words}


def timeline_in_words(fitted: Packed, what: str = "kernels") -> str:
    """What can be seen by zooming in, and what cannot; `what` is counted."""
    level = fitted.levels[0]
    count = sum(int(starts.sum()) for starts in level.starts.values())
    if fitted.whole:
        return f"All {count:,} {what} can be seen one by one."
    binned = f"{count:,} {what} in bins of {_lasting(level.bin_ns)} at the finest, none left out"
    if fitted.stretch_ns is None:
        return f"{binned}; none fits here one by one. A shorter trace_window shows them."
    start, end = (f"{edge / 1e6:,.3f}" for edge in fitted.stretch_ns)
    return f"{binned}; one by one from {start} to {end} ms. Another trace_window shows others."


def numbers(fitted: Packed, workloads: list[str]) -> tuple[list[str], list[list[str]]]:
    """The timeline as a table, a row a stretch of time: the finest level of at most `MOST_ROWS` bins."""
    level = next(level for level in fitted.levels if len(level) <= MOST_ROWS)
    width = level.width_ns(fitted.window_ns)
    heads = [f"{WORKLOADS[name]} {what}" for name in workloads for what in ("busy", "kernels started")]
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


def write_perfetto(view: TraceWindow, file: Path) -> str:
    """Write `view` to `file`; gives a sentence about it. Raises InputError if it is too much or cannot be written."""
    events = sum(len(active.rows) for active in view.workloads.values()) + sum(len(c) for c in view.copies.values())
    if events > MOST_EVENTS:
        raise InputError(f"{events:,} events are more than a viewer holds ({MOST_EVENTS:,}); give a shorter --window")
    shown = "SIMULATED " if view.capture.simulated else ""
    facts = {"source": "colo trace", "device": printable(shown + view.device.name), "basis": view.basis_words}
    try:
        with file.open("w", encoding="utf-8") as stream:
            stream.write('{"displayTimeUnit": "ns", "otherData": ' + json.dumps(facts) + ', "traceEvents": [\n')
            for place, event in enumerate(_events(view)):
                stream.write((",\n" if place else "") + json.dumps(event))
            stream.write("\n]}\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
    written = printable(str(file), 4000)
    return f"{written}: {events:,} events; open it at https://ui.perfetto.dev (it stays in your browser)"


def _events(view: TraceWindow) -> Iterator[dict[str, Any]]:
    for place, (name, active) in enumerate(view.workloads.items()):
        pid = FIRST_PID + place
        who = ", ".join(view.capture.processes[item].label for item in view.assignment[name])
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": f"{WORKLOADS[name]} (pid {who})"}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": place}}
        yield from _kernels(view, active, pid)
        yield from _copies(view, name, pid)
    if len(view.workloads) > 1:
        yield from _both(view)


def _kernels(view: TraceWindow, active: Active, pid: int) -> Iterator[dict[str, Any]]:
    names = [*(printable(name, 300) for name in view.capture.names), GRAPH]
    kinds = [*categorise(view.capture.names), "graph"]
    columns = (*active.intervals(), *(active.get(name) for name in ("name", "stream", "blocks", "threads", "graph")))
    for start, end, name, stream, blocks, threads, graph in zip(*(c.tolist() for c in columns), strict=True):
        place = len(names) - 1 if graph else name
        args = {} if graph else {"blocks": blocks, "threads_per_block": threads}
        shown = UNNAMED if place < 0 else names[place]
        yield _complete(pid, stream, shown, "other" if place < 0 else kinds[place], start, end, args)


def _copies(view: TraceWindow, workload: str, pid: int) -> Iterator[dict[str, Any]]:
    copies = view.copies[workload].rows
    start, end = intervals.within(copies.start_ns, copies.end_ns, view.window)
    rows = zip(start.tolist(), end.tolist(), copies.kind.tolist(), copies.stream.tolist(), copies.size_bytes.tolist(),
               strict=True)  # fmt: skip
    for begin, stop, kind, stream, size in rows:
        name = COPY_KINDS.get(kind, f"copy kind {kind}")
        yield _complete(pid, stream, name, "memory", begin, stop, {"bytes": size})


def _both(view: TraceWindow) -> Iterator[dict[str, Any]]:
    """A track of its own that shows when both were busy."""
    gen, embed = (view.workloads[name].busy for name in ("gen", "embed"))
    yield {"ph": "M", "pid": COUNTER_PID, "name": "process_name", "args": {"name": f"both busy ({view.basis_words})"}}
    for start, end in zip(*(side.tolist() for side in intervals.intersect(gen, embed)), strict=True):
        yield _complete(COUNTER_PID, 0, "LLM and embedder", "overlap", start, end, {})


def _complete(pid: int, tid: int, name: str, kind: str, start: int, end: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": kind, "ts": start / 1e3, "dur": (end - start) / 1e3,
            "args": args}  # fmt: skip
