"""A GPU host made of stand-ins: NVIDIA's programs and NVML on the path, and engines that compute on cores instead."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

STANDINS = Path(__file__).parent
# Runs what it is told by the engines' true interpreter, with the GPU's words turned into a CPU's.
INTERPRETER = """#!{python}
import json, os, sys
words = sys.argv[1:]
env = os.environ | {{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1",
                    "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
                    "COLO_SEES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}}
# Engines yield, as on cores: NVIDIA's programs do not share them with the engines on a true host.
os.nice(5)
if "vllm.entrypoints.openai.api_server" in words:
    for flag in ("--gpu-memory-utilization", "--kv-cache-memory-bytes"):
        if flag in words:
            at = words.index(flag)
            words[at : at + 2] = []
if words and words[0].endswith("embed_worker.py"):
    job = json.loads(words[1]) | {{"torch_device": "cpu", "threads": 1}}
    job.pop("hold", None)
    words[1] = json.dumps(job)
if words and words[-1].endswith("cuda_probe.py"):
    words = [{probe!r}]
if len(words) > 1 and words[-2].endswith("sm_hold.py"):
    words = [{hold!r}, words[-1]]
os.execve({engine!r}, [{engine!r}, *words], env)
"""


def make(
    folder: Path, engine_python: Path = Path(sys.executable), nvml: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Put the stand-ins into `folder`; returns the changes of the environment that make a process see them.

    `nvml` is what the NVML stand-in is told (tests/standins/pynvml.py), the MPS daemon's failures go into
    `folder`/scenario.json (tests/standins/nvidia-cuda-mps-control).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nvidia-cuda-mps-control", "pynvml.py", "cuda_probe.py", "sm_hold.py"):
        # Straight to an interpreter: a version manager's shim takes many times as long as the order itself.
        source = (STANDINS / name).read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS", 1)
        (folder / name).write_text(source)
        (folder / name).chmod(0o755)
    (folder / "behaviour.json").write_text(json.dumps({"live": True} | dict(nvml or {})))
    probe, hold = str(folder / "cuda_probe.py"), str(folder / "sm_hold.py")
    words = INTERPRETER.format(python=sys.executable, engine=str(engine_python), probe=probe, hold=hold)
    (folder / "python").write_text(words)
    (folder / "python").chmod(0o755)
    path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
