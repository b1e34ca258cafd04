"""A run or a sweep fit to share: frames whole, captures cut to a few milliseconds and redacted, no logs, no paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from colo_lib.analyse.residency import host_pids
from colo_lib.capture.manifest import START, seal, write_json
from colo_lib.errors import InputError
from colo_lib.parse.captures import StepCapture, read_capture
from colo_lib.parse.exports import clock_shift
from colo_lib.parse.redact import HIDDEN, PATH, redact
from colo_lib.parse.run_folder import open_run
from colo_lib.parse.sweep import NOT_RUN, open_sweep
from colo_lib.paths import CAPTURE, CELL, MANIFEST, PARTIAL, SWEEP, TRIAL, cell_folder, cell_runs

NS_PER_MS = 1_000_000
# Of the start record: what names one machine and says nothing about the measurement.
MACHINE_NAMES = ("boot_id", "git_dirty")


def share(run: Path, parent: Path, capture_ms: float) -> tuple[Path, list[str]]:
    """Copy a finished run into `parent` under its own name; (the new folder, what was left out, a line each).

    Every trial stays as it was measured; of every capture the middle `capture_ms` are kept, with the window in its
    record moved accordingly. Raises InputError for a run that is damaged, unfinished, or there already.
    """
    source = open_run(run).folder
    target = parent / (source.name + PARTIAL)
    if (parent / source.name).exists() or target.exists():
        raise InputError(f"{parent / source.name} is there already: remove it, or name another folder")
    told = ["logs, executed notebooks, reports of Nsight Systems"]
    for record in sorted(source.glob(f"steps/*/trial-*/{TRIAL}")):
        folder = target / record.parent.relative_to(source)
        folder.mkdir(parents=True)
        for file in (record, *record.parent.glob("*.parquet")):
            shutil.copyfile(file, folder / file.name)
    for record in sorted(source.glob(f"steps/*/capture/{CAPTURE}")):
        told += _share_capture(source, record, target, capture_ms)
    start = _start(source, told)
    write_json(target / START, start)
    final = seal(target)
    finished = json.loads((source / MANIFEST).read_text())["finished_utc"]
    write_json(final / MANIFEST, json.loads((final / MANIFEST).read_text()) | {"finished_utc": finished})
    return final, told


def share_sweep(sweep: Path, parent: Path, capture_ms: float) -> tuple[Path, list[str]]:
    """`share` for a sweep: its plan, and the run of every cell that is done; (the new folder, what was left out).

    Raises InputError as `share` does, and for a sweep of which no cell is done.
    """
    found = open_sweep(sweep)
    target = parent / found.sweep_id
    if target.exists():
        raise InputError(f"{target} is there already: remove it, or name another folder")
    if not found.runs:
        raise InputError(f"{sweep}: no cell of this sweep is done: there is nothing to share")
    told: list[str] = []
    for name, run in found.runs.items():
        into = cell_runs(cell_folder(target, name))
        into.mkdir(parents=True)
        _, left = share(run.folder, into, capture_ms)
        told += [line for line in left if line not in told]
    for cell in found.cells:
        folder = cell_folder(target, cell.name)
        record = json.loads((cell_folder(sweep, cell.name) / CELL).read_text()) if cell.status != NOT_RUN else None
        if record is not None:
            folder.mkdir(parents=True, exist_ok=True)
            reason = record["reason"] and PATH.sub(HIDDEN, record["reason"].splitlines()[0])
            write_json(folder / CELL, record | {"host": "", "reason": reason})
    plan = json.loads((sweep / SWEEP).read_text())
    write_json(target / SWEEP, plan | {"params": plan["params"] | {"runs_dir": "runs", "sweeps_dir": "sweeps"}})
    return target, [*told, "what each cell's run said, its host, its params file"]


def _start(source: Path, told: list[str]) -> dict[str, Any]:
    """The start record without what names the machine or its paths."""
    start = json.loads((source / START).read_text())
    machine = {name: value for name, value in start["machine"].items() if name not in MACHINE_NAMES}
    gpu = {name: value for name, value in (machine.get("gpu") or {}).items() if name != "uuid"}
    settings = machine.get("vllm_settings") or {}
    machine |= {
        "gpu": gpu or None,
        "vllm_settings": {name: value for name, value in settings.items() if not value.startswith("/")},
    }
    told.append("the GPU's UUID, the boot id, vLLM settings that are paths")
    params = start["params"] | {"runs_dir": "runs", "sweeps_dir": "sweeps"}
    return start | {"machine": machine, "params": params, "shared": {"left_out": told}}


def _share_capture(source: Path, record: Path, target: Path, capture_ms: float) -> list[str]:
    step = record.parent.parent.name
    facts = json.loads(record.read_text())
    folder = target / record.parent.relative_to(source)
    folder.mkdir(parents=True)
    told: list[str] = []
    if facts["status"] == "done":
        capture = read_capture(source, step)
        window_ns, window_s = _middle(capture, facts["window_ns"], capture_ms)
        pids = {pid for group in facts["pids"].values() for pid in group}
        pids |= host_pids(capture.capture, pids)
        for file, export in zip(capture.files, capture.capture.exports, strict=True):
            own = _own_clock(window_s, export)
            left = redact(file, folder / file.relative_to(record.parent), pids, own)
            which = f"{step} {file.stem}" if len(capture.files) > 1 else step
            told += [f"{which}: {line}" for line in left.lines]
        facts |= {"window_ns": window_ns, "recorded_window_ns": facts["window_ns"], "command": facts["command"][1:]}
    # It quotes nsys and the engines' logs.
    if facts.get("joint_reason"):
        facts["joint_reason"] = PATH.sub(HIDDEN, facts["joint_reason"].splitlines()[0])
    write_json(folder / CAPTURE, facts)
    return told


def _own_clock(window_s: tuple[float, float], export: dict[str, Any]) -> tuple[float, float]:
    """A window on a capture's clock, on that of one of its exports: each session counts from its own start."""
    shift_s = clock_shift(export, export["clock_start_ns"]) / 1e9
    return window_s[0] - shift_s, window_s[1] - shift_s


def _middle(capture: StepCapture, window_ns: list[int], keep_ms: float) -> tuple[list[int], tuple[float, float]]:
    """The middle `keep_ms` of a capture's window: in monotonic ns, and in seconds on the export's clock."""
    if capture.window_s is None:
        raise InputError(f"{capture.step}: its capture does not say where its window lies: record it again")
    half_ns = min(int(keep_ms * NS_PER_MS), window_ns[1] - window_ns[0]) // 2
    middle_ns = (window_ns[0] + window_ns[1]) // 2
    middle_s = sum(capture.window_s) / 2
    return [middle_ns - half_ns, middle_ns + half_ns], (middle_s - half_ns / 1e9, middle_s + half_ns / 1e9)
