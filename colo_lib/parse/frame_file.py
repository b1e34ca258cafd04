"""A frame of a trial from its Parquet file, its columns as `schema.FRAMES` has them, its rows as `schema.ROWS`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from colo_lib.parse.json_file import damaged
from colo_lib.schema import FRAMES, REACH_S, ROWS, limits

MOST_ROWS = 200_000_000


def read_frame(file: Path, name: str, window_ns: tuple[int, int] | None = None) -> pd.DataFrame:
    """A Parquet file as a frame, checked against `schema.FRAMES[name]` and `schema.ROWS[name]`.

    Its times lie within `REACH_S` of `window_ns` where that is told. Raises InputError naming what differs.
    """
    try:
        # Not `read_table`: it would take a folder's name that holds '=' for a column.
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            if parquet.metadata.num_rows > MOST_ROWS:
                raise ValueError(f"{parquet.metadata.num_rows} rows, which no trial has")
            table = parquet.read()
        if problems := _columns(table, name):
            raise damaged(file, "; ".join(problems))
        # Times are exact ns: a nullable integer column must not become a float on its way.
        # What pandas once noted of its own types is not asked: the file's types were.
        frame = table.replace_schema_metadata().to_pandas(
            types_mapper={pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}.get
        )
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        raise damaged(file, f"not a readable parquet file: {error}") from None
    frame = frame.astype({column: kind for column, kind in FRAMES[name].items() if kind in ("int32", "int64")})
    problems = _rows(frame, name, window_ns)
    if problems:
        raise damaged(file, "; ".join(problems))
    return frame


def _columns(table: pa.Table, name: str) -> list[str]:
    """What of a table's columns is not as the schema says."""
    wanted, found = FRAMES[name], {field.name: _type_name(field.type) for field in table.schema}
    problems = [f"column {column!r} is missing" for column in wanted if column not in found]
    problems += [f"column {column!r} is not in the schema" for column in found if column not in wanted]
    problems += [f"column {column!r} is there twice" for column in found if table.schema.names.count(column) > 1]
    for column, kind in wanted.items():
        if column in found and found[column] != kind.rstrip("?"):
            problems.append(f"column {column!r} is {found[column]}, not {kind.rstrip('?')}")
        elif column in found and not kind.endswith("?") and not problems and table[column].null_count:
            problems.append(f"column {column!r} has {table[column].null_count} null values")
    return problems


def _type_name(kind: pa.DataType) -> str:
    return {"double": "float64", "large_string": "string"}.get(str(kind), str(kind))


def _rows(frame: pd.DataFrame, name: str, window_ns: tuple[int, int] | None) -> list[str]:
    """What of a frame's rows cannot have been recorded."""
    rules, problems = ROWS[name], []
    for column, kind in FRAMES[name].items():
        values = frame[column].dropna().to_numpy()
        if len(values) < len(frame) and not kind.endswith("?"):
            problems.append(f"column {column!r} holds no number in {len(frame) - len(values)} rows")
        if kind.startswith("string"):
            if any("\0" in text for text in set(values)):
                problems.append(f"column {column!r} holds a NUL")
            continue
        least, most = limits(name, column)
        wrong = np.flatnonzero(~((values >= least) & (values <= most)))
        if len(wrong):
            problems.append(f"column {column!r} holds {values[wrong[0]]}, which is not from {least:g} to {most:g}")
        elif column.endswith("_ns") and window_ns is not None and len(values):
            # Python's integers: a sum with a time near the largest would run over.
            ends, reach_ns = (int(values.min()), int(values.max())), int(REACH_S * 1e9)
            if ends[0] < window_ns[0] - reach_ns or ends[1] > window_ns[1] + reach_ns:
                problems.append(f"column {column!r} has times of {ends[0]} to {ends[1]} ns, far from its window")
    if not frame[rules.ordered].is_monotonic_increasing:
        problems.append(f"rows do not stand in the order of {rules.ordered!r}")
    for before, after in zip(rules.rises, rules.rises[1:], strict=False):
        if bool((frame[after] < frame[before]).fillna(False).any()):
            problems.append(f"{after!r} comes before {before!r} in a row")
    if rules.unique and frame.duplicated(list(rules.unique)).any():
        problems.append(f"two rows have the same {', '.join(rules.unique)}")
    for column, words in rules.words.items():
        if strange := sorted(set(frame[column]) - set(words)):
            problems.append(f"column {column!r} says {strange[0]!r}, which is none of {', '.join(words)}")
    return problems
