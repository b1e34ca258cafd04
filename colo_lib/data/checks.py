"""What of a trial cannot have been recorded: its frames' columns and rows, and where they and its record differ.

Frames in, sentences out: `run` reads the files and raises what is said here. A record and rows that were changed so
that they still agree are not told from what the launcher left.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
import pyarrow as pa

from colo_lib.frames import FRAMES, REACH_S, ROWS, column_limits
from colo_lib.paths import TRIAL
from colo_lib.records import Trial
from colo_lib.steps import STEPS


def column_problems(table: pa.Table, name: str) -> list[str]:
    """What of a table's columns is not as the schema says."""
    wanted, there = FRAMES[name], {field.name: _type_name(field.type) for field in table.schema}
    problems = [f"column {column!r} is missing" for column in wanted if column not in there]
    problems += [f"column {column!r} is not in the schema" for column in there if column not in wanted]
    problems += [f"column {column!r} is there twice" for column in there if table.schema.names.count(column) > 1]
    for column, kind in wanted.items():
        if column in there and there[column] != kind.rstrip("?"):
            problems.append(f"column {column!r} is {there[column]}, not {kind.rstrip('?')}")
        elif column in there and not kind.endswith("?") and not problems and table[column].null_count:
            problems.append(f"column {column!r} has {table[column].null_count} null values")
    return problems


def _type_name(kind: pa.DataType) -> str:
    return {"double": "float64", "large_string": "string"}.get(str(kind), str(kind))


def row_problems(frame: pd.DataFrame, name: str, window_ns: tuple[int, int] | None) -> list[str]:
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


def misplaced_frames(record: Trial, there: Collection[str]) -> dict[str, str]:
    """Frame -> why it should be there, or should not; `there`: names of those that a measured trial has."""
    wanted = expected_frames(record)
    work = [frame for frames in WORK.values() for frame in frames]
    missing = f"missing: {record.step} trial {record.trial} was measured with it"
    strange = f"does not belong here: {record.step} does not run that workload"
    return {name: missing for name in wanted if name not in there} | {
        name: strange for name in there if name in work and name not in wanted
    }


def contradictions(frames: dict[str, pd.DataFrame], record: Trial, window_ns: tuple[int, int]) -> list[str]:
    """What a trial's frames count otherwise than its record, or than each other."""
    problems = _counts(frames, record, window_ns) + _samples(frames, record)
    if "gen" in frames and "requests" in frames:
        problems += _requests(frames["gen"], frames["requests"])
    return problems


def expected_frames(record: Trial) -> list[str]:
    """Names of the frames that a measured trial left."""
    runs = {name: step is not None for name, step in zip(WORK, STEPS[record.step].baselines.values(), strict=True)}
    expected = [frame for name, frames in WORK.items() if runs[name] for frame in frames]
    expected += ["telemetry"] if record.telemetry_cost is not None else []
    expected += ["slices"] if record.mechanism == "cpu-alternating" else []
    paced = record.pacing is not None and record.pacing.kind == "slo" and all(runs.values())
    return expected + (["pacing"] if paced else [])


def _counts(frames: dict[str, pd.DataFrame], record: Trial, window_ns: tuple[int, int]) -> list[str]:
    """What the frames count otherwise than the record that was made from them."""
    problems = []
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
            problems.append(f"{name}.parquet has {counted} {what} in the window, {TRIAL} says {noted}")
    return problems


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
    arrived = pd.DataFrame({"rows": tokens.size(), "first": tokens.first(), "last": tokens.last()})
    if not arrived.index.isin(by_id.index).all():
        return ["gen.parquet has tokens of a request that requests.parquet has not"]
    both = by_id.join(arrived)
    problems = []
    if bool((both["rows"].fillna(0) != both["output_tokens"]).any()):
        problems.append("gen.parquet has not as many tokens of each request as requests.parquet says")
    if bool((both["first"] != both["first_token_ns"])[both["rows"].notna()].fillna(True).any()):
        problems.append("gen.parquet and requests.parquet differ in when a first token came")
    if bool((both["done_ns"] < both["last"]).fillna(False).any()):
        problems.append("gen.parquet has a token that came after its request was done")
    return problems
