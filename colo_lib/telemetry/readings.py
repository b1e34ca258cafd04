"""What a sampler's file says once it was read: rows of a frame, and what a trial's record keeps of the sampling."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_lib.frames import TELEMETRY, column_limits, write_frame
from colo_lib.records import TelemetryCost, TelemetryFacts, TelemetryGap
from colo_lib.telemetry.other_processes import Seen

# A row of the frame, by its columns.
Sample = dict[str, Any]


@dataclass
class Telemetry:
    """What a sampler told: rows of the frame, its own cost, reasons of what is absent, gaps in the sampling."""

    rows: list[Sample] = field(default_factory=list)
    cost: TelemetryCost = field(default_factory=TelemetryCost)
    absent: dict[str, dict[str, str | None]] = field(default_factory=dict)
    gaps: list[TelemetryGap] = field(default_factory=list)
    totals_gib: dict[str, float | None] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def lost(self) -> list[str]:
        """Devices of which NVML said that they fell off the bus."""
        return [
            name
            for name, reasons in self.absent.items()
            if any("GpuIsLost" in str(reason) for reason in reasons.values())
        ]

    def record(self) -> TelemetryFacts:
        """The trial record's `telemetry`."""
        return TelemetryFacts(
            absent=self.absent, gaps=self.gaps, totals_gib=self.totals_gib,
            strangers_unknown=next((seen.unknown for seen in self.seen if seen.unknown), None),
        )  # fmt: skip

    def memory_gib(self, start_ns: int, end_ns: int) -> dict[str, float | None]:
        """Most device memory that each workload held in a window and the least that was free, GiB; null: not told."""
        most: dict[tuple[str, str], float] = {}
        for row in self.rows:
            if start_ns <= row["t_ns"] < end_ns and row["memory_used_gib"] is not None:
                key = (row["scope"], row["name"])
                most[key] = max(most.get(key, 0.0), row["memory_used_gib"])
        free = [
            total - most["device", name]
            for name, total in self.totals_gib.items()
            if total is not None and ("device", name) in most
        ]
        held = {name: most.get(("workload", name)) for name in ("gen", "embed")}
        return held | {"free": sum(free) if free else None}


def read_lines(lines: Path) -> Telemetry:
    """The sampler's lines; half a line and garbage are passed over."""
    telemetry = Telemetry()
    for line in lines.read_bytes().splitlines() if lines.exists() else []:
        try:
            row = json.loads(line)
            if isinstance(row, dict):
                _take(telemetry, row)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return telemetry


def _take(telemetry: Telemetry, row: dict[str, Any]) -> None:
    """What one line says."""
    if "cost" in row:
        telemetry.cost = TelemetryCost.model_validate(row["cost"])
    elif "absent" in row:
        telemetry.absent = {name: telemetry.absent.get(name, {}) | reasons for name, reasons in row["absent"].items()}
    elif "seen" in row:
        telemetry.seen.append(Seen.from_plain(row["seen"]))
    elif "totals_gib" in row:
        telemetry.totals_gib = row["totals_gib"]
    elif "event" in row:
        last_ns = telemetry.rows[-1]["t_ns"] if telemetry.rows else None
        telemetry.gaps.append(TelemetryGap(start_ns=last_ns, end_ns=None, reason=row["event"]["reason"]))
    elif (sample := checked_sample(row)) is not None:
        if telemetry.gaps and telemetry.gaps[-1].end_ns is None:
            telemetry.gaps[-1] = telemetry.gaps[-1].joined(end_ns=sample["t_ns"])
        telemetry.rows.append(sample)


def checked_sample(row: dict[str, Any]) -> Sample | None:
    """A row as `frames.TELEMETRY` has it, None for one that a dying sampler cannot have meant."""
    sample = {name: row.get(name) for name in TELEMETRY}
    for name, kind in TELEMETRY.items():
        value, wanted = sample[name], str if kind.startswith("string") else int if kind.startswith("int") else float
        whole_for_float = wanted is float and isinstance(value, int)
        right = isinstance(value, wanted) or whole_for_float
        if isinstance(value, bool) or not (right or (value is None and kind.endswith("?"))):
            return None
        least, most = column_limits("telemetry", name)
        if kind.endswith("?") and isinstance(value, int | float) and not least <= value <= most:
            sample[name] = None  # a driver's slip is no sample, and takes no other with it
    return sample


def convert(lines: Path, folder: Path) -> Telemetry:
    """JSON lines to telemetry.parquet; what they told, with no cost when the sampler died before telling it."""
    telemetry = read_lines(lines)
    columns = {name: [row[name] for row in telemetry.rows] for name in TELEMETRY} if telemetry.rows else {}
    write_frame(folder, "telemetry", columns)
    return telemetry
