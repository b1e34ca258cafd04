"""How a value of a run's records may be shared: as it is, by its known form or words, or replaced and counted.

Parameters: numbers and choices by their type, texts by what they stand for (`TEXTS`), everything else replaced.
"""

from __future__ import annotations

import getpass
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from colo_lib.data.scrub import (
    DEVICE,
    DEVICE_ALIAS,
    FIELDS,
    HIDDEN,
    HIDDEN_VALUE,
    MACHINE,
    VALUES,
    Scrubber,
    bundled_models,
)
from colo_lib.params import PURPOSES, RETIRED, STEPS, Params, split_list
from colo_lib.paths import RUN_ID
from colo_lib.purpose import Text

# A rule gives a value as it may be shared, or LEFT_OUT.
Rule = Callable[[Scrubber, Any], Any]
LEFT_OUT = object()


def new_scrubber() -> Scrubber:
    """One that knows this machine's name and its user's."""
    secrets = {socket.gethostname(), socket.gethostname().split(".")[0], Path.home().name}
    with suppress(OSError, KeyError):  # a user without a name
        secrets.add(getpass.getuser())
    return Scrubber(secrets)


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
        shared = [rule(scrub, item) for item in value]
        return [item for item in shared if item is not LEFT_OUT]

    return each


def either(of_list: Rule, other: Rule) -> Rule:
    """A list by the first rule, anything else by the second."""
    return lambda scrub, value: of_list(scrub, value) if isinstance(value, list) else other(scrub, value)


def record(fields: Mapping[str, Rule]) -> Rule:
    """An object of these fields, and null."""

    def rule(scrub: Scrubber, value: Any) -> Any:
        if not isinstance(value, dict):
            return number(scrub, value)
        shared = {name: fields[name](scrub, item) for name, item in value.items() if name in fields}
        scrub.counts[FIELDS] += len(value) - len(shared)
        return {name: item for name, item in shared.items() if item is not LEFT_OUT}

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
ARCHITECTURE = matching(
    r"(?:Llama|Mistral|Mixtral|Qwen\d?(?:Moe|Next)?|Qwen\d{1,2}_?\d?(?:Moe)?|Gemma\d?|Phi\d?(?:Moe)?|Bert|Roberta|XLMRoberta|ModernBert|NomicBert"
    r"|Deepseek(?:V\d)?|GPT2|GptOss|GPTNeoX|OPT|Falcon|Olmo\d?|Granite|Mpnet|T5|Cohere\d?)(?:ForCausalLM|Model|ForMaskedLM|LMHeadModel)"
)
# Arguments of vLLM's server whose value is a number, a switch or a word of vLLM's own.
ARGUMENTS = re.compile(
    r"--(?:no-)?(?:max-num-batched-tokens|max-num-seqs|enable-chunked-prefill|enable-prefix-caching|block-size|swap-space"
    r"|cpu-offload-gb|max-seq-len-to-capture|async-scheduling|enforce-eager|disable-custom-all-reduce|kv-cache-dtype|seed"
    r"|max-num-partial-prefills|long-prefill-token-threshold|scheduling-policy|distributed-executor-backend|dtype"
    r"|disable-cascade-attn|stream-interval|disable-log-stats|max-logprobs|cuda-graph-sizes|enable-expert-parallel)"
)
ARGUMENT_VALUE = re.compile(
    r"-?\d{1,12}(?:\.\d{1,6})?|auto|fp8(?:_e\dm\d)?|bfloat16|float16|float32|fcfs|priority|mp|uni|true|false"
)


def model(scrub: Scrubber, value: Any) -> Any:
    """The name of a model that comes with the workbook; a path or another's repository is replaced."""
    return value if value is None or value in bundled_models() else scrub.value(value)


def one_device(scrub: Scrubber, name: str) -> str:
    """A device's index as it is, its UUID as `GPU 0`; whatever else is called a device is replaced."""
    known = not name or DEVICE_ALIAS.fullmatch(name)
    return name if known else scrub.device(name) if DEVICE.fullmatch(name) else scrub.value(name)


def arguments(scrub: Scrubber, value: str) -> str:
    """vLLM's further arguments: known ones with plain values, `(removed)` for a run of others."""
    if HIDDEN_VALUE.fullmatch(value):
        return value
    try:
        words = shlex.split(value)
    except ValueError:
        return scrub.value(value)
    kept: list[str] = []
    known = False
    for word in words:
        name, equals, given = word.partition("=")
        if word.startswith("-"):
            known = bool(ARGUMENTS.fullmatch(name)) and (not equals or bool(ARGUMENT_VALUE.fullmatch(given)))
            plain = known
        else:
            plain = word == HIDDEN or (known and bool(ARGUMENT_VALUE.fullmatch(word)))
        if plain:
            kept.append(word)
        elif kept[-1:] != [HIDDEN]:
            kept.append(HIDDEN)
        if not plain:
            scrub.hide(VALUES)
    return value if kept == words else shlex.join(kept)


def _names_of_steps(scrub: Scrubber, value: str) -> str:
    return value if set(split_list(value)) <= set(STEPS) else scrub.hide(VALUES, "")


def _devices(scrub: Scrubber, value: str) -> str:
    return ",".join(one_device(scrub, part) for part in split_list(value))


def _only(pattern: str, instead: str = "") -> Callable[[Scrubber, str], str]:
    whole = re.compile(pattern)
    return lambda scrub, value: value if whole.fullmatch(value) else scrub.hide(VALUES, instead)


def _run_name(scrub: Scrubber, value: str) -> str:
    """What the folder's own name begins with, for it is shared under that."""
    in_folder = bool(re.fullmatch(RUN_ID, value)) and any(name.startswith(value) for name in scrub.folders)
    return value if in_folder or value == "run" else scrub.hide(VALUES, "run")


# How a text is shared, by what it stands for; None: its default alone is, and takes the place of any other.
TEXTS: dict[Text, Callable[[Scrubber, str], str] | None] = {
    "run name": _run_name,
    "path": None,
    "address": None,
    "steps": _names_of_steps,
    "devices": _devices,
    "model": model,
    "interpreter": _only(r"auto|\(removed\)", HIDDEN),
    "process": _only(r"[\d, @:]*"),
    "seconds": _only(r"[\d.:]*"),
    "counts": _only(r"[\d, ]*"),
    "arguments": arguments,
}

# Parameters that earlier versions recorded.
RETIRED_TEXTS: dict[str, Callable[[Scrubber, str], str]] = {"interleave": _only("engines|all")}


def shared_param(scrub: Scrubber, name: str, value: Any) -> Any:
    """The value of one parameter."""
    if name in RETIRED:
        return RETIRED_TEXTS[name](scrub, str(value))
    kind, default = Params.model_fields[name].annotation, Params.model_fields[name].default
    if kind is not str:
        return value if isinstance(value, int | float) or value in get_args(kind) else scrub.hide(VALUES, default)
    share = TEXTS[PURPOSES[name].text]
    return share(scrub, str(value)) if share else value if value == default else scrub.hide(VALUES, default)


def shared_params(scrub: Scrubber, values: Any) -> dict[str, Any]:
    """Parameters by name, those that `Params` does not know left out."""
    known = {name: value for name, value in values.items() if name in Params.model_fields or name in RETIRED}
    scrub.counts[FIELDS] += len(values) - len(known)
    return {name: shared_param(scrub, name, value) for name, value in known.items()}


def changes(scrub: Scrubber, value: Any) -> Any:
    """What a cell of a sweep changes: parameter -> value."""
    return shared_params(scrub, value) if isinstance(value, dict) else number(scrub, value)


def axis(scrub: Scrubber, value: Any) -> Any:
    """Names of parameters that change together, and their values."""
    names = [name for name in value["names"] if name in Params.model_fields]
    rows = [dict(zip(value["names"], row, strict=False)) for row in value["values"]]
    scrub.counts[FIELDS] += len(set(value) - {"names", "values"}) + len(value["names"]) - len(names)
    return {"names": names, "values": [[shared_param(scrub, name, row.get(name)) for name in names] for row in rows]}
