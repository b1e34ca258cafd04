"""The trials of a run folder: their records as one frame, their Parquet files, and that both tell the same.

Trial records to one tidy frame: a row a trial, in the order in which they ran.

A frame of a trial from its Parquet file, its columns as `frames.FRAMES` has them, its rows as `frames.ROWS`.

A trial's record and its frames tell the same: which frames there are, and what they count in the window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from colo_lib.errors import InputError
from colo_lib.frames import FRAMES, REACH_S, ROWS, column_limits
from colo_lib.json_records import damaged
from colo_lib.paths import TRIAL, frame_file
from colo_lib.records import Trial
from colo_lib.steps import STEPS

# Parts of a workload's device memory, GiB a process; the rest of gen is activations and context, of embed the context.
MEMORY_PARTS = (
    ("gen", "weights"), ("gen", "kv_cache"), ("gen", "graphs"), ("gen", "rest"),
    ("embed", "weights"), ("embed", "activations"), ("embed", "cached"), ("embed", "rest"),
)  # fmt: skip
# column -> where it stands in trial.json; a dot leads into a nested object
COLUMNS = {
    "step": "step",
    "trial": "trial",
    "block": "block",
    "mechanism": "mechanism",
    "status": "status",
    "reason": "reason",
    "window_start_ns": "window_start_ns",
    "window_end_ns": "window_end_ns",
    "recorded_gen_tokens_per_s": "gen_tokens_per_s",
    "server_gen_tokens_per_s": "gen_server_tokens_per_s",
    "recorded_embed_sequences_per_s": "embed_sequences_per_s",
    "clock_disagreement": "clock_disagreement",
    "gen_drift_fraction": "drift_fraction.gen",
    "embed_drift_fraction": "drift_fraction.embed",
    "gen_start": "engine_starts.gen",
    "embed_start": "engine_starts.embed",
    "gen_devices": "devices.gen",
    "embed_devices": "devices.embed",
    "gen_memory_gib": "memory_gib.gen",
    "embed_memory_gib": "memory_gib.embed",
    "free_memory_gib": "memory_gib.free",
    **{f"{workload}_{part}_memory_gib": f"memory_parts_gib.{workload}.{part}" for workload, part in MEMORY_PARTS},
    "neighbour": "neighbour",
    "latency_clock": "latency_clock",
    "telemetry_cpu_fraction": "telemetry_cost.cpu_fraction",
    "telemetry_absent": "telemetry.absent",
    "telemetry_gaps": "telemetry.gaps",
    "pacing": "pacing.kind",
}
NUMBERS = [name for name in COLUMNS if name.endswith(("_per_s", "_gib", "_fraction", "_disagreement"))]


def trials_frame(records: Iterable[Trial]) -> pd.DataFrame:
    """A row a trial with the columns of `COLUMNS`; absent values are null, rates are per second, memory in GiB.

    Raises InputError for a trial that counts but has no window.
    """
    told = [record.plain() for record in records]
    rows = [{name: _lookup(record, place) for name, place in COLUMNS.items()} | _starts(record) for record in told]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name in ("window_start_ns", "window_end_ns"):
        # From the rows: beside a null, the frame has made floats of them, which do not hold every ns.
        frame[name] = pd.array([None if row[name] is None else int(row[name]) for row in rows], dtype="Int64")
    for name in ("gen_devices", "embed_devices"):
        frame[name] = [_flat(value) for value in frame[name]]
    counted = frame[frame["status"] == "done"]
    wrong = counted[~(counted["window_end_ns"] > counted["window_start_ns"]).fillna(False)]
    if len(wrong):
        first = wrong.iloc[0]
        raise InputError(f"{first['step']} trial {first['trial']}: counts as done but its window is empty or absent")
    return frame


def _starts(record: Mapping[str, Any]) -> dict[str, str]:
    """gen_start, embed_start: names of the starts of the engines that a trial ran on, empty where nothing tells them.

    Records of the first runs have the engines' pids alone.
    """
    return {
        f"{workload}_start": str(_lookup(record, f"engine_starts.{workload}") or _pids(record, workload))
        for workload in ("gen", "embed")
    }


def _pids(record: Mapping[str, Any], workload: str) -> str:
    pids = _lookup(record, f"pids.{workload}")
    return "+".join(map(str, pids)) if isinstance(pids, list) else ""


def _flat(devices: Any) -> tuple[str, ...]:
    """Names of devices, each once: a workload of several processes records a list of devices for each of them."""
    if not isinstance(devices, list | tuple):
        return () if devices is None else (str(devices),)
    return tuple(dict.fromkeys(name for item in devices for name in _flat(item)))


def _lookup(record: Mapping[str, Any], place: str) -> Any:
    value: Any = record
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


MOST_ROWS = 200_000_000


def read_frame(file: Path, name: str, window_ns: tuple[int, int] | None = None) -> pd.DataFrame:
    """A Parquet file as a frame, checked against `frames.FRAMES[name]` and `frames.ROWS[name]`.

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
        least, most = column_limits(name, column)
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


WORK = {"gen": ("gen", "requests"), "embed": ("embed",)}


def check_frames(folder: Path, record: Trial, there: Collection[str]) -> None:
    """Raises InputError for a frame that is missing or does not belong, is damaged, or differs from the record.

    `there`: names of the frames that the trial's folder, or its manifest, holds. What is checked is what the launcher
    left: a record and rows that were changed so that they still agree are not told from it.
    """
    if not record.measured:
        return
    wanted = expected_frames(record)
    for name in wanted:
        if name not in there:
            raise damaged(frame_file(folder, name), f"missing: {record.step} trial {record.trial} was measured with it")
    for name in there:
        if name in _work_frames() and name not in wanted:
            raise damaged(frame_file(folder, name), f"does not belong here: {record.step} does not run that workload")
    assert record.window_start_ns is not None
    assert record.window_end_ns is not None
    window_ns = (record.window_start_ns, record.window_end_ns)
    frames = {name: read_frame(frame_file(folder, name), name, window_ns) for name in there}
    told = _counts(frames, record, window_ns) + _samples(frames, record)
    if "gen" in frames and "requests" in frames:
        told += _requests(frames["gen"], frames["requests"])
    if told:
        raise damaged(folder, "; ".join(told))


def expected_frames(record: Trial) -> list[str]:
    """Names of the frames that a measured trial left."""
    runs = {name: step is not None for name, step in zip(WORK, STEPS[record.step].baselines.values(), strict=True)}
    found = [frame for name, frames in WORK.items() if runs[name] for frame in frames]
    found += ["telemetry"] if record.telemetry_cost is not None else []
    found += ["slices"] if record.mechanism == "cpu-alternating" else []
    paced = record.pacing is not None and record.pacing.kind == "slo" and all(runs.values())
    return found + (["pacing"] if paced else [])


def _work_frames() -> list[str]:
    return [frame for frames in WORK.values() for frame in frames]


def _counts(frames: dict[str, pd.DataFrame], record: Trial, window_ns: tuple[int, int]) -> list[str]:
    """What the frames count otherwise than the record that was made from them."""
    told = []
    for name, column, weights, noted in (
        ("gen", "arrival_ns", None, record.gen_tokens),
        ("embed", "done_ns", "sequences", record.embed_sequences),
    ):
        if name not in frames:
            continue
        frame = frames[name]
        inside = (frame[column] >= window_ns[0]) & (frame[column] < window_ns[1])
        counted = int(frame.loc[inside, weights].sum() if weights else inside.sum())
        if noted != counted:
            what = "tokens" if name == "gen" else "sequences"
            told.append(f"{name}.parquet has {counted} {what} in the window, {TRIAL} says {noted}")
    return told


def _samples(frames: dict[str, pd.DataFrame], record: Trial) -> list[str]:
    """Whether samples are missing of a sampler that was never away, in a trial that counts."""
    away = record.telemetry is not None and record.telemetry.gaps
    taken = (record.telemetry_cost and record.telemetry_cost.samples) or 0
    if record.status != "done" or away or "telemetry" not in frames:
        return []
    there = frames["telemetry"]["t_ns"].nunique()
    return [f"telemetry.parquet has {there} samples, {TRIAL} says {taken:.0f}"] if there < taken else []


def _requests(gen: pd.DataFrame, requests: pd.DataFrame) -> list[str]:
    """Where tokens and requests, two accounts of the same stream, do not agree."""
    tokens = gen.sort_values(["request_id", "sequence_number"], kind="stable").groupby("request_id")["arrival_ns"]
    if bool((tokens.diff() < 0).any()):
        return ["gen.parquet has a token that came before the one it follows"]
    by_id = requests.set_index("request_id")
    found = pd.DataFrame({"rows": tokens.size(), "first": tokens.first(), "last": tokens.last()})
    if not found.index.isin(by_id.index).all():
        return ["gen.parquet has tokens of a request that requests.parquet has not"]
    both = by_id.join(found)
    told = []
    if bool((both["rows"].fillna(0) != both["output_tokens"]).any()):
        told.append("gen.parquet has not as many tokens of each request as requests.parquet says")
    if bool((both["first"] != both["first_token_ns"])[both["rows"].notna()].fillna(True).any()):
        told.append("gen.parquet and requests.parquet differ in when a first token came")
    if bool((both["done_ns"] < both["last"]).fillna(False).any()):
        told.append("gen.parquet has a token that came after its request was done")
    return told
