"""Params files: YAML whose values are flat, as `papermill -f` takes it, read without what such a file never needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from colo_lib.errors import InputError, suggest

MAX_PARAMS_BYTES = 64 * 1024


def read_file(path: str | Path) -> dict[str, Any]:
    """Plain values of a params file, unchecked; raises InputError for anything that is not a flat mapping."""
    file = Path(path)
    if not file.is_file():
        known = sorted(str(other) for other in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        remedy = suggest(str(file), known) if known else "give a path to a .yaml file"
        raise InputError(f"no params file {file}; {remedy}")
    if file.stat().st_size > MAX_PARAMS_BYTES:
        raise InputError(f"{file}: larger than {MAX_PARAMS_BYTES} bytes, which no params file is")
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_FlatLoader)
    # TypeError: a key that is a list; RecursionError: thousands of nested brackets.
    except (yaml.YAMLError, UnicodeDecodeError, InputError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not a flat YAML mapping: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: a params file is a mapping of names to plain values")
    return loaded


class _FlatLoader(yaml.SafeLoader):
    """Safe YAML that refuses what a flat file never needs: aliases, doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise InputError("aliases are not allowed in a params file")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise InputError(f"parameter {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)
