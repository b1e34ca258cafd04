"""Trial records to one tidy frame: a row a trial, in the order in which they ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from colo_lib.errors import InputError

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


def trials_frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a trial with the columns of `COLUMNS`; absent values are null, rates are per second, memory in GiB.

    Raises InputError for a trial that counts but has no window.
    """
    rows = [{name: _lookup(record, place) for name, place in COLUMNS.items()} | _starts(record) for record in records]
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
