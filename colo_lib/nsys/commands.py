"""Nsight Systems' command lines and what its answers mean: pure functions, tried with nsys 2024.2 on CPU and GPU hosts.

One session holds everything that is started below `nsys launch`; it records only between `start` and `stop`, so the
engines load and warm up untraced. A second `nsys launch` into a running session is refused by nsys itself, hence one
process that starts both workloads (`nsys.engine_host`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

USUAL_PLACES = (
    "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
    "/opt/nvidia/nsight-systems-cli/*/target-linux-x64/nsys",
    "/usr/local/cuda*/bin/nsys",
)
# Calls of the C library shorter than this say nothing and cost much: ns.
OSRT_THRESHOLD_NS = 10_000
NO_CONTEXT_SWITCHES = re.compile(r"context switch\w* (tracing|trace) (is not|isn't|was not)|--gpuctxsw", re.IGNORECASE)


def find_nsys() -> Path | None:
    """The nsys on PATH, else the newest where NVIDIA's packages put it, else None."""
    on_path = shutil.which("nsys")
    if on_path:
        return Path(on_path)
    for pattern in USUAL_PLACES:
        matches = sorted(Path("/").glob(pattern.lstrip("/")))
        if matches:
            return matches[-1]
    return None


def version_command(nsys: Path) -> list[str]:
    """Asks for the version."""
    return [str(nsys), "--version"]


def parse_version(said: str) -> str | None:
    """`2024.2.3.38` of 'NVIDIA Nsight Systems version 2024.2.3.38-…'; None when it says something else."""
    match = re.search(r"version (\d{4}\.\d+(?:\.\d+)*)", said)
    return match[1] if match else None


def launch_command(nsys: Path, session: str, device: str, graph_trace: str, command: Sequence[str]) -> list[str]:
    """Starts `command` in a new session in which nothing is recorded yet.

    `device` cuda: CUDA and NVTX, CUDA graphs by `graph_trace` (node: every kernel; graph: each graph as a whole);
    cpu: the C library's calls, which is all there is to trace.
    """
    words = [str(nsys), "launch", f"--session-new={session}", "--wait=primary", "--show-output=true"]
    if device == "cpu":
        return [*words, "--trace=osrt", f"--osrt-threshold={OSRT_THRESHOLD_NS}", *command]
    return [*words, "--trace=cuda,nvtx", f"--cuda-graph-trace={graph_trace}", *command]


def start_command(nsys: Path, session: str, report: Path, context_switches: bool) -> list[str]:
    """Begins to record into `report` (without suffix); CPU sampling stays off, it would disturb what is measured."""
    words = [str(nsys), "start", f"--session={session}", f"--output={report}", "--force-overwrite=true"]
    words += ["--sample=none", "--cpuctxsw=none", "--stop-on-exit=true"]
    return words + (["--gpuctxsw=true"] if context_switches else [])


def stop_command(nsys: Path, session: str) -> list[str]:
    """Ends recording and has the report written; the session and its processes stay."""
    return [str(nsys), "stop", f"--session={session}"]


def export_command(nsys: Path, report: Path, sqlite: Path) -> list[str]:
    """Writes a report as SQLite."""
    return [str(nsys), "export", "--type=sqlite", "--force-overwrite=true", f"--output={sqlite}", str(report)]


def context_switches_granted(said: str) -> bool:
    """Whether `start` with context switches was carried out as asked, by what it said."""
    return not NO_CONTEXT_SWITCHES.search(said)


def conflicting_words(words: Sequence[str]) -> list[str]:
    """Server arguments that make a torch profiler subscribe to CUPTI, which serves one subscriber at a time."""
    return [word for word in words if re.match(r"--?(profiler[-_.]config|torch[-_]profiler|profile)", word)]
