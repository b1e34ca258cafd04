"""What a child process gets of our environment: an allow-list, and what a profiler needs in the engines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

PRELOAD = "LD_PRELOAD"

# What a child may inherit; everything else (limits of another mechanism, keys, proxies) stays behind.
INHERITED = (
    "COLO_MARK", "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL", "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "HF_HOME", "HF_TOKEN", "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST",
    "NVSHMEM_DISABLE_NVLS",
)  # fmt: skip


# vLLM's own settings are the user's to make; its key is ours.
INHERITED_PREFIX, NOT_INHERITED = "VLLM_", ("VLLM_API_KEY",)


# What a profiler added to our environment, as JSON: for the engines below us, and for nothing else that we start.
INJECTION = "COLO_INJECTION"


def vllm_settings() -> dict[str, str]:
    """vLLM's settings in our environment, by name, without its key."""
    names = [name for name in sorted(os.environ) if name.startswith(INHERITED_PREFIX) and name not in NOT_INHERITED]
    return {name: os.environ[name] for name in names}


def child_environment(additions: Mapping[str, str], inherited: Sequence[str] = INHERITED) -> dict[str, str]:
    """The allow-listed part of our environment, with `additions` on top."""
    names = [*inherited, *vllm_settings()]
    return {name: os.environ[name] for name in names if name in os.environ} | dict(additions)


def engine_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """An engine's environment: a child's, and what a profiler that it is started below needs in it."""
    plain, injection = child_environment(additions), dict[str, str](json.loads(os.environ.get(INJECTION, "{}")))
    libraries = [part[PRELOAD] for part in (injection, plain) if part.get(PRELOAD)]
    return plain | injection | ({PRELOAD: ":".join(libraries)} if libraries else {})


def package_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """A child's environment in which this very package is importable."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    return child_environment({**additions, "PYTHONPATH": path})


def spare_grammars() -> None:
    """Have papermill and nbformat imported without grammars of addresses that no notebook has; call it before.

    jsonschema compiles them with lark wherever rfc3987-syntax is installed, 1.3 s of a core in every process, and does
    without where it is not.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


class _NoPandas(MetaPathFinder):
    """Finds everything where it is but pandas, which is not there."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Left to the next finder."""
        if fullname == "pandas":
            raise ModuleNotFoundError("spared", name=fullname)


def spare_pandas() -> None:
    """Have pyarrow make its arrays without pandas; call it before the first one.

    It imports pandas for the first array wherever that is installed, 0.25 s of a core, and does without elsewhere.
    """
    sys.meta_path.insert(0, _NoPandas())
