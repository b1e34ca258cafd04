"""What the devices and processes did during a trial: one sampler process, a row an entity a sample.

    python -m colo_lib.capture.telemetry '{"out": FILE, "hz": 10, "device": "cpu", "workloads": {"gen": [PID]}, …}'

On NVIDIA GPUs through nvidia-ml-py, on a CPU through psutil: the same rows. A field that the device does not
have is null. Rows go out as JSON lines, so that a sampler that dies loses nothing it had seen; it ends on SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from colo_lib.frames import write_frame
from colo_lib.schema import TELEMETRY

TREE_REFRESH_S = 1.0
GIB = 2.0**30


class Tree:
    """The processes of one workload: its roots and all below them, looked up anew every second."""

    def __init__(self, roots: list[int]) -> None:
        self.roots, self.looked_s = roots, -TREE_REFRESH_S
        self.processes: list[psutil.Process] = []
        self.last: dict[int, float] = {}
        self.last_t = time.monotonic()

    def refresh(self) -> None:
        """Find the tree's members, at most once a second."""
        if time.monotonic() - self.looked_s < TREE_REFRESH_S:
            return
        self.looked_s, found = time.monotonic(), []
        for root in self.roots:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(root)
                found += [process, *process.children(recursive=True)]
        self.processes = found

    def sample(self) -> dict[str, Any]:
        """CPU cores in use since the last call, resident memory in GiB (shared pages counted once a process)."""
        self.refresh()
        used_s, resident, alive, now = 0.0, 0, 0, time.monotonic()
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total = times.user + times.system
                used_s += max(0.0, total - self.last.get(process.pid, total))
                self.last[process.pid] = total
                resident += process.memory_info().rss
                alive += 1
        elapsed_s, self.last_t = now - self.last_t, now
        cores = used_s / elapsed_s if elapsed_s > 0 else None
        return {"cpu_cores": cores, "memory_used_gib": resident / GIB, "processes": alive}


def cpu_devices(cores: list[str]) -> Callable[[], list[dict[str, Any]]]:
    """A sampler of the cores that stand in for devices."""
    psutil.cpu_percent(percpu=True)

    def sample() -> list[dict[str, Any]]:
        percents, used = psutil.cpu_percent(percpu=True), psutil.virtual_memory()
        frequencies = psutil.cpu_freq(percpu=True) or []
        rows = []
        for core in map(int, cores):
            clock = frequencies[core].current if core < len(frequencies) else None
            memory = {"memory_used_gib": (used.total - used.available) / GIB}
            rows.append(
                {"name": str(core), "utilization": percents[core] / 100, "sm_clock_mhz": clock or None} | memory
            )
        return rows

    return sample


def device_sampler(job: dict[str, Any]) -> Callable[[], list[dict[str, Any]]]:
    """The sampler for the kind of device of the run."""
    if job["device"] == "cpu":
        return cpu_devices(job["devices"])
    from colo_lib.capture.nvml import gpu_devices

    return gpu_devices(job["devices"])


def main() -> None:
    """Sample until SIGTERM, at the rate asked for; the last line tells what the sampling itself cost."""
    job = json.loads(sys.argv[1])
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.__setitem__(0, False))
    trees = {name: Tree(roots) for name, roots in job["workloads"].items() if roots}
    devices, period_s = device_sampler(job), 1.0 / job["hz"]
    began_s, began_cpu_s, samples = time.monotonic(), time.process_time(), 0
    with open(job["out"], "w", buffering=1) as out:
        while going[0]:
            t_ns = time.monotonic_ns()
            rows = [{"scope": "device"} | row for row in devices()]
            rows += [{"scope": "workload", "name": name} | tree.sample() for name, tree in trees.items()]
            out.writelines(json.dumps({"t_ns": t_ns} | row) + "\n" for row in rows)
            samples += 1
            time.sleep(max(0.0, began_s + samples * period_s - time.monotonic()))
        cost = (time.process_time() - began_cpu_s) / max(1e-9, time.monotonic() - began_s)
        out.write(json.dumps({"cost": {"cpu_fraction": cost, "samples": samples}}) + "\n")


def convert(lines: Path, folder: Path) -> dict[str, Any]:
    """JSON lines to telemetry.parquet; returns the sampler's own cost, empty when it died before telling."""
    rows, cost = [], {}
    for line in lines.read_text().splitlines() if lines.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if "cost" in row:
                cost = row["cost"]
            else:
                rows.append(row)
    write_frame(folder, "telemetry", {name: [row.get(name) for row in rows] for name in TELEMETRY} if rows else {})
    return cost


if __name__ == "__main__":
    main()
