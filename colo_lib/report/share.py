"""A run fit to share: the frames whole, captures cut to a few milliseconds and redacted, no logs, no paths."""

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
from colo_lib.paths import CAPTURE, MANIFEST, PARTIAL, TRIAL

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
    params = start["params"] | {"runs_dir": "runs"}
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
