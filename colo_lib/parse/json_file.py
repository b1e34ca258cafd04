"""A JSON object out of a file from outside, or a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from colo_lib.errors import InputError

MAX_BYTES = 64 * 2**20
MOST_TOLD = 3
REMEDY = "take it again from where it was recorded, or leave it out"

Model = TypeVar("Model", bound=BaseModel)


def damaged(what: object, told: str) -> InputError:
    """The error for a file or a folder from outside that is not what was recorded: what, how, and the remedy."""
    return InputError(f"{what}: {told}; {REMEDY}")


def read_object(file: Path, most_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object that `file` holds; raises InputError where it is larger than `most_bytes`, or no JSON object.

    Text that is no text (a NUL, half a surrogate pair) is refused here: it can be no name, no path, and not be shown.
    """
    try:
        if file.exists() and not file.is_file():
            raise ValueError("no file, but a folder, a pipe or the like")
        if file.stat().st_size > most_bytes:
            raise damaged(file, f"larger than {most_bytes} bytes, which no such file is")
        loaded = json.loads(file.read_text(encoding="utf-8"))
        for text in _texts(loaded):
            if b"\0" in text.encode():
                raise ValueError(f"the text {text[:40]!r} holds a NUL")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, f"not readable as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise damaged(file, f"holds no JSON object but a {type(loaded).__name__}")
    return loaded


def checked(model: type[Model], loaded: dict[str, Any], file: object) -> Model:
    """`loaded` as `model`; raises InputError naming `file` and the first fields that are not as they should be."""
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        told = [f"{_place(item['loc'])!r} = {_short(item['input'])}: {item['msg']}" for item in error.errors()]
        more = f" (and {len(told) - MOST_TOLD} more)" if len(told) > MOST_TOLD else ""
        raise damaged(file, "; ".join(told[:MOST_TOLD]) + more) from None


def _texts(value: Any) -> Iterator[str]:
    """Every text in it, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value:
            yield from _texts(item)
        yield from _texts(list(value.values())) if isinstance(value, dict) else ()


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the record"


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:57] + "..."
