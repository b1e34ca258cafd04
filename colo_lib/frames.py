"""What every frame of a run folder holds: columns, types, units, and how much work. One place for writers and readers.

Times are CLOCK_MONOTONIC in ns, the same for every process of a host. The run folder's layout and the meaning of each
frame are fixed in docs/run-folder.md. Frames are written without pandas: the launcher's half of the contract.

Work is counted here alone (`Work`): tokens and sequences inside a window, each by the part of its time inside. The
record of a trial is made from it, and every number that is read from its frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from colo_lib.paths import frame_file

SCHEMA_VERSION = 1
NS_PER_S = 1_000_000_000
Ints = NDArray[np.int64]

# column -> Arrow type name; "?" after it: may be null
GEN = {"request_id": "int32", "sequence_number": "int32", "arrival_ns": "int64"}
REQUESTS = {
    "request_id": "int32",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "submitted_ns": "int64",
    "first_token_ns": "int64?",
    "done_ns": "int64?",
    "error": "string?",
}
EMBED = {"started_ns": "int64", "done_ns": "int64", "sequences": "int32", "tokens": "int32"}
# A row a turn of cpu-alternating: who was allowed to run from start to end.
SLICES = {"workload": "string", "start_ns": "int64", "end_ns": "int64"}
# A row an entity a sample: `scope` is "device" (a GPU, or a core that stands in) or "workload" (all of its processes).
TELEMETRY = {
    "t_ns": "int64",
    "scope": "string",
    "name": "string",
    "sm_clock_mhz": "float64?",
    "memory_clock_mhz": "float64?",
    "power_w": "float64?",
    "energy_mj": "float64?",
    "temperature_c": "float64?",
    "throttle_reasons": "int64?",
    "utilization": "float64?",
    "memory_utilization": "float64?",
    "memory_used_gib": "float64?",
    "sm_active": "float64?",
    "sm_occupancy": "float64?",
    "tensor_active": "float64?",
    "dram_active": "float64?",
    "nvlink_gib_s": "float64?",
    "cpu_cores": "float64?",
    "processes": "int32?",
}
# A row a tick of the controller that paces embed: what it saw of gen since the last one, what it asked of embed.
PACING = {
    "t_ns": "int64",
    "gaps": "int32",
    "late": "int32",
    "gap_max_ms": "float64?",
    "gap_p99_ms": "float64?",
    "duty": "float64",
    "embed_duty": "float64?",
}
FRAMES = {
    "gen": GEN,
    "requests": REQUESTS,
    "embed": EMBED,
    "slices": SLICES,
    "telemetry": TELEMETRY,
    "pacing": PACING,
}


@dataclass(frozen=True)
class Rows:
    """What holds in every frame of a kind beyond its columns' types; numbers are finite and not negative in all.

    `ordered`: the column in whose order the rows stand. `rises`: columns that do not fall along a row, nulls aside.
    `unique`: columns that together name a row. `words`: column -> what it may say. `least`, `most`: what no column
    of a name, or of a unit at its end, is below or above.
    """

    ordered: str
    rises: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)


ROWS = {
    "gen": Rows("arrival_ns", unique=("request_id", "sequence_number")),
    "requests": Rows("submitted_ns", ("submitted_ns", "first_token_ns", "done_ns"), ("request_id",)),
    "embed": Rows("done_ns", ("started_ns", "done_ns"), least={"sequences": 1, "tokens": 1}),
    "slices": Rows("start_ns", ("start_ns", "end_ns"), words={"workload": ("gen", "embed")}),
    "telemetry": Rows(
        "t_ns",
        unique=("t_ns", "scope", "name"),
        words={"scope": ("device", "workload")},
        # Far beyond any device: a slip in a unit is no sample. Fractions may pass 1 by a sampler's own grain.
        most={
            "_mhz": 1e5,
            "_w": 1e5,
            "_mj": 1e15,
            "_c": 1e3,
            "utilization": 1.5,
            "_active": 1.5,
            "_occupancy": 1.5,
            "_gib": 1e6,
            "_gib_s": 1e6,
            "_cores": 1e5,
            "processes": 1e6,
        },
    ),
    "pacing": Rows("t_ns", most={"duty": 1.5}),
}


def column_limits(frame: str, column: str) -> tuple[float, float]:
    """The least and the most that a number of a frame's column can be."""
    rules = ROWS[frame]
    least = max((value for end, value in rules.least.items() if column.endswith(end)), default=0.0)
    return least, min((value for end, value in rules.most.items() if column.endswith(end)), default=2.0**63)


# How far from its trial's window a row's times can be: warm-up and the longest wait for an engine, and much more.
REACH_S = 86_400.0


def arrow_schema(frame: str) -> pa.Schema:
    """The Arrow schema of a frame of `frames.FRAMES`."""
    fields = FRAMES[frame].items()
    return pa.schema([pa.field(n, pa.type_for_alias(t.rstrip("?")), nullable=t.endswith("?")) for n, t in fields])


def write_frame(folder: Path, frame: str, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write a frame from its columns (missing nullable ones become null); returns the file.

    Raises ValueError for a column that the schema does not have or a missing one that may not be null.
    """
    schema = arrow_schema(frame)
    unknown = set(columns) - set(schema.names)
    if unknown:
        raise ValueError(f"frame {frame!r} has no column {sorted(unknown)}")
    rows = max((len(values) for values in columns.values()), default=0)
    arrays = []
    for column in schema:
        if column.name not in columns and not column.nullable and rows:
            raise ValueError(f"frame {frame!r}: column {column.name!r} is missing")
        arrays.append(pa.array(columns.get(column.name, [None] * rows), type=column.type))
    file = frame_file(folder, frame)
    whole_numbers = [column.name for column in schema if pa.types.is_integer(column.type)]
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd", write_page_checksum=True,
        # Times grow by little from row to row: their differences take half of what the numbers do.
        use_dictionary=[name for name in schema.names if name not in whole_numbers],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in whole_numbers},
    )  # fmt: skip
    return file


class Table(Protocol):
    """A table whose columns give arrays by `to_numpy()`: a pyarrow table, or a frame of pandas."""

    def __getitem__(self, column: str, /) -> Any:
        """A column."""


@dataclass(frozen=True)
class Work:
    """Pieces of work, arrays (pieces,): when each began and was done, CLOCK_MONOTONIC ns, and how much it was."""

    began_ns: Ints
    done_ns: Ints
    weights: NDArray[np.integer]

    def ended(self, start_ns: int, end_ns: int) -> int:
        """The work of the pieces that were done in [start, end), whenever they began."""
        return int(self.weights[(self.done_ns >= start_ns) & (self.done_ns < end_ns)].sum())

    def inside(self, start_ns: int, end_ns: int) -> float:
        """The work done in [start, end): `done_inside`."""
        return done_inside(self.began_ns, self.done_ns, self.weights, start_ns, end_ns)

    def rate(self, start_ns: int, end_ns: int) -> float:
        """Work per second in [start, end). Raises ValueError for an empty window."""
        if end_ns <= start_ns:
            raise ValueError(f"an empty window: [{start_ns}, {end_ns})")
        return self.inside(start_ns, end_ns) / ((end_ns - start_ns) / NS_PER_S)

    def drift(self, start_ns: int, end_ns: int) -> float | None:
        """|second half of the window / first half - 1|; None when the first half is empty."""
        middle = (start_ns + end_ns) // 2
        first, second = self.inside(start_ns, middle), self.inside(middle, end_ns)
        return abs(second / first - 1) if first else None


def token_work(gen: Table, requests: Table | None = None) -> Work:
    """Each token of `GEN` as work from the token before it of its request on.

    A request's first token takes the time since it was submitted (`REQUESTS`); where that is not known it
    counts where it arrived. Counting whole tokens gives the same rate on average, and is off by up to one engine step,
    all requests' tokens at once: equal counts in every trial then look like no noise at all. A token in the making
    whose end is not recorded is not counted: one a request at the most, and none where recording went on past the
    window.
    """
    request, arrival = (np.asarray(gen[name].to_numpy()) for name in ("request_id", "arrival_ns"))
    order = np.lexsort((arrival, request))
    of, done = request[order], arrival[order]
    began = np.concatenate([done[:1], done[:-1]])
    first = np.ones(len(of), dtype=bool)
    first[1:] = of[1:] != of[:-1]
    submitted = {} if requests is None else _submitted(requests)
    pairs = zip(of[first].tolist(), done[first].tolist(), strict=True)
    began[first] = [min(submitted.get(name, stop), stop) for name, stop in pairs]
    return Work(began, done, np.ones(len(of), dtype=np.int64))


def _submitted(requests: Table) -> dict[int, int]:
    ids, times_ns = (requests[name].to_numpy().tolist() for name in ("request_id", "submitted_ns"))
    return dict(zip(map(int, ids), map(int, times_ns), strict=True))


# Moments of a window at which the ages of running requests are looked at.
AGES_AT = 16


def age_spread(gen: Table, requests: Table, start_ns: int, end_ns: int) -> float | None:
    """How evenly the ages of running requests are spread over [start, end): about 1 evenly, 0 all in lockstep.

    A request's age at a moment is how many tokens it has, between its first and its last; evenly spread from none to
    the longest output L they vary by L^2 / 12. The root of the mean of their variance at `AGES_AT` moments over that.
    None where no two requests run at once.
    """
    ids, lengths = (np.asarray(requests[name].to_numpy()) for name in ("request_id", "output_tokens"))
    if not len(ids):
        return None
    whole = ~np.isnan(np.asarray(requests["done_ns"].to_numpy(), dtype="float64"))
    arrival = np.asarray(gen["arrival_ns"].to_numpy())
    order, by_id = np.argsort(arrival, kind="stable"), np.argsort(ids)
    place = by_id[np.searchsorted(ids[by_id], np.asarray(gen["request_id"].to_numpy())[order])]
    moments = np.linspace(start_ns, end_ns, AGES_AT, endpoint=False)
    variances = []
    for upto in np.searchsorted(arrival[order], moments):
        ages = np.bincount(place[:upto], minlength=len(ids))
        running = ages[(ages > 0) & ~(whole & (ages >= lengths))]
        if len(running) > 1:
            variances.append(float(running.var(ddof=1)))
    longest = float(lengths.max(initial=0))
    return float(np.sqrt(np.mean(variances) * 12) / longest) if variances and longest else None


def sequence_work(embed: Table) -> Work:
    """Each batch of `EMBED` as work of so many sequences."""
    return Work(*(np.asarray(embed[name].to_numpy()) for name in ("started_ns", "done_ns", "sequences")))


def share_met(due_ns: Ints, answered_ns: Ints, due: int, window_ns: tuple[int, int], slo_ms: float) -> float | None:
    """Part of the requests that were due in [start, end) and answered within `slo_ms` of that; None where none was.

    `due_ns`, `answered_ns`: of those that were answered, (requests,), whenever; `due`: how many were due in the window,
    those that never were answered among them.
    """
    inside = (due_ns >= window_ns[0]) & (due_ns < window_ns[1])
    return float(((answered_ns - due_ns)[inside] <= slo_ms * 1e6).sum() / due) if due else None


def done_inside(began_ns: Ints, done_ns: Ints, weights: NDArray[np.integer], start_ns: int, end_ns: int) -> float:
    """Sum of the weights x the fraction of [began, done) in [start, end), ns; all arrays (pieces,).

    Counting whole batches that ended in the window gives the same rate on average, and is off by up to a batch: 8 % at
    twelve batches a window, the same in every trial if their times are. A batch that took no time counts where it
    ended.
    """
    took = done_ns - began_ns
    inside = np.clip(np.minimum(done_ns, end_ns) - np.maximum(began_ns, start_ns), 0, None)
    ended = (done_ns >= start_ns) & (done_ns < end_ns)
    share = np.where(took > 0, inside / np.maximum(took, 1), ended)
    return float((share * weights).sum())
