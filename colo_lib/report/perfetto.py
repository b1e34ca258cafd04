"""A view as a Chrome trace (JSON), which the Perfetto viewer opens: a track a stream, a process a workload.

The format: a list of complete events, `ts` and `dur` in microseconds. Beyond `MOST_EVENTS` the window is refused:
the viewer in a browser would not hold it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_lib.analysis.trace import intervals
from colo_lib.analysis.trace.kernels import categorise
from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.window import Active, TraceWindow
from colo_lib.errors import InputError
from colo_lib.trace import COPY_KINDS

MOST_EVENTS = 1_000_000
COUNTER_PID, FIRST_PID = 1, 10


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
    told = printable(str(file), 4000)
    return f"{told}: {events:,} events; open it at https://ui.perfetto.dev (it stays in your browser)"


def _events(view: TraceWindow) -> Iterator[dict[str, Any]]:
    for place, (name, active) in enumerate(view.workloads.items()):
        pid = FIRST_PID + place
        who = ", ".join(view.capture.processes[item].label for item in view.assignment[name])
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": f"{name} (pid {who})"}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": place}}
        yield from _kernels(view, active, pid)
        yield from _copies(view, name, pid)
    if len(view.workloads) > 1:
        yield from _both(view)


def _kernels(view: TraceWindow, active: Active, pid: int) -> Iterator[dict[str, Any]]:
    names = [*(printable(name, 300) for name in view.capture.names), "CUDA graph launch"]
    kinds = [*categorise(view.capture.names), "graph"]
    columns = (*active.intervals(), *(active.get(name) for name in ("name", "stream", "blocks", "threads", "graph")))
    for start, end, name, stream, blocks, threads, graph in zip(*(c.tolist() for c in columns), strict=True):
        place = len(names) - 1 if graph else name
        args = {} if graph else {"blocks": blocks, "threads_per_block": threads}
        shown = "(unnamed)" if place < 0 else names[place]
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
        yield _complete(COUNTER_PID, 0, "gen and embed", "overlap", start, end, {})


def _complete(pid: int, tid: int, name: str, kind: str, start: int, end: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": kind, "ts": start / 1e3, "dur": (end - start) / 1e3,
            "args": args}  # fmt: skip
