"""The process that samples devices and workloads; `telemetry.watchdog` starts it and watches over it.

    python -m colo_lib.telemetry.sampler '{"out": FILE, "hz": 10, "device": "cpu", "workloads": {"gen": [PID]}, …}'

On NVIDIA GPUs through nvidia-ml-py, on a CPU through psutil: the same rows, as JSON lines, so that a sampler that
dies loses nothing it had seen. A field without an answer is null, and a line of its own says why. SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import psutil

from colo_lib.telemetry.other_processes import OtherProcesses
from colo_lib.telemetry.watchdog import SamplerJob

TREE_REFRESH_S = 1.0
GIB = 2.0**30
NOT_OURS = "NVML lists none of this workload's pids: it names those of the host, which a container does not see"


class Tree:
    """The processes of one workload: its roots and all below them, looked up anew every second."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.roots, self.looked_s = roots, -TREE_REFRESH_S
        self.processes: list[psutil.Process] = []
        self.last: dict[int, float] = {}
        self.last_t = time.monotonic()

    def refresh(self) -> None:
        """Find the tree's members, at most once a second."""
        if time.monotonic() - self.looked_s < TREE_REFRESH_S:
            return
        self.looked_s, processes = time.monotonic(), []
        for root in self.roots:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(root)
                processes += [process, *process.children(recursive=True)]
        self.processes = processes

    def sample(self) -> dict[str, Any]:
        """CPU cores in use since the last call, resident memory in GiB (shared pages counted once a process)."""
        self.refresh()
        used_s, resident, alive, began_s = 0.0, 0, 0, time.monotonic()
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total = times.user + times.system
                used_s += max(0.0, total - self.last.get(process.pid, total))
                self.last[process.pid] = total
                resident += process.memory_info().rss
                alive += 1
        # The times were read from then to now: a sampler that waited for its core meanwhile is off by half of that.
        now_s = (began_s + time.monotonic()) / 2
        elapsed_s, self.last_t = now_s - self.last_t, now_s
        cores = used_s / elapsed_s if elapsed_s > 0 else None
        return {"cpu_cores": cores, "memory_used_gib": resident / GIB, "processes": alive}


class Devices(Protocol):
    """What a kind of device must answer."""

    def rows(self) -> list[dict[str, Any]]:
        """A row a device."""

    def memory_gib(self, tree: Tree) -> dict[str, float | None]:
        """What replaces a workload's resident memory, if anything."""

    def pids(self) -> set[int]:
        """Processes that compute on devices of their own."""

    def totals_gib(self) -> dict[str, float]:
        """All memory of each device that has its own."""

    def absent(self) -> dict[str, dict[str, str]]:
        """Reasons by field by device of what had no answer so far."""


class Cores:
    """The cores that stand in for devices."""

    def __init__(self, cores: Sequence[str]) -> None:
        self.cores = [int(core) for core in cores]
        psutil.cpu_percent(percpu=True)

    def rows(self) -> list[dict[str, Any]]:
        """Utilisation and clock of each core, memory of the machine."""
        percents, used = psutil.cpu_percent(percpu=True), psutil.virtual_memory()
        frequencies = psutil.cpu_freq(percpu=True) or []
        rows = []
        for core in self.cores:
            clock = frequencies[core].current if core < len(frequencies) else None
            memory = {"memory_used_gib": (used.total - used.available) / GIB}
            rows.append(
                {"name": str(core), "utilization": percents[core] / 100, "sm_clock_mhz": clock or None} | memory
            )
        return rows

    def memory_gib(self, tree: Tree) -> dict[str, float | None]:
        """Resident memory is the workload's memory here."""
        return {}

    def pids(self) -> set[int]:
        """Everything computes on cores: `telemetry.other_processes` counts them by time."""
        return set()

    def totals_gib(self) -> dict[str, float]:
        """Cores have no memory of their own."""
        return {}

    def absent(self) -> dict[str, dict[str, str]]:
        """Nothing that a core could be expected to answer."""
        return {}


class Gpus:
    """NVIDIA GPUs by index or UUID."""

    def __init__(self, names: Sequence[str]) -> None:
        from colo_lib.telemetry.gpu_metrics import SampledGpu

        self.gpus = [SampledGpu(name) for name in names]
        self.process_bytes: dict[int, int] = {}
        self.process_pids: set[int] = set()

    def rows(self) -> list[dict[str, Any]]:
        """A row a GPU; also looks up what each process holds on them."""
        rows = [gpu.sample() for gpu in self.gpus]
        self.process_bytes, self.process_pids = {}, set()
        for gpu in self.gpus:
            for pid, held in gpu.process_bytes().items():
                self.process_pids.add(pid)
                if held is not None:
                    self.process_bytes[pid] = self.process_bytes.get(pid, 0) + held
        return rows

    def memory_gib(self, tree: Tree) -> dict[str, float | None]:
        """Device memory of the workload's processes, null when NVML names none of them."""
        held = [self.process_bytes[process.pid] for process in tree.processes if process.pid in self.process_bytes]
        if not held:
            self.gpus[0].absent.setdefault("memory of a workload", NOT_OURS)
        return {"memory_used_gib": sum(held) / GIB if held else None}

    def pids(self) -> set[int]:
        """Processes on the GPUs at the last sample, MPS clients and servers among them."""
        return self.process_pids

    def totals_gib(self) -> dict[str, float]:
        """Memory of each GPU."""
        return {gpu.name: total for gpu in self.gpus if (total := gpu.total_gib()) is not None}

    def absent(self) -> dict[str, dict[str, str]]:
        """The reasons that NVML gave."""
        return {gpu.name: gpu.absent for gpu in self.gpus if gpu.absent}


def next_due(due_s: float, period_s: float, now_s: float) -> float:
    """When to sample next: a period after `due_s`, or where that is past, as near as half a period from now.

    What was missed is not caught up on: CPU times come in ticks of 10 ms, which over a millisecond are ten cores.
    """
    return max(due_s + period_s, now_s + period_s / 2)


def main() -> None:
    """Sample until SIGTERM, at the rate asked for; the last line tells what the sampling itself cost."""
    job = SamplerJob(**json.loads(sys.argv[1]))
    # Blocked and waited for: the wait between two samples ends at once when the signal comes.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trees = {name: Tree(roots) for name, roots in job.workloads.items() if roots}
    devices: Devices = Cores(job.devices) if job.device == "cpu" else Gpus(job.devices)
    strangers = OtherProcesses(job.owner_pid)
    period_s, absent_before = 1.0 / job.hz, ""
    began_s, began_cpu_s, samples, longest_s = time.monotonic(), time.process_time(), 0, 0.0
    due_s = began_s
    with open(job.out, "a", buffering=1) as out:
        out.write(json.dumps({"totals_gib": devices.totals_gib()}) + "\n")
        ended = False
        while not ended:
            t_ns = time.monotonic_ns()
            rows = [{"scope": "device"} | row for row in devices.rows()]
            rows += [
                {"scope": "workload", "name": name} | tree.sample() | devices.memory_gib(tree)
                for name, tree in trees.items()
            ]
            # One write a sample: the watcher takes a file that grows for a sampler that lives.
            out.write("".join(json.dumps({"t_ns": t_ns} | row) + "\n" for row in rows))
            if (seen := strangers.look(devices.pids(), t_ns)) is not None:
                out.write(json.dumps({"seen": asdict(seen)}) + "\n")
            if (absent := json.dumps({"absent": devices.absent()})) != absent_before:
                out.write(absent + "\n")
                absent_before = absent
            samples, longest_s = samples + 1, max(longest_s, (time.monotonic_ns() - t_ns) / 1e9)
            due_s = next_due(due_s, period_s, time.monotonic())
            ended = signal.sigtimedwait({signal.SIGTERM}, max(0.0, due_s - time.monotonic())) is not None
        lasted_s = max(1e-9, time.monotonic() - began_s)
        cost = {
            "cpu_fraction": (time.process_time() - began_cpu_s) / lasted_s,
            "samples": samples,
            "hz": samples / lasted_s,
            "longest_sample_ms": longest_s * 1e3,
        }
        out.write(json.dumps({"cost": cost}) + "\n")


if __name__ == "__main__":
    main()
