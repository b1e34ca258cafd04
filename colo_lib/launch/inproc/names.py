"""By which names the launcher and the thread in vLLM's worker find each other; no module of the engine's in here."""

from __future__ import annotations

from pathlib import Path

# What `--worker-extension-cls` is given, and the variable that tells it what to be.
EXTENSION = "colo_lib.launch.inproc.extension.EmbedBesideGen"
JOB_NAME = "COLO_INPROC"
THREAD_NAME = "colo-embed"  # at most 15 characters


def files_of(folder: str | Path, rank: int) -> dict[str, Path]:
    """Where the thread of a rank is told its job, listens, and says why it could not: `job`, `socket`, `failed`."""
    names = {"job": "job", "socket": "sock", "failed": "failed"}
    return {name: Path(folder) / f"embed{rank}.{suffix}" for name, suffix in names.items()}
