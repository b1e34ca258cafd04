"""Runs `cuda_probe` under an engine's environment: what fails here would fail in the engine, later and less clearly."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colo_lib.errors import StepFailed
from colo_lib.launch.process import Child, child_environment

PROBE = Path(__file__).with_name("cuda_probe.py")
PROBE_TIMEOUT_S = 60.0
# What a client's CUDA error means for the one who reads it (CUDA driver API, cudaError_enum).
REMEDIES = {
    3: "the driver is not usable here: look at nvidia-smi",
    46: "another process holds the GPU exclusively: nvidia-smi -c DEFAULT, or end it",
    100: "no GPU is visible: see devices, and CUDA_VISIBLE_DEVICES of this shell",
    101: "a name in devices is no GPU here",
    805: "the MPS daemon did not answer this client: run all as one user, in one container",
    806: "an earlier client's fault is still being cleared: end every process on the GPU, then run again",
    807: "the MPS server is not ready: another process holds the GPU exclusively, or a fault is still being cleared",
    808: "the MPS server has no room for a further client: end other clients",
    809: "the MPS server has no room for a further connection: end other clients",
    810: "the MPS server ended this client: an earlier client faulted",
}


def probe(name: str, python: Path, env: Mapping[str, str], log: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Any:
    """GPUs, a row each (name, sms), that a client with this environment gets; raises StepFailed with the cause."""
    child = Child(f"{name} probe", [str(python), "-I", str(PROBE)], log, env=child_environment(env), grace_s=1.0)
    try:
        deadline = time.monotonic() + timeout_s
        while child.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.running():
            raise StepFailed(
                f"{name}: a first CUDA client got no context within {timeout_s:g} s: it waits for the server, which "
                "drains another user's clients or cannot start; run all as one user"
            )
    finally:
        child.stop()
    return answer(name, log)


def answer(name: str, log: Path) -> list[dict[str, Any]]:
    """The probe's GPUs from its output; raises StepFailed for an error, with the remedy, or for anything else."""
    said = log.read_text(errors="replace").strip().splitlines()
    try:
        told = json.loads(said[-1])
    except (IndexError, ValueError):
        raise StepFailed(f"{name}: the first CUDA client ended without an answer: {' '.join(said[-3:])}") from None
    if "error" in told:
        remedy = REMEDIES.get(told["error"], "look at nvidia-smi")
        cause = f"{told['at']} with {told['name']} ({told['error']})"
        raise StepFailed(f"{name}: a first CUDA client failed in {cause}: {remedy}")
    return list(told["gpus"])
