"""Ways in which a run folder can be damaged; each changes a copy in place and says in words what it did."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib.frames import arrow_schema
from colo_lib.paths import MANIFEST, START
from tests.run_folders import change_manifest, reseal

Damage = Callable[[Path, random.Random], str]
STRANGE: list[Any] = [
    None, [], {}, [1, 2], {"a": 1}, "x", "", "a\0b", "\ud800", "../x", True, -1, -1.5, 0, 10**30, -(10**30), 1e308,
    float("nan"), float("inf"), "x" * 5000, [[[[]]]], ["done"],
]  # fmt: skip


def records(run: Path) -> list[str]:
    """The JSON files of a run but for its manifest."""
    found = [file.relative_to(run).as_posix() for file in run.glob("steps/*/*/*.json")]
    return sorted(found) + ([START] if (run / START).is_file() else [])


def frames(run: Path) -> list[str]:
    """The frames of a run."""
    return sorted(file.relative_to(run).as_posix() for file in run.glob("steps/*/*/*.parquet"))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value, as paths of keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*at, key) for key, _ in pairs]
    return found + [place for key, item in pairs for place in places(item, (*at, key))]


def inside(value: Any, place: tuple[Any, ...]) -> Any:
    """The container that holds the last key of `place`."""
    for key in place[:-1]:
        value = value[key]
    return value


def one_value(run: Path, chance: random.Random) -> str:
    """A value of a record becomes another one."""
    name = chance.choice([MANIFEST, MANIFEST, *records(run)])
    loaded = json.loads((run / name).read_text())
    if name == MANIFEST and chance.random() < 0.5:
        loaded_places = [place for place in places(loaded) if place[0] not in ("files", "params", "shared")]
    else:
        loaded_places = places(loaded)
    place, value = chance.choice(loaded_places), chance.choice(STRANGE)
    inside(loaded, place)[place[-1]] = value
    (run / name).write_text(json.dumps(loaded))
    return f"{name}: {'.'.join(map(str, place))} = {value!r:.40}"


def one_key(run: Path, chance: random.Random) -> str:
    """A key of a record goes."""
    name = chance.choice([MANIFEST, *records(run)])
    loaded = json.loads((run / name).read_text())
    place = chance.choice(places(loaded))
    del inside(loaded, place)[place[-1]]
    (run / name).write_text(json.dumps(loaded))
    return f"{name}: {'.'.join(map(str, place))} removed"


def whole_record(run: Path, chance: random.Random) -> str:
    """A record becomes something else altogether."""
    name = chance.choice([MANIFEST, *records(run)])
    text = (run / name).read_text()
    nested = "[" * 100_000 + "]" * 100_000
    new = chance.choice(["", "{", "[]", "null", "3", '"x"', nested, text[: len(text) // 2], text + "}", "\0" * 100])
    (run / name).write_text(new)
    return f"{name} is {new[:10]!r}"


def window(run: Path, chance: random.Random) -> str:
    """A trial's window becomes absurd, or another one."""
    name = chance.choice([name for name in records(run) if "trial-" in name])
    record = json.loads((run / name).read_text())
    start, end = record["window_start_ns"], record["window_end_ns"]
    kinds: dict[str, tuple[Any, Any]] = {
        "backwards": (end, start), "empty": (start, start), "negative": (-end, -start), "huge": (start, 10**30),
        "no number": (float("nan"), end), "text": (str(start), str(end)), "floats": (float(start), float(end)),
        "elsewhere": (start + 10**18, end + 10**18), "shifted": (start + 3 * 10**8, end + 3 * 10**8),
        "longer": (start, end + 5 * 10**8), "null": (None, None), "a thousandth": (start // 1000, end // 1000),
    }  # fmt: skip
    kind = chance.choice(sorted(kinds))
    record |= {"window_start_ns": kinds[kind][0], "window_end_ns": kinds[kind][1]}
    (run / name).write_text(json.dumps(record))
    return f"{name}: window {kind}"


def bytes_of_a_frame(run: Path, chance: random.Random) -> str:
    """A frame is cut, flipped, emptied or another file."""
    name = chance.choice(frames(run))
    content = (run / name).read_bytes()
    at = chance.randrange(len(content))
    other = (run / chance.choice(frames(run))).read_bytes()
    kind, new = chance.choice(
        [
            ("cut", content[:at]),
            ("a bit flipped", content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]),
            ("empty", b""),
            ("text", b"request_id,arrival_ns\n1,2\n"),
            ("another frame", other),
            ("zeros inside", content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]),
            ("doubled", content * 2),
        ]
    )
    (run / name).write_bytes(new)
    return f"{name}: {kind}"


def rows_of_a_frame(run: Path, chance: random.Random) -> str:
    """A frame is written anew with other rows or columns."""
    name = chance.choice([name for name in frames(run) if pq.read_metadata(run / name).num_rows > 3])
    kind = Path(name).stem
    frame = pq.read_table(run / name).to_pandas()
    column = chance.choice(list(frame.columns))
    number = frame[column].dtype.kind in "if"
    how = chance.choice(["drop", "rename", "text", "null", "fewer", "none", "twice", "backwards", "extra", "strange"])
    # What a sensor might have said is no damage that anybody could see.
    numbers = [-1, 2**62] if kind == "telemetry" else [-1, 2**62, 0]
    value: Any = chance.choice(numbers) if number else chance.choice(["x", "a\0b", ""])
    if how == "drop":
        frame = frame.drop(columns=column)
    elif how == "rename":
        frame = frame.rename(columns={column: "other"})
    elif how == "text":
        frame[column] = frame[column].astype(str)
    elif how == "null":
        frame[column] = frame[column].astype(object)
        frame.loc[chance.randrange(len(frame)), column] = None
    elif how == "fewer":
        frame = frame.iloc[: chance.randrange(1, len(frame))]
    elif how == "none":
        frame = frame.iloc[:0]
    elif how == "twice":
        frame = pd.concat([frame, frame])
    elif how == "backwards":
        frame = frame.iloc[::-1]
    elif how == "extra":
        frame["extra"] = 1
    else:
        frame[column] = frame[column].where(frame.index != chance.randrange(len(frame)), value)
    try:
        table = pa.Table.from_pandas(frame, schema=arrow_schema(kind), preserve_index=False, safe=False)
    except (pa.ArrowException, KeyError, ValueError, TypeError):
        table = pa.Table.from_pandas(frame, preserve_index=False)
    if how == "extra":
        table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, run / name)
    return f"{name}: {column}: {how} {value!r}"


def removed(run: Path, chance: random.Random) -> str:
    """A file, or a trial, goes together with its entry in the manifest."""
    manifest = json.loads((run / MANIFEST).read_text())
    name = chance.choice(frames(run) + [name for name in records(run) if "trial-" in name])
    folder = (run / name).parent.relative_to(run).as_posix()
    whole = chance.random() < 0.4
    gone = [file for file in manifest["files"] if file == name or (whole and file.startswith(f"{folder}/"))]
    for file in gone:
        (run / file).unlink(missing_ok=True)
        del manifest["files"][file]
    if whole and chance.random() < 0.7:
        manifest["trials"] = [row for row in manifest["trials"] if row["folder"] != folder]
    change_manifest(run, **manifest)
    if not whole:
        return f"{name} removed with its entry"
    return f"{folder} removed with its entries"


def another_kind_of_file(run: Path, chance: random.Random) -> str:
    """A file becomes a folder, a pipe, or a link."""
    name = chance.choice(frames(run) + records(run))
    file = run / name
    kept = file.with_suffix(".kept")
    file.rename(kept)
    kind = chance.choice(["folder", "pipe", "link to nowhere", "link to itself", "link outside"])
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to nowhere":
        file.symlink_to("nothing")
    elif kind == "link to itself":
        file.symlink_to(file)
    else:
        outside = run.parent / "outside"
        shutil.move(kept, outside)
        file.symlink_to(outside)
    return f"{name}: {kind}"


def name_in_the_manifest(run: Path, chance: random.Random) -> str:
    """A name in the manifest's list of files becomes one that no file has."""
    manifest = json.loads((run / MANIFEST).read_text())
    name = chance.choice(sorted(manifest["files"]))
    new = chance.choice(
        ["a\0b", "../outside", "/etc/hostname", "x" * 5000, "", "steps", ".", "steps/\ud800", name + "/x"]
    )
    manifest["files"][new] = manifest["files"].pop(name)
    change_manifest(run, **manifest)
    return f"manifest.json names {new[:20]!r} for {name}"


DAMAGES: tuple[Damage, ...] = (
    one_value, one_value, one_value, one_key, whole_record, window, window, bytes_of_a_frame, bytes_of_a_frame,
    rows_of_a_frame, rows_of_a_frame, rows_of_a_frame, removed, removed, another_kind_of_file, name_in_the_manifest,
)  # fmt: skip


def mend_checksums(run: Path) -> None:
    """Let the manifest hold the sizes and checksums that its files have now, where it still is one."""
    try:
        listed = json.loads((run / MANIFEST).read_text())["files"]
        for name in [name for name in listed if (run / name).is_file()]:
            reseal(run, name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
