"""What the devices and processes did during a trial: a sampler of its own process, and one that watches over it.

    python -m colo_lib.telemetry.watchdog '{"out": FILE, "hz": 10, "device": "cpu", "workloads": {"gen": [PID]}, …}'

A lost GPU can crash or hang whoever asks it. So nothing here asks: the sampler (`telemetry.sampler`) does, and when it
dies or falls silent it is ended and started once more; what was missed is told as a gap. A trial never waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo_lib.frames import TELEMETRY, column_limits

FIRST_SAMPLE_S = 30.0  # without persistence mode the driver is loaded by the first one who asks
LEAST_SILENCE_S = 3.0
SILENT_PERIODS = 10
RESTARTS = 1
POLL_S = 0.1


class Watch:
    """One sampler at a time; `events` of its file say what became of those before."""

    def __init__(self, job: dict[str, Any], word: str) -> None:
        self.out, self.word = Path(job["out"]), word
        self.silence_s = max(LEAST_SILENCE_S, SILENT_PERIODS / job["hz"])
        self.restarts = 0
        self.start()

    def start(self) -> None:
        """Begin to sample."""
        self.began_s = self.grew_s = time.monotonic()
        self.size = self.first_size = self._size()
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "colo_lib.telemetry.sampler", self.word], stdin=subprocess.DEVNULL
        )

    def _size(self) -> int:
        return self.out.stat().st_size if self.out.exists() else 0

    def look(self) -> None:
        """End a silent sampler; start a dead one once more."""
        if self.process is None:
            return
        code, size, now_s = self.process.poll(), self._size(), time.monotonic()
        if size > self.size:
            self.size, self.grew_s = size, now_s
        allowed_s = self.silence_s if size > self.first_size else FIRST_SAMPLE_S
        if code is None and now_s - self.grew_s > allowed_s:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            self.ended(f"gave no sample for {allowed_s:g} s: a call to the driver hangs")
        elif code is not None and code != 0:
            self.ended(f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")

    def ended(self, how: str) -> None:
        """Tell how a sampler ended, and start the next one if that is still allowed."""
        again = self.restarts < RESTARTS
        event = {"t_ns": time.monotonic_ns(), "reason": f"the sampler {how}", "restarted": again}
        with open(self.out, "a") as out:
            # The dead one may have left half a line.
            out.write("\n" + json.dumps({"event": event}) + "\n")
        self.process = None
        if again:
            self.restarts += 1
            self.start()


def main() -> None:
    """Watch until SIGTERM, which our guardian sends to the sampler too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    watch = Watch(json.loads(sys.argv[1]), sys.argv[1])
    while signal.sigtimedwait({signal.SIGTERM}, POLL_S) is None:
        watch.look()
    if watch.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(watch.process.pid, signal.SIGTERM)
        watch.process.wait()


@dataclass
class Telemetry:
    """What a sampler told: rows of the frame, its own cost, reasons of what is absent, gaps in the sampling."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, dict[str, str]] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    totals_gib: dict[str, float] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)  # who computed beside us, a line a change

    def lost(self) -> list[str]:
        """Devices of which NVML said that they fell off the bus."""
        return [name for name, told in self.absent.items() if any("GpuIsLost" in reason for reason in told.values())]

    def record(self) -> dict[str, Any]:
        """The trial record's `telemetry`."""
        told = {"absent": self.absent, "gaps": self.gaps, "totals_gib": self.totals_gib}
        return told | {"strangers_unknown": next((one["unknown"] for one in self.seen if "unknown" in one), None)}

    def memory_gib(self, start_ns: int, end_ns: int) -> dict[str, float | None]:
        """Most device memory that each workload held in a window and the least that was free, GiB; null: not told."""
        most: dict[tuple[str, str], float] = {}
        for row in self.rows:
            if start_ns <= row["t_ns"] < end_ns and row["memory_used_gib"] is not None:
                key = (row["scope"], row["name"])
                most[key] = max(most.get(key, 0.0), row["memory_used_gib"])
        free = [total - most["device", name] for name, total in self.totals_gib.items() if ("device", name) in most]
        held = {name: most.get(("workload", name)) for name in ("gen", "embed")}
        return held | {"free": sum(free) if free else None}


def read_lines(lines: Path) -> Telemetry:
    """The sampler's lines; half a line and garbage are passed over."""
    found = Telemetry()
    open_gap: dict[str, Any] | None = None
    for line in lines.read_bytes().splitlines() if lines.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        if "cost" in row:
            found.cost = row["cost"]
        elif "absent" in row:
            found.absent = {name: found.absent.get(name, {}) | told for name, told in row["absent"].items()}
        elif "seen" in row:
            found.seen.append(row["seen"])
        elif "totals_gib" in row:
            found.totals_gib = row["totals_gib"]
        elif "event" in row:
            last_ns = found.rows[-1]["t_ns"] if found.rows else None
            open_gap = {"start_ns": last_ns, "end_ns": None, "reason": row["event"]["reason"]}
            found.gaps.append(open_gap)
        elif (sample := checked_sample(row)) is not None:
            if open_gap is not None:
                open_gap["end_ns"], open_gap = sample["t_ns"], None
            found.rows.append(sample)
    return found


def checked_sample(row: dict[str, Any]) -> dict[str, Any] | None:
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
    from colo_lib.frames import write_frame

    told = read_lines(lines)
    columns = {name: [row[name] for row in told.rows] for name in TELEMETRY} if told.rows else {}
    write_frame(folder, "telemetry", columns)
    return told


if __name__ == "__main__":
    main()
