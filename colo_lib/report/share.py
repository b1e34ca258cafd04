"""A run or a sweep fit to share: what is known to be harmless is copied, everything else is replaced and counted.

Which fields of a record come along, and by which rule, stands in `share_tables`.

The frames of the trials are whole, captures are cut to a few milliseconds and redacted; logs, executed notebooks and
reports of Nsight Systems stay behind.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from colo_lib.analysis.trace.residency import host_pids
from colo_lib.data.capture import StepCapture, clock_shift, read_capture
from colo_lib.data.packed_export import PACKED, pack, unpacked
from colo_lib.data.redact import redact
from colo_lib.data.run import Run, open_run
from colo_lib.data.scrub import FILES, KINDS, Scrubber
from colo_lib.data.sweep import NOT_RUN, open_sweep
from colo_lib.errors import InputError
from colo_lib.frames import FRAMES, arrow_schema, write_frame
from colo_lib.json_records import read_object, write_json
from colo_lib.params import STEPS
from colo_lib.paths import (
    CAPTURE,
    CELL,
    MANIFEST,
    PARTIAL,
    START,
    SWEEP,
    TRIAL,
    capture_folder,
    cell_folder,
    cell_runs,
    frame_file,
    trial_folder,
)
from colo_lib.record.run_folder import checksums
from colo_lib.records import CaptureFacts
from colo_lib.report.share_rules import new_scrubber
from colo_lib.report.share_tables import FRAME_TEXTS, RECORDS
from colo_lib.trace import ExportFacts

NS_PER_MS = 1_000_000
WRITER = re.compile(r"parquet-cpp-arrow version [\d.]{1,16}")


@dataclass
class LeftOut:
    """What a share left out: `counts` by kind, and a line for each thing left out of a capture."""

    counts: Counter[str]
    lines: list[str]

    def words(self) -> list[str]:
        """A line a kind that was met, then the captures' lines."""
        return [f"{kind}: {self.counts[kind]:,}" for kind in KINDS if self.counts[kind]] + self.lines


def share(
    run: Path, parent: Path, capture_ms: float, scrub: Scrubber | None = None, capture_tokens: float = 0.0,
    packed: bool = False,
) -> tuple[Path, LeftOut]:  # fmt: skip
    """Copy a finished run into `parent` under its own name; (the new folder, what was left out).

    Every trial stays as it was measured; of every capture the middle `capture_ms` are kept, or as much as shows
    `capture_tokens` of gen if that is more, with the window in its record moved accordingly; where both are 0 captures
    are left out. `scrub`: what else is shared together with it. `packed`: exports as .sqlite.xz, frames written
    anew.
    Raises InputError for a run that is damaged,
    unfinished, or there already; nothing is left of a copy that failed.
    """
    source = open_run(run)
    target = parent / source.folder.name
    partial = parent / (target.name + PARTIAL)
    if target.exists() or partial.exists():
        raise InputError(f"{target} is there already: remove it, or name another folder")
    scrub = scrub or new_scrubber()
    scrub.folders.add(target.name)
    before, lines = scrub.counts.copy(), list[str]()
    with_captures = max(capture_ms, capture_tokens) > 0
    try:
        partial.mkdir(parents=True)
        # Devices as the run was told them come first: they get the first numbers.
        start = RECORDS[START](scrub, read_object(source.folder / START)) if START in source.manifest.files else None
        manifest = RECORDS[MANIFEST](
            scrub, {name: value for name, value in source.manifest.plain().items() if name != "files"}
        )
        if not with_captures:
            manifest["captures"] = []
        for step in STEPS:
            for trial in _trials(source, step):
                _share_trial(source, step, trial, partial, scrub, packed)
            capture_file = capture_folder(source.folder, step) / CAPTURE
            if with_captures and capture_file.relative_to(source.folder).as_posix() in source.manifest.files:
                lines += _share_capture(source, step, partial, (capture_ms, capture_tokens), scrub, packed)
        copied = {file.relative_to(partial).as_posix() for file in partial.rglob("*") if file.is_file()}
        scrub.counts[FILES] += len(set(source.manifest.files) - copied - {START})
        counts = _since(scrub, before)
        if start is not None:
            write_json(partial / START, _with_counts(start, counts))
        files = {name: entry.plain() for name, entry in checksums(partial).items()}
        write_json(partial / MANIFEST, _with_counts(manifest, counts) | {"files": files})
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target, LeftOut(counts, lines)


def share_sweep(
    sweep: Path, parent: Path, capture_ms: float, capture_tokens: float = 0.0, packed: bool = False
) -> tuple[Path, LeftOut]:
    """`share` for a sweep: its plan, and the run of every cell that is done; (the new folder, what was left out).

    Raises InputError as `share` does, and for a sweep of which no cell is done.
    """
    source = open_sweep(sweep)
    target = parent / source.sweep_id
    if target.exists():
        raise InputError(f"{target} is there already: remove it, or name another folder")
    if not source.runs:
        raise InputError(f"{sweep}: no cell of this sweep is done: there is nothing to share")
    scrub, left_out = new_scrubber(), LeftOut(Counter(), [])
    scrub.folders.add(target.name)
    try:
        plan = RECORDS[SWEEP](scrub, read_object(sweep / SWEEP))
        for name, run in source.runs.items():
            runs = cell_runs(cell_folder(target, name))
            _, of_run = share(run.folder, runs, capture_ms, scrub, capture_tokens, packed)
            left_out.lines += [line for line in of_run.lines if line not in left_out.lines]
        for cell in source.cells:
            if cell.status != NOT_RUN:
                folder = cell_folder(target, cell.name)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / CELL, RECORDS[CELL](scrub, read_object(cell_folder(sweep, cell.name) / CELL)))
                others = ("params.yaml", "run.log")
                scrub.counts[FILES] += sum((cell_folder(sweep, cell.name) / other).is_file() for other in others)
        left_out.counts = _since(scrub, Counter())
        write_json(target / SWEEP, _with_counts(plan, left_out.counts))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target, left_out


def _since(scrub: Scrubber, before: Counter[str]) -> Counter[str]:
    return Counter({kind: count for kind, count in (scrub.counts - before).items() if count})


def _with_counts(plain: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """A record that says how much was replaced, in this share and in those before it."""
    removed = Counter((plain.get("shared") or {}).get("removed") or {}) + counts
    return plain | {"shared": {"removed": {kind: removed[kind] for kind in KINDS if removed[kind]}}}


def _trials(source: Run, step: str) -> list[int]:
    return sorted({row.trial for row in source.manifest.trials if row.step == step})


def _share_trial(source: Run, step: str, trial: int, target: Path, scrub: Scrubber, packed: bool) -> None:
    """The record and the frames of one trial, as far as the manifest lists them; `packed`: frames written anew."""
    folder, into = trial_folder(source.folder, step, trial), trial_folder(target, step, trial)
    listed = source.manifest.files
    if (folder / TRIAL).relative_to(source.folder).as_posix() in listed:
        into.mkdir(parents=True, exist_ok=True)
        write_json(into / TRIAL, RECORDS[TRIAL](scrub, read_object(folder / TRIAL)))
    for name, columns in FRAMES.items():
        file = frame_file(folder, name)
        if file.relative_to(source.folder).as_posix() not in listed:
            continue
        source.frame(step, trial, name)  # checked against the schema, so that a wrong one ends in a sentence
        values = pq.read_table(file, columns=list(columns)).to_pydict()
        plain = _plain(file, name) and not packed
        into.mkdir(parents=True, exist_ok=True)
        for column in columns:
            rule = FRAME_TEXTS.get((name, column))
            if rule is not None:
                shared = {value: rule(scrub, value) for value in dict.fromkeys(values[column])}
                plain &= all(value == instead for value, instead in shared.items())
                values[column] = [shared[value] for value in values[column]]
        if plain:
            shutil.copyfile(file, into / file.name)
        else:
            write_frame(into, name, values)


def _plain(file: Path, frame: str) -> bool:
    """Whether a parquet file holds nothing beside its columns: no metadata of pandas or of somebody's own."""
    footer, schema = pq.read_metadata(file), pq.read_schema(file)
    known = set(footer.metadata or {}) <= {b"ARROW:schema"} and bool(WRITER.fullmatch(footer.created_by))
    return known and schema.equals(arrow_schema(frame), check_metadata=True)


def _share_capture(
    source: Run, step: str, target: Path, keep: tuple[float, float], scrub: Scrubber, packed: bool
) -> list[str]:
    folder, into = capture_folder(source.folder, step), capture_folder(target, step)
    facts = CaptureFacts.read(folder / CAPTURE)
    shared = RECORDS[CAPTURE](scrub, facts.plain())
    into.mkdir(parents=True)
    lines: list[str] = []
    if facts.status == "done":
        capture = read_capture(source.folder, step)
        window_ns, window_s = _middle(capture, facts.window_ns or [], _kept_ms(facts, *keep))
        pids = {pid for group in (facts.pids or {}).values() for pid in group}
        pids |= host_pids(capture.capture, pids)
        for file, export in zip(capture.files, capture.capture.exports, strict=True):
            part_s = None if window_s is None else _on_export_clock(window_s, export)
            made = into / file.name.removesuffix(PACKED)
            left_out = redact(unpacked(file), made, pids, part_s, scrub)
            if packed:
                pack(made)
            which = f"{step} {made.stem}" if len(capture.files) > 1 else step
            lines += [f"{which}: {line}" for line in left_out.lines]
        if window_ns != facts.window_ns:
            shared |= {"window_ns": window_ns, "recorded_window_ns": facts.recorded_window_ns or facts.window_ns}
    write_json(into / CAPTURE, shared)
    return lines


def _kept_ms(facts: CaptureFacts, least_ms: float, tokens: float) -> float:
    """How much of a capture is kept: `least_ms`, or what so many tokens of gen took at the rate it was captured at."""
    rate = facts.profiled and facts.profiled.gen_tokens_per_s
    return max(least_ms, tokens / rate * 1e3) if rate else least_ms


def _on_export_clock(window_s: tuple[float, float], export: ExportFacts) -> tuple[float, float]:
    """A window on a capture's clock, on that of one of its exports: each session counts from its own start."""
    shift_s = clock_shift(export, export.clock_start_ns) / 1e9
    return window_s[0] - shift_s, window_s[1] - shift_s


def _middle(capture: StepCapture, window_ns: list[int], keep_ms: float) -> tuple[list[int], tuple[float, float] | None]:
    """The middle `keep_ms` of a capture's window: in monotonic ns, and in seconds on the export's clock.

    A window that is no longer stays as it is, and so does what was recorded around it where it was cut before (None).
    """
    if capture.window_s is None:
        raise InputError(f"{capture.step}: its capture does not say where its window lies: record it again")
    if window_ns[1] - window_ns[0] <= keep_ms * NS_PER_MS and capture.facts.recorded_window_ns is not None:
        return window_ns, None
    half_ns = min(int(keep_ms * NS_PER_MS), window_ns[1] - window_ns[0]) // 2
    middle_ns = (window_ns[0] + window_ns[1]) // 2
    middle_s = sum(capture.window_s) / 2
    return [middle_ns - half_ns, middle_ns + half_ns], (middle_s - half_ns / 1e9, middle_s + half_ns / 1e9)
