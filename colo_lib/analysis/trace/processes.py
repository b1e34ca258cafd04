"""Which processes of a capture are gen and which are embed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from colo_lib.errors import InputError
from colo_lib.trace import Capture, Process

WORKLOADS = ("gen", "embed")
NAMES = {"gen": r"vllm|enginecore|sglang|llama|generat|\bgen\b", "embed": r"embed|encoder|sentence|\be5\b"}
GEN_KERNELS = r"paged|reshape_and_cache|kv_?cache|sampl|top_?k|argmax|moe|split_?kv|decode"
Assignment = dict[str, list[int]]  # workload -> places of its processes in the capture


@dataclass(frozen=True)
class Launcher:
    """A process that launched work: how much, and of what shape. `time_ms` is summed, not a union."""

    place: int
    process: Process
    kernel_count: int
    graph_count: int
    time_ms: float
    mean_us: float
    mean_blocks: float
    gen_kernels: bool
    node_kernels: bool

    def words(self) -> str:
        """One line about it."""
        name = printable(self.process.name) or "no name recorded"
        graphs = f", {self.graph_count:,} graph launches" if self.graph_count else ""
        blocks = f", {self.mean_blocks:,.0f} blocks" if self.mean_blocks == self.mean_blocks else ""
        return (
            f"{self.process.label}  {name}: {self.kernel_count:,} kernels{graphs}, "
            f"{self.time_ms:,.1f} ms in all, mean {self.mean_us:,.1f} us{blocks}"
        )


def printable(text: str, most: int = 200) -> str:
    """Text of an export as it may be shown: control characters spelled out, and not longer than `most`."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[: most + 1])
    return shown if len(text) <= most else shown[: most - 1] + "…"


def launchers(capture: Capture) -> list[Launcher]:
    """The processes that launched kernels or graphs, by pid."""
    kernels = capture.kernels
    pattern = re.compile(GEN_KERNELS, re.IGNORECASE)
    telling = np.array([bool(pattern.search(name)) for name in [*capture.names, ""]])
    launched = []
    for place, process in enumerate(capture.processes):
        rows = np.flatnonzero(kernels.process == place)
        if not len(rows):
            continue
        graphs = int(kernels.graph[rows].sum())
        time_ns = int((kernels.end_ns[rows] - kernels.start_ns[rows]).sum())
        blocks = kernels.blocks[rows]
        shaped = float(blocks[blocks > 0].mean()) if (blocks > 0).any() else float("nan")
        launched.append(
            Launcher(
                place, process, len(rows) - graphs, graphs, time_ns / 1e6, time_ns / len(rows) / 1e3, shaped,
                bool(telling[kernels.name[rows]].any()), bool(kernels.node[rows].any()),
            )
        )  # fmt: skip
    return sorted(launched, key=lambda item: (item.process.pid, item.process.label))


def likely(launched: list[Launcher]) -> Assignment:
    """The likely gen and embed: by name, then by graphs and decode kernels, then gen is who launches the shorter work.

    With one process alone it is gen if anything points to gen, else embed.
    """
    if not launched:
        return {}
    scores = {item.place: _gen_score(item) for item in launched}
    if len(launched) == 1:
        return {"gen" if scores[launched[0].place] > 0 else "embed": [launched[0].place]}
    ranked = sorted(launched, key=lambda item: (-scores[item.place], item.mean_us))
    gen, embed = ranked[0], ranked[-1]
    # Workers of one tensor-parallel engine have the same name and shape; strangers stay out of both.
    same = [item.place for item in launched if item.process.name == gen.process.name != embed.process.name]
    return {"gen": same or [gen.place], "embed": [embed.place]}


def _gen_score(item: Launcher) -> float:
    named = {
        workload: bool(re.search(pattern, item.process.name, re.IGNORECASE)) for workload, pattern in NAMES.items()
    }
    points = 4.0 * (named["gen"] - named["embed"])
    return points + 2.0 * (item.graph_count > 0 or item.node_kernels) + 1.0 * item.gen_kernels


def assign(capture: Capture, asked: Mapping[str, str], idle: Collection[str] = ()) -> tuple[Assignment, bool]:
    """Places of gen's and embed's processes, and whether any was guessed.

    `asked`: workload -> pids or names, by comma; empty or absent: the likely one. A name stands for every process whose
    name holds it. `idle`: workloads known to have launched nothing, which are not guessed. Raises InputError naming the
    processes there are where one is not found or is asked for twice.
    """
    launched = launchers(capture)
    if not launched:
        files = ", ".join(export.file for export in capture.exports)
        lost = "".join(f"; {words}" for words in capture.omissions)
        raise InputError(f"{files}: no process launched work: there is no kernel and no graph launch{lost}")
    assignment = {workload: _matching(words, launched) for workload, words in asked.items() if words.strip()}
    both = set(assignment.get("gen", [])) & set(assignment.get("embed", []))
    if both:
        raise InputError(f"process {launcher_label(launched, both.pop())} is asked for as gen and as embed")
    named = len(assignment)
    left = [item for item in launched if not any(item.place in places for places in assignment.values())]
    guesses = likely(launched if not assignment else left)
    for workload in WORKLOADS:
        if workload in assignment or workload in idle:
            continue
        guess = guesses.get(workload) or (guesses.get(_other(workload)) if named else None)
        if guess:
            assignment[workload] = guess
    guessed = len(assignment) > named
    assignment |= {workload: [] for workload in idle}
    return {workload: assignment[workload] for workload in WORKLOADS if workload in assignment}, guessed


def matching(capture: Capture, words: str) -> list[int]:
    """Places of the processes that `words` (pids or names, by comma) stand for; raises InputError for others."""
    return _matching(words, launchers(capture))


def launcher_label(launched: list[Launcher], place: int) -> str:
    """The label of the process at `place`."""
    return next(item.process.label for item in launched if item.place == place)


def _other(workload: str) -> str:
    return WORKLOADS[1 - WORKLOADS.index(workload)]


def _matching(words: str, launched: list[Launcher]) -> list[int]:
    places: list[int] = []
    for word in (part.strip() for part in words.split(",")):
        if not word:
            continue
        exact = [item.place for item in launched if word == item.process.label]
        named = [item for item in launched if item.process.thread is None or word == item.process.name]
        exact = exact or [item.place for item in named if word in (item.process.name, str(item.process.pid))]
        held = [item.place for item in launched if not word.isdigit() and word.lower() in item.process.name.lower()]
        if not exact and not held:
            there = "; ".join(item.words() for item in launched)
            raise InputError(f"no process {word!r} launched work; there are: {there}")
        places += [place for place in (exact or held) if place not in places]
    return places
