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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_SAMPLE_S = 30.0  # without persistence mode the driver is loaded by the first one who asks
LEAST_SILENCE_S = 3.0
SILENT_PERIODS = 10
RESTARTS = 1
POLL_S = 0.1


@dataclass(frozen=True)
class SamplerJob:
    """What is sampled, how often, and into which file; both processes get it as JSON.

    `device` is cpu or cuda. `workloads`: root pids by name. `owner_pid` keeps the engines: its tree is the run's.
    """

    out: str
    hz: float
    device: str
    devices: Sequence[str]
    workloads: Mapping[str, Sequence[int]]
    owner_pid: int


class Watch:
    """One sampler at a time; `events` of its file say what became of those before."""

    def __init__(self, job: SamplerJob, word: str) -> None:
        self.out, self.word = Path(job.out), word
        self.silence_s = max(LEAST_SILENCE_S, SILENT_PERIODS / job.hz)
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
    watch = Watch(SamplerJob(**json.loads(sys.argv[1])), sys.argv[1])
    while signal.sigtimedwait({signal.SIGTERM}, POLL_S) is None:
        watch.look()
    if watch.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(watch.process.pid, signal.SIGTERM)
        watch.process.wait()


if __name__ == "__main__":
    main()
