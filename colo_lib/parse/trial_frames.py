"""A trial's record and its frames tell the same: which frames there are, and what they count in the window."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from colo_lib.parse.frame_file import read_frame
from colo_lib.parse.json_file import damaged
from colo_lib.parse.records import Trial
from colo_lib.paths import TRIAL, frame_file
from colo_lib.schema import BASELINES

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
    runs = {name: step is not None for name, step in zip(WORK, BASELINES[record.step], strict=True)}
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
    taken = (record.telemetry_cost or {}).get("samples") or 0
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
