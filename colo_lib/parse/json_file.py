"""A JSON object out of a file from outside, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colo_lib.errors import InputError

MAX_BYTES = 64 * 2**20


def read_object(file: Path, most_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object that `file` holds; raises InputError where it is larger than `most_bytes`, or no JSON object."""
    try:
        if file.stat().st_size > most_bytes:
            raise InputError(f"{file}: larger than {most_bytes} bytes, which no such file is")
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: holds no JSON object")
    return loaded
