"""Planted run folders and planted measures, for every test that reads a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.examples.captures import EMBED_PID, GEN_PID, simulated_capture
from colo_lib.examples.simulated_run import planted_rates, start_of_block, write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.paths import MANIFEST, capture_folder
from colo_lib.steps import STEPS

__all__ = ["Plan", "add_capture", "change_manifest", "planted_measures", "reseal", "write_run"]


def planted_measures(plan: Plan, gap_p99_ms: dict[str, float] | None = None) -> pd.DataFrame:
    """`trial_metrics.measure_trials` of `plan` without frames: enough for kept fractions and the verdict."""
    rates = planted_rates(plan)
    steps, starts = list(rates["step"]), [start_of_block(plan)[block] for block in rates["block"]]
    gaps, rng = gap_p99_ms or {}, np.random.default_rng(plan.seed + 1)
    both, dedicated = ("0", "1"), [step == "configA" for step in steps]
    # In one piece: column by column would take most of the time of tests that plant thousands.
    return pd.DataFrame(
        {name: rates[name].to_numpy() for name in rates}
        | {
            "gap_p99_ms": [gaps.get(step, 20.0) * np.exp(rng.normal(0, plan.noise)) for step in steps],
            "gap_count": 5000.0,
            "mechanism": [STEPS[step].mechanism_on("cpu") for step in steps],
            "status": "done",
            "gen_start": [f"gen-{start}" for start in starts],
            "embed_start": [f"embed-{start}" for start in starts],
            "gen_devices": [("0",) if alone else both for alone in dedicated],
            "embed_devices": [("1",) if alone else both for alone in dedicated],
        }
    )


def change_manifest(run: Path, **changes: Any) -> None:
    """Put `changes` on top of a run's manifest."""
    file = run / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


def reseal(run: Path, name: str) -> None:
    """Let the manifest hold the size and checksum that file `name` has now."""
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    content = (run / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(run, files={**manifest["files"], name: entry})


def add_capture(run: Path, step: str, **changes: Any) -> Path:
    """Put a simulated capture of `step` into a run, as the capture room leaves one; gives its folder."""
    folder = capture_folder(run, step)
    folder.mkdir(parents=True)
    simulated_capture(folder / "trace.sqlite", step)
    session_utc_ns = 1_795_435_813_758_566_457
    facts = {
        "schema_version": 1, "step": step, "mechanism": STEPS[step].mechanism,
        "status": "done", "reason": None, "window_ns": [5_010_000_000, 5_050_000_000],
        "clock": {"monotonic_ns": 5_000_000_000, "utc_ns": session_utc_ns}, "traced": "cuda", "granularity": "node",
        "pids": {"gen": [GEN_PID - 1, GEN_PID], "embed": [EMBED_PID]}, "context_switches": True,
        "profiled": {"gen_tokens_per_s": 90.0 if step != "step4" else None,
                     "embed_sequences_per_s": 40.0 if step != "step1" else None},
        "exports": ["trace.sqlite"],
    }  # fmt: skip
    (folder / "capture.json").write_text(json.dumps(facts | changes), encoding="utf-8")
    for name in ("trace.sqlite", "capture.json"):
        reseal(run, (folder / name).relative_to(run).as_posix())
    return folder
