"""Two workloads in one process: work told apart by the thread that launched it, never by a kernel's name.

A row of CUPTI_ACTIVITY_KIND_RUNTIME names its thread in the low 24 bits of `globalTid`. What was launched carries its
correlation id: a kernel that of its launch, the kernels of a graph, or the graph whole, that of the graph's launch.
Work whose launch is not in the file, and copies, go with the thread all of whose stream's other work is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from colo_lib.data.nsys_schema import find_table
from colo_lib.data.packed_export import unpacked
from colo_lib.data.sqlite_reader import opened, tables_of
from colo_lib.errors import InputError
from colo_lib.trace import Capture, Process

WORD = re.compile(r"(\d+):(\d+)")
TID_MASK, PID_BITS = 0xFFFFFF, 24
Thread = tuple[int, int]  # pid, thread


def threads_in(*words: str) -> list[Thread]:
    """The threads that '777:780' names, among words by comma."""
    parts = [part.strip() for word in words for part in word.split(",")]
    return [(int(match[1]), int(match[2])) for part in parts if (match := WORD.fullmatch(part))]


def recorded_threads(threads: Mapping[str, Sequence[Sequence[int]]] | None) -> list[Thread]:
    """Those of capture.json's `threads`."""
    return [(int(pid), int(tid)) for pairs in (threads or {}).values() for pid, tid in pairs]


def label_of(thread: Thread) -> str:
    """How a thread is named where processes are."""
    return f"{thread[0]}:{thread[1]}"


def split_threads(capture: Capture, files: Sequence[Path], threads: Iterable[Thread]) -> Capture:
    """The capture with each thread's work as that of a process of its own, labelled 'pid:tid'.

    A thread that launched nothing, and one that is a process of its own already, changes nothing.
    """
    there = {process.label for process in capture.processes}
    for thread in dict.fromkeys(threads):
        if label_of(thread) not in there:
            capture = _split(capture, files, thread)
    return capture


def check_threads(capture: Capture, threads: Iterable[Thread]) -> None:
    """Raises InputError for a thread that launched no work."""
    there = {process.label for process in capture.processes}
    for thread in threads:
        if label_of(thread) not in there:
            raise InputError(
                f"no thread {thread[1]} of process {thread[0]} launched work: give the one that launches, as "
                "CUPTI_ACTIVITY_KIND_RUNTIME's globalTid has it, or the process alone"
            )


def _split(capture: Capture, files: Sequence[Path], thread: Thread) -> Capture:
    """One thread's work taken out of its process, in every session that knows it."""
    starts, processes = sorted(set(capture.alignment.offsets_ns)), list(capture.processes)
    kernels, copies, lost = capture.kernels, capture.copies, 0
    kernel_process, copy_process = kernels.process.copy(), copies.process.copy()
    for place, process in enumerate(capture.processes):
        if process.pid != thread[0] or process.thread is not None:
            continue
        sessions = [starts.index(offset) for offset in capture.alignment.offsets_ns]
        own = [file for file, session in zip(files, sessions, strict=True) if session == process.session]
        by_file = [_launched(unpacked(file), thread) for file in own]
        mine, others = (np.concatenate([ids[side] for ids in by_file]) for side in (0, 1))
        rows = np.flatnonzero(kernels.process == place)
        ids = kernels.correlation[rows]
        launched, elsewhere = np.isin(ids, mine), np.isin(ids, others)
        streams = set(kernels.stream[rows[launched]].tolist()) - set(kernels.stream[rows[elsewhere]].tolist())
        unknown = ~launched & ~elsewhere
        by_stream = unknown & np.isin(kernels.stream[rows], list(streams))
        if not (launched | by_stream).any():
            continue
        lost += int((unknown & ~by_stream).sum())
        kernel_process[rows[launched | by_stream]] = len(processes)
        copy_rows = (copies.process == place) & np.isin(copies.stream, list(streams))
        copy_process[copy_rows] = len(processes)
        name = f"{process.name} (thread {thread[1]})".strip()
        processes.append(Process(process.pid, label_of(thread) + process.label[len(str(process.pid)) :], name,
                                 process.session, thread[1]))  # fmt: skip
    words = f"{lost:,} kernels have no launch in the export that tells their thread: taken for the process's other work"
    return replace(
        capture,
        kernels=replace(kernels, process=kernel_process),
        copies=replace(copies, process=copy_process),
        processes=processes,
        omissions=[*capture.omissions, *([words] if lost else [])],
    )


def _launched(file: Path, thread: Thread) -> tuple[np.ndarray, np.ndarray]:
    """Correlation ids of a process's API calls: those of the thread, those of its other threads."""
    with opened(file) as connection:
        table = find_table(tables_of(connection), "CUPTI_ACTIVITY_KIND_RUNTIME")
        if table is None:
            return np.empty(0, np.uint32), np.empty(0, np.uint32)
        rows = connection.execute(
            f'SELECT correlationId & 4294967295, globalTid & {TID_MASK} FROM "{table}" '
            f"WHERE (globalTid >> {PID_BITS}) & {TID_MASK} = ? AND correlationId IS NOT NULL",
            (thread[0],),
        )
        with closing(rows):
            pairs = np.array(rows.fetchall(), np.int64).reshape(-1, 2)
    is_mine = pairs[:, 1] == thread[1]
    return pairs[is_mine, 0].astype(np.uint32), pairs[~is_mine, 0].astype(np.uint32)
