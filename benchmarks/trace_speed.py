"""How fast is `colo trace`? Ratios against Nsight Systems' own statistics, in one run on one file.

    python benchmarks/trace_speed.py --nsys /path/to/nsys          a million kernels, and ten million
    python benchmarks/trace_speed.py --sizes 1000000               without nsys: our own times alone
    python benchmarks/trace_speed.py --profile --sizes 1000000     where the time of one `colo trace` goes

For each size an export with two processes is planted. Then, in pairs, each on a fresh copy of it: `nsys stats -r
cuda_gpu_kern_sum` makes its one table, and `colo trace --json` makes everything, with a cache that is empty (first
time) and with what that left (again). All are whole processes. The ratios are medians over the pairs, which a machine
that others use shifts least; CPU seconds are those of the first time, with its readers'; peak memory is that of a first
time without a cache, all its processes together, memory that they share once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from colo_lib.examples.captures import global_pid, write_export  # noqa: E402

GEN, EMBED, NAMES = 777, 774, 80


def plant(file: Path, kernels: int) -> Path:
    """An export of `kernels` kernels: three quarters are gen's, small and with gaps, the rest embed's."""
    rng = np.random.default_rng(1)
    gen = kernels * 3 // 4
    embed = kernels - gen
    start = np.concatenate(
        [np.cumsum(rng.integers(2_000, 20_000, gen)), np.cumsum(rng.integers(10_000, 40_000, embed))]
    )
    end = start + np.concatenate([rng.integers(1_000, 9_000, gen), rng.integers(9_000, 30_000, embed)])
    order = np.argsort(start, kind="stable")
    name = np.concatenate([rng.integers(0, 60, gen), rng.integers(60, NAMES, embed)])[order]
    blocks = np.concatenate([rng.integers(1, 300, gen), rng.integers(100, 4_000, embed)])
    pid = np.concatenate([np.full(gen, global_pid(GEN)), np.full(embed, global_pid(EMBED))])
    table: dict[str, Any] = {
        "start": start[order], "end": end[order], "globalPid": pid[order], "demangledName": name, "shortName": name,
        "gridX": blocks[order], "correlationId": np.concatenate([np.arange(gen), np.arange(embed)])[order],
        "gridId": np.arange(kernels),
    }  # fmt: skip
    strings = [f"void vllm::kernel_{k}<c10::BFloat16, (int){k}>(c10::BFloat16 *, float *)" for k in range(NAMES)]
    processes = {GEN: "VLLM::EngineCore", EMBED: "embed_worker"}
    return write_export(file, {"CUPTI_ACTIVITY_KIND_KERNEL": table}, strings, processes)


def timed(command: list[str], **options: Any) -> tuple[float, float]:
    """Wall and CPU seconds of a whole process and its children."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - began, cpu


def trace_command(file: Path, cache: str) -> tuple[list[str], dict[str, str]]:
    """`colo trace --json` and its environment."""
    command = [sys.executable, "-m", "colo_lib.cli", "trace", str(file), "--json"]
    return command, os.environ | {"COLO_EXPORT_CACHE": cache, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Pair:
    """Seconds of one pair; `nsys` is None where there is none."""

    nsys: float | None
    first: float
    again: float
    cpu: float


def pair(planted: Path, nsys: str | None) -> Pair:
    """Time nsys and `colo trace`, twice, on copies that neither has seen."""
    with tempfile.TemporaryDirectory(dir=planted.parent) as folder:
        theirs, ours = Path(folder) / "theirs.sqlite", Path(folder) / "ours.sqlite"
        seconds = None
        if nsys:
            shutil.copyfile(planted, theirs)
            seconds = timed([nsys, "stats", "-r", "cuda_gpu_kern_sum", str(theirs)])[0]
            theirs.unlink()
        shutil.copyfile(planted, ours)
        command, environment = trace_command(ours, str(Path(folder) / "cache"))
        first, cpu = timed(command, env=environment)
        return Pair(seconds, first, timed(command, env=environment)[0], cpu)


def peak_gb(file: Path) -> float:
    """Most memory of `colo trace` and its readers at any time, sampled; what they share counts once."""
    command, environment = trace_command(file, "")
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    most = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            family = [process, *process.children(recursive=True)]
            most = max(most, sum(member.memory_full_info().pss for member in family))
        time.sleep(0.02)
    return most / 1e9


def profile(file: Path, most: int = 20) -> None:
    """Print where one process of `colo trace --json` spends its time, function by function, without a cache.

    Own seconds are those in the function itself, seconds with those it calls. Readers are processes of their own: what
    they do is waited for in `read`. The profiler itself slows small functions.
    """
    command, environment = trace_command(file, "")
    with tempfile.TemporaryDirectory() as folder:
        kept = str(Path(folder) / "profile")
        profiled = [sys.executable, "-m", "cProfile", "-o", kept, *command[1:]]
        subprocess.run(profiled, check=True, stdout=subprocess.DEVNULL, env=environment)
        stats: dict[Any, Any] = vars(pstats.Stats(kept))["stats"]
    whole = sum(own for _, _, own, _, _ in stats.values())
    print(f"{whole:.2f} s of one process\n\n| function | calls | own s | share | with what it calls, s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows = sorted(stats.items(), key=lambda item: -item[1][2])[:most]
    for (source, line, name), (_, calls, own, cumulated, _) in rows:
        place = f"{Path(source).name}:{line} {name}" if line else name
        print(f"| `{place.replace('|', '/')}` | {calls:,} | {own:.3f} | {own / whole:.0%} | {cumulated:.3f} |")


def main() -> int:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nsys", default=shutil.which("nsys"), help="Nsight Systems (default: the one on the PATH)")
    parser.add_argument("--sizes", default="1000000,10000000", help="numbers of kernels, by comma")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--plant", type=Path, metavar="FILE", help="only write an export of the (first) size")
    parser.add_argument("--profile", action="store_true", help="only tell where the time of one `colo trace` goes")
    options = parser.parse_args()
    if options.plant:
        plant(options.plant, int(options.sizes.split(",")[0]))
        return 0
    if options.profile:
        with tempfile.TemporaryDirectory() as folder:
            profile(plant(Path(folder) / "planted.sqlite", int(options.sizes.split(",")[0])))
        return 0
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} cores; median of {options.pairs} pairs; load {load:.1f} at the start\n")
    print("| kernels | export | nsys stats | first time | ratio | again | ratio | CPU us a kernel | peak memory |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for size in (int(word) for word in options.sizes.split(",")):
            file = Path(folder) / f"{size}.sqlite"
            # In a process of its own: a child's memory begins with what its parent holds.
            subprocess.run([sys.executable, __file__, "--plant", str(file), "--sizes", str(size)], check=True)
            print(row(size, file, [pair(file, options.nsys) for _ in range(options.pairs)]), flush=True)
            file.unlink()
    return 0


def row(size: int, file: Path, pairs: list[Pair]) -> str:
    """A row of the table; with several pairs the ratios' least and most stand behind their median."""

    def seconds(name: str) -> str:
        known = [getattr(item, name) for item in pairs if getattr(item, name) is not None]
        return f"{statistics.median(known):.2f} s" if known else "no nsys here"

    def ratio(name: str) -> str:
        ratios = [getattr(item, name) / item.nsys for item in pairs if item.nsys]
        return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "—"

    cpu = statistics.median(item.cpu for item in pairs) / size * 1e6
    told = [f"{size:,}", f"{file.stat().st_size / 1e6:,.0f} MB", seconds("nsys"), seconds("first"), ratio("first"),
            seconds("again"), ratio("again"), f"{cpu:.2f}", f"{peak_gb(file):.2f} GB"]  # fmt: skip
    return f"| {' | '.join(told)} |"


if __name__ == "__main__":
    sys.exit(main())
