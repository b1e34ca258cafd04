"""The sections of the pages, in order: what a notebook names with each thing that it shows, so that none is dropped.

A section is a name, which is its address on the page, and the title that a reader sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from colo_lib.errors import InputError

FIRST = "first"  # the first screen of a run's page, above the contents

NOTEBOOK = "notebook"  # on no page: what helps whoever has the notebook open, as the list of other runs

RUN_PAGE = {
    "steps": "Steps side by side",
    "latency": "Latencies and stalls",
    "clauses": "The verdict, clause by clause",
    "gen-loss": "Where gen's loss went",
    "traces": "Inside the GPU: kernel overlap, occupancy, idle gaps, durations, categories",
    "telemetry": "Telemetry over time",
    "memory": "Memory",
    "sweeps": "Sweeps",
    "published": "Beside the published runs",
    "capacity": "Capacity: dedicate, co-locate or shard wider",
    "not-counted": "Trials that do not count",
    "provenance": "Provenance",
}

# The most telling first: the first section that has anything gives the sentences and the picture of the first screen.
SWEEP_PAGE = {
    "operating-point": "Where embedding comes nearest to free",
    "two-devices": "Two GPUs: one each, or sharded with embedding beside",
    "thread-percentage": "How much of the GPU embed may take",
    "concurrency": "Sharing when gen is busier",
    "batch-more": "Why not just batch more",
    "eager-or-graphs": "CUDA graphs or eager",
    "prefill-share": "Long prompts",
    "memory-pressure": "What fits",
    "cells": "Every cell",
    "provenance": "Provenance",
}

SIDE_BY_SIDE = {
    "kept": "What each workload keeps",
    "clauses": "The verdict, clause by clause",
    "differs": "What differs",
    "steps": "Steps, run by run",
    "runs": "The runs",
}

KNOWN = (FIRST, *RUN_PAGE, *SWEEP_PAGE, NOTEBOOK)


def known(section: str) -> str:
    """`section` itself. Raises InputError where no page has it."""
    if section not in KNOWN:
        names = ", ".join(dict.fromkeys(KNOWN))
        raise InputError(f"section {section!r} is on no page: name one of {names} (colo_lib/report/sections.py)")
    return section


def by_section(parts: Iterable[dict[str, Any]], page: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Section -> its parts in the order in which notebooks showed them; every section of `page`, which has all names.

    A part that tells exactly what an earlier one of its section tells stands there once; `names` has all that it goes
    by. Raises InputError for a part of a section that `page` has not: a page drops nothing.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in page}
    for part in parts:
        section = known(part.get("section", "")) if part["kind"] != "done" else NOTEBOOK
        if section == NOTEBOOK:
            continue
        if section not in found:
            raise InputError(f"{part['name']} is for section {section!r}, which this page has not")
        same = next((told for told in found[section] if _said(told) == _said(part)), None)
        if same is None:
            found[section].append({**part, "names": [part["name"]]})
        elif part["name"] not in same["names"]:
            same["names"].append(part["name"])
    return found


def _said(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in ("name", "names", "fold")}
