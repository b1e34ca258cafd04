"""Tracked notebooks executed in forks of one preloaded process, as those of a page are.

A kernel of its own, which each has in tests/test_jupyterlab.py, takes longer to start than most of them to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from colo_lib.report import execute

ALLOWED_S = 180


def executed_in_forks(
    folder: Path, held: Path, wanted: Mapping[str, tuple[str, Mapping[str, str]]]
) -> dict[str, dict[str, Any]]:
    """Execute notebooks, each with its parameters and under a key of its own; what papermill leaves, by that key.

    `held`: a run or sweep that is read before the forks. Fails where one does not reach its end.
    """
    notebooks, orders = [], {}
    for key, (name, values) in wanted.items():
        notebook = execute.Notebook(name, "", values, ALLOWED_S, folder / f"{key}.ipynb")
        orders[key] = notebook.order() | {"target": str(notebook.target)}
        notebooks.append(replace(notebook, name=key))
    with execute._forking(held) as process:
        failures = {each.name: why for each, why in execute._ended(process, notebooks, orders) if why}
    assert failures == {}
    return {each.name: json.loads(each.target.read_text(encoding="utf-8")) for each in notebooks}
