"""Parameters as they may be shared: numbers and choices by their type, texts by name, everything else replaced."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any, get_args

from colo_lib.data.scrub import DEVICE, DEVICE_ALIAS, FIELDS, HIDDEN, HIDDEN_VALUE, VALUES, Scrubber, bundled_models
from colo_lib.params import PURPOSES, RETIRED, RUN_ID, STEPS, Params, split_list
from colo_lib.purpose import Text

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
    told = bool(re.fullmatch(RUN_ID, value)) and any(name.startswith(value) for name in scrub.folders)
    return value if told or value == "run" else scrub.hide(VALUES, "run")


# How a text is shared, by what it stands for; None: its default alone is, and takes the place of any other.
TEXTS: dict[Text, Callable[[Scrubber, str], str] | None] = {
    "run name": _run_name,
    "path": None,
    "steps": _names_of_steps,
    "devices": _devices,
    "model": model,
    "interpreter": _only(r"auto|\(removed\)", HIDDEN),
    "process": _only(r"[\d, @]*"),
    "seconds": _only(r"[\d.:]*"),
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
