"""What every frame of a run folder holds: columns, types, units. One place for writers and readers.

Times are CLOCK_MONOTONIC in ns, the same for every process of a host. The run folder's layout and
the meaning of each frame are fixed in the docs/run-folder.md.

Write and describe the frames of `frames` as Parquet, without pandas: the launcher's half of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib.paths import frame_file

SCHEMA_VERSION = 1

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
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd", write_page_checksum=True)
    return file
