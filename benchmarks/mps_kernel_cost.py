"""What being an MPS client costs a kernel: chains of dependent kernels in a CUDA graph, with MPS and without.

    python benchmarks/mps_kernel_cost.py            (needs a GPU, nvidia-cuda-mps-control and torch in this interpreter)

A decode step is a graph of some hundred to a thousand short kernels, each waiting for the one before it. Here such
graphs are replayed by a process of its own for every condition, one after the other on the same GPU: the time from one
kernel to the next, in us, and its ratio to the same graph without MPS. The daemon is our own, in a private folder.
Kernels are of two sorts: PyTorch's own, and straight lines of code of a given size on a given number of blocks, which
tell what of the price goes with a kernel's code and what with its blocks.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# kind -> float32 elements of the vector that each kernel adds one to: one block, every SM a block, a stream of memory.
ELEMENTS = {"one block": 256, "a block an SM": 132 * 1024, "64 MiB": 16 * 2**20}
# kind -> (rows, columns) of the bf16 matrix that a token's vector is multiplied with: Llama-3.1-8B's attention output
# and its gate and up projection, 34 and 235 MB; each product reads another matrix, as layers do.
PRODUCTS = {"product, 34 MB": (4096, 4096), "product, 235 MB": (4096, 28672)}
# Straight-line code: KiB of instructions x blocks of one warp. A link of the chain is one of eight such kernels, each
# with code of its own, so that none finds its instructions where the one before it left them.
CODE_KIB, BLOCKS, DIFFERENT_KERNELS = (1, 4, 16, 32), (1, 8, 132), 8
# CUDA Binary Utilities, "Instruction Set Reference": from Volta on an instruction is 128 bits.
INSTRUCTION_BYTES = 16
KERNELS, LARGE_KERNELS = 1000, 100
MATRICES = 4
REPLAYS = 30
# condition -> (under MPS, a second client beside it: None, "idle", additions to the environment)
CONDITIONS: dict[str, tuple[bool, str | None, dict[str, str]]] = {
    "no MPS": (False, None, {}),
    "MPS, alone": (True, None, {}),
    "MPS, idle client beside": (True, "idle", {}),
    "MPS, 99 % of the SMs": (True, None, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "99"}),
    "MPS, 50 % of the SMs": (True, None, {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}),
    "MPS, 1 connection": (True, None, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
    "MPS, 32 connections": (True, None, {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}),
    "MPS, below-normal priority": (True, None, {"CUDA_MPS_CLIENT_PRIORITY": "1"}),
    "no MPS, 1 connection": (False, None, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
    "no MPS, again": (False, None, {}),
}


def measure() -> dict[str, float]:
    """In a process of its own: us from kernel to kernel, median over replays; graphs by kind, and launches by hand."""
    import torch

    found = {}
    for kind, elements in ELEMENTS.items():
        vector = torch.zeros(elements, device="cuda")
        steps = [lambda vector=vector: vector.add_(1)] * (KERNELS if elements < 2**20 else LARGE_KERNELS)
        found |= both_ways(kind, steps)
    for kind, shape in PRODUCTS.items():
        matrices = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(MATRICES)]
        row = torch.randn(1, shape[0], device="cuda", dtype=torch.bfloat16)
        out = torch.empty(1, shape[1], device="cuda", dtype=torch.bfloat16)
        products = [lambda matrix=matrix, row=row, out=out: torch.mm(row, matrix, out=out) for matrix in matrices]
        found |= both_ways(kind, products * (LARGE_KERNELS // MATRICES))
    arguments = [torch.ones(1, device="cuda")]
    for kib in CODE_KIB:
        chain = [straight_line(kib, number) for number in range(DIFFERENT_KERNELS)]
        for blocks in BLOCKS:
            links = [functools.partial(link, (blocks, 1, 1), (32, 1, 1), arguments) for link in chain]
            found |= both_ways(f"{kib} KiB of code, {blocks} blocks", links * (KERNELS // DIFFERENT_KERNELS))
    return found


def straight_line(kib: int, number: int) -> Callable[..., None]:
    """A kernel of about `kib` KiB of instructions without a jump: multiplications and additions, each needing the last.

    `number` makes its code differ from its neighbours'.
    """
    import torch

    count = kib * 1024 // INSTRUCTION_BYTES
    source = f"""extern "C" __global__ void link(float* value) {{
        float x = value[0], a = x * {number + 2}.0f;
        #pragma unroll
        for (int i = 0; i < {count}; i++) x = fmaf(x, a, 0.5f);
        if (x == 12345.0f) value[0] = x;
    }}"""
    kernel: Callable[..., None] = torch.cuda._compile_kernel(source, "link")
    return kernel


def both_ways(kind: str, steps: Sequence[Callable[[], object]]) -> dict[str, float]:
    """us a step of a chain, replayed as a CUDA graph and launched by hand."""
    import torch

    for step in steps[: max(MATRICES, DIFFERENT_KERNELS)]:
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    launched = lambda: [step() for step in steps]  # noqa: E731
    return {kind: per_step_us(graph.replay, len(steps)), f"{kind}, launched": per_step_us(launched, len(steps))}


def per_step_us(run: Callable[[], object], steps: int) -> float:
    """Median over replays of the time that the device takes for `run`, by step."""
    import torch

    times_us = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times_us.append(start.elapsed_time(end) * 1e3 / steps)
    return statistics.median(times_us)


def idle() -> None:
    """A client that holds a context and does nothing until its standard input closes."""
    import torch

    torch.zeros(1, device="cuda")
    print("ready", flush=True)
    sys.stdin.read()


def under(environment: dict[str, str], beside: str | None) -> dict[str, float]:
    """`measure` in a child with these additions to the environment."""
    env = os.environ | environment
    words = [sys.executable, __file__]
    neighbour = None
    if beside:
        neighbour = subprocess.Popen([*words, "--as", beside], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
    try:
        done = subprocess.run([*words, "--as", "measure"], env=env, capture_output=True, check=True, timeout=300)
    finally:
        if neighbour is not None:
            neighbour.communicate(timeout=30)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def all_conditions(folder: Path) -> dict[str, dict[str, float]]:
    """Every condition, its MPS daemon started once and ended at the end."""
    pipes = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for path in pipes.values():
        Path(path).mkdir()
    control = "nvidia-cuda-mps-control"
    daemon = subprocess.Popen([control, "-f"], env=os.environ | pipes, stdout=subprocess.DEVNULL)
    found = {}
    try:
        for name, (mps, beside, additions) in CONDITIONS.items():
            try:
                found[name] = under(additions | (pipes if mps else {}), beside)
            except (subprocess.SubprocessError, OSError) as error:
                said = getattr(error, "stderr", b"") or b""
                print(f"{name}: {error} {said[-500:].decode(errors='replace')}", file=sys.stderr)
    finally:
        subprocess.run([control], input=b"quit\n", env=os.environ | pipes, timeout=60, check=False)
        daemon.terminate()
        daemon.wait()
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """A row a condition: us a kernel and, in brackets, the ratio to the first condition."""
    first = next(iter(found.values()))
    lines = ["| condition | " + " | ".join(first) + " |", "| --- |" + " ---: |" * len(first)]
    lines += [
        f"| {name} | " + " | ".join(f"{us:.2f} ({us / first[kind]:.2f})" for kind, us in row.items()) + " |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table; `--json FILE` keeps the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--as", dest="role", choices=["measure", "idle"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    if options.role == "measure":
        print(json.dumps(measure()))
    elif options.role == "idle":
        idle()
    else:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="mps-") as folder:
            found = all_conditions(Path(folder))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
        print(table(found))


if __name__ == "__main__":
    main()
