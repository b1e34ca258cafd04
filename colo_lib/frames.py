"""Write and describe the frames of `schema` as Parquet, without pandas: the launcher's half of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib.paths import frame_file
from colo_lib.schema import FRAMES


def arrow_schema(frame: str) -> pa.Schema:
    """The Arrow schema of a frame of `schema.FRAMES`."""
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
    for field in schema:
        if field.name not in columns and not field.nullable and rows:
            raise ValueError(f"frame {frame!r}: column {field.name!r} is missing")
        arrays.append(pa.array(columns.get(field.name, [None] * rows), type=field.type))
    file = frame_file(folder, frame)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd", write_page_checksum=True)
    return file
