"""What `colo trace --json` says against what `naive_trace.answers` says, figure by figure."""

from __future__ import annotations

from typing import Any

from colo_lib.analysis.trace.processes import printable


def differences(found: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    """Every figure of `colo trace --json` that is not the truth's, with both."""
    told = []
    for place, value in truth.items():
        if place == "workloads":
            for name, own in value.items():
                told += [f"{name} {words}" for words in _of_workload(found["workloads"].get(name), own)]
        elif place == "outside":
            continue
        elif place == "absent":
            told += [] if sorted(found["absent"]) == value else [f"absent: {found['absent']}, not {value}"]
        elif place == "lost":
            counted = sum(int(words.split(": ")[-2].split()[0].replace(",", "")) if ": left out" in words else 0
                          for words in found["omissions"])  # fmt: skip
            told += [] if counted == value else [f"left out: {counted}, not {value}"]
        elif not _same(_at(found, place), value):
            told.append(f"{place}: {_at(found, place)}, not {value}")
    if set(found["workloads"]) != set(truth["workloads"]):
        told.append(f"workloads: {sorted(found['workloads'])}")
    return told


def _of_workload(found: dict[str, Any] | None, truth: dict[str, Any]) -> list[str]:
    if found is None:
        return ["is not there"]
    told = []
    for place, value in truth.items():
        if place == "names":
            value = {printable(name, 4000): counted for name, counted in value.items()}
            for row in found["top_kernels"]:
                if not _same((row["kernel_count"], row["kernel_time_ns"]), value.get(row["name"])):
                    told.append(f"{row['name']}: {row}, not {value.get(row['name'])}")
            continue
        if place == "categories":
            seen: Any = {row["category"]: (row["kernel_count"], row["kernel_time_ns"]) for row in found["categories"]}
        elif place == "copies":
            seen = sorted((row["count"], row["time_ns"], row["bytes"]) for row in found["copies"]["kinds"])
        elif place == "copies_busy_ns":
            seen = found["copies"]["busy_ns"]
        else:
            seen = _at(found, place)
        if not _same(seen, value):
            told.append(f"{place}: {seen}, not {value}")
    return told


def _at(found: Any, place: str) -> Any:
    for part in place.split("."):
        found = found[part] if found is not None else None
    return found


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        return left is not None and right is not None and abs(left - right) <= 1e-9 * max(1.0, abs(left), abs(right))
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
