"""What of an Nsight Systems export may be shared: tables, columns and texts that are known to be harmless.

Numbers of the columns named here are copied. Of texts only those of `TEXTS` are, each by its own rule. A table, a
column or a text that is not listed stays behind, be it of a newer export or of somebody's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from colo_lib.parse.scrub import HIDDEN, MACHINE, VALUES, Scrubber

KEPT = re.compile(
    r"CUPTI_ACTIVITY_KIND_(KERNEL|GRAPH_TRACE|MEMCPY|MEMSET|RUNTIME)(_V\d{1,3})?|GPU_CONTEXT_SWITCH_EVENTS|PROFILER_OVERHEAD"
    r"|CUDA_GRAPH_EVENTS|TARGET_INFO_(GPU|CUDA_GPU|CUDA_DEVICE|CUDA_CONTEXT_INFO|CUDA_STREAM|SESSION_START_TIME)"
    r"|ANALYSIS_DETAILS|PROCESSES|StringIds|META_DATA_EXPORT|ENUM_GPU_CTX_SWITCH"
)
NUMBERS = re.findall(
    r"\w+",
    """
    start end deviceId contextId greenContextId streamId correlationId globalPid globalTid demangledName shortName
    mangledName nameId launchType cacheConfig registersPerThread gridX gridY gridZ blockX blockY blockZ
    staticSharedMemory dynamicSharedMemory localMemoryPerThread localMemoryTotal gridId sharedMemoryExecuted
    graphNodeId sharedMemoryLimitConfig graphId graphExecId originalGraphId eventClass bytes copyKind
    deprecatedSrcId srcKind dstKind srcDeviceId srcContextId dstDeviceId dstContextId migrationCause memKind
    returnValue value vmId tag seqNo timestamp gpuId cudaId pid id processId hwId nullStreamId parentContextId
    isGreenContext flag priority globalVid duration startTime stopTime utcEpochNs numMultiprocessors isDiscrete
    l2CacheSize totalMemory memoryBandwidth clockRate smCount pwGpuId cuDevice revision nodeMask constantMemory
    maxIPC maxRegistersPerBlock maxShmemPerBlock maxShmemPerBlockOptin maxShmemPerSm maxRegistersPerSm
    threadsPerWarp asyncEngines maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock maxBlockDimX maxBlockDimY
    maxBlockDimZ maxGridDimX maxGridDimY maxGridDimZ computeMajor computeMinor smMajor smMinor
    """,
)
META = {
    *(f"EXPORT_PRODUCT_{name}" for name in ("NAME", "VERSION", "DATE")),
    *(f"EXPORT_SCHEMA_VERSION{name}" for name in ("", "_MAJOR", "_MINOR", "_MICRO", "_CKSUM")),
    *(
        "EXPORT_PLATFORM",
        "EXPORT_ARCH",
        "EXPORT_PARAM_TIME_NORMALIZE",
        "EXPORT_PARAM_TIME_SHIFT",
        "EXPORT_CONFIG_TIME_SHIFT",
    ),
}
META_VALUE = re.compile(
    r"[-\d. ]{0,40}|true|false|SIMULATED|NVIDIA Nsight Systems"
    r"|(?:linux|windows)(?:-(?:desktop|server|embedded|arm|x64)){0,2}|x64|x86_64|arm64|aarch64|sbsa"
)
SWITCH_NAMES = re.findall(
    r"\w+",
    """
    UnknownGpuCtxswTag SOF REQ_BY_HOST FE_ACK FE_ACK_WFI FE_ACK_GFXP FE_ACK_CTAP FE_ACK_CILP SAVE_END RESTORE_START
    CONTEXT_START INVALID_TIMESTAMP ENGINE_RESET OTHER
    """,
)
BUS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
Rule = Callable[[Scrubber, str], str]


def _bus(scrub: Scrubber, value: str) -> str:
    return value if BUS.fullmatch(value) or not value else scrub.hide(MACHINE)


def _chip(scrub: Scrubber, value: str) -> str:
    return value if re.fullmatch(r"[A-Z]{0,2}\d{2,3}[A-Z]?", value) or not value else scrub.hide(MACHINE)


def _device(scrub: Scrubber, value: str) -> str:
    return scrub.device(value) if value else ""


def _meta(scrub: Scrubber, value: str) -> str:
    return value if META_VALUE.fullmatch(value) else scrub.hide(VALUES)


def _switch(scrub: Scrubber, value: str) -> str:
    # What is neither a coming nor a leaving is passed over, whatever it is called.
    return value if value in SWITCH_NAMES else scrub.hide(VALUES, "OTHER")


# (table, column in lower case) -> how its text is shared
TEXTS: dict[tuple[str, str], Rule] = {
    ("StringIds", "value"): Scrubber.name,
    ("PROCESSES", "name"): Scrubber.process,
    ("META_DATA_EXPORT", "name"): lambda _, value: value,  # rows of other names stay behind
    ("META_DATA_EXPORT", "value"): _meta,
    ("ENUM_GPU_CTX_SWITCH", "name"): _switch,
    **{
        (table, column): rule
        for table in ("TARGET_INFO_GPU", "TARGET_INFO_CUDA_GPU", "TARGET_INFO_CUDA_DEVICE")
        for column, rule in (
            ("name", Scrubber.hardware), ("chipname", _chip), ("buslocation", _bus), ("uuid", _device),
        )
    },
}  # fmt: skip
SPELLED = {name.lower(): name for name in (*NUMBERS, "name", "chipName", "busLocation", "uuid")}


def kept_columns(table: str, columns: tuple[str, ...]) -> dict[str, str]:
    """The columns of a table that may be shared, as it spells them -> as they are spelled in the copy."""
    texts = {column for name, column in TEXTS if name == table}
    numbers = set(SPELLED) - {"name", "chipname", "buslocation", "uuid"} - texts
    return {own: SPELLED[own.lower()] for own in columns if own.lower() in texts | numbers}


def shared_value(scrub: Scrubber, table: str, column: str, value: Any) -> Any:
    """A value as it may be shared; `column` in lower case. Text and bytes where a number belongs are left out."""
    rule = TEXTS.get((table, column))
    if rule is not None:
        if value == HIDDEN:
            return value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return rule(scrub, value) if isinstance(value, str) else value
    if value is None or isinstance(value, int | float):
        return value
    scrub.hide(VALUES)
    return None
