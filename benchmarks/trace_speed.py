"""How fast is `colo trace`? Ratios against Nsight Systems' own statistics, in one run on one file.

    python benchmarks/trace_speed.py --nsys /path/to/nsys          a million kernels, and ten million
    python benchmarks/trace_speed.py --sizes 1000000               without nsys: our own times alone

For each size an export with two processes is planted; then, in turn, `nsys stats -r cuda_gpu_kern_sum` makes its one
table and `colo trace --json` makes everything, as whole processes, without a cache. The best of `--repeats` counts for
both; peak memory is that of `colo trace` and its readers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

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


def best(command: list[str], repeats: int, **options: Any) -> tuple[float, float]:
    """Best wall and best CPU seconds of `repeats` runs of a whole process and its children."""
    walls, cpus = [], []
    for _ in range(repeats):
        began, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        after = os.times()
        walls.append(time.perf_counter() - began)
        cpus.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return min(walls), min(cpus)


def trace(file: Path, repeats: int) -> tuple[float, float, float]:
    """Best wall and CPU seconds of `colo trace --json`, and its peak resident memory in GB with all its readers'."""
    command = [sys.executable, "-m", "colo_lib.cli", "trace", str(file), "--json"]
    environment = os.environ | {"COLO_EXPORT_CACHE": "", "PYTHONPATH": str(ROOT)}
    wall, cpu = best(command, repeats, env=environment)
    code = f"import subprocess, resource; subprocess.run({command!r}, check=True, stdout=-3); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout)
    readers = resource_of_a_reader() * len(os.sched_getaffinity(0))
    return wall, cpu, (peak + readers) * 1024 / 1e9


def resource_of_a_reader() -> int:
    """Peak kB of one reading process: an interpreter with the standard library's sqlite3 and some blocks of rows."""
    code = "import json, sqlite3, array, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    return int(subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True).stdout) + 4_000


def main() -> int:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nsys", default=shutil.which("nsys"), help="Nsight Systems (default: the one on the PATH)")
    parser.add_argument("--sizes", default="1000000,10000000", help="numbers of kernels, by comma")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plant", type=Path, metavar="FILE", help="only write an export of the (first) size")
    options = parser.parse_args()
    if options.plant:
        plant(options.plant, int(options.sizes.split(",")[0]))
        return 0
    print(
        f"{len(os.sched_getaffinity(0))} cores; best of {options.repeats}; load {os.getloadavg()[0]:.1f} at the start\n"
    )
    print(
        "| kernels | export | nsys stats (1 table) | colo trace (everything) | ratio | CPU us a kernel | peak memory |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for size in (int(word) for word in options.sizes.split(",")):
            file = Path(folder) / f"{size}.sqlite"
            # In a process of its own: a child's peak memory begins with what its parent holds.
            subprocess.run([sys.executable, __file__, "--plant", str(file), "--sizes", str(size)], check=True)
            seconds, cpu, peak = trace(file, options.repeats)
            stats = [str(options.nsys), "stats", "-r", "cuda_gpu_kern_sum", str(file)]
            theirs = best(stats, options.repeats)[0] if options.nsys else None
            told = (f"{theirs:.2f} s", f"{seconds / theirs:.2f}") if theirs else ("no nsys here", "—")
            size_mb = f"{file.stat().st_size / 1e6:,.0f} MB"
            print(f"| {size:,} | {size_mb} | {told[0]} | {seconds:.2f} s | {told[1]} | {cpu / size * 1e6:.2f} | "
                  f"{peak:.2f} GB |", flush=True)  # fmt: skip
            file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
