"""Both workloads in one process: planted exports in which a kernel's name and stream say nothing of its owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colo_lib.analysis.trace.summary import summary_of
from colo_lib.analysis.trace.window import Asked, looked_at, view_of
from colo_lib.cli import main
from colo_lib.data.capture import StepCapture, read_files, with_threads
from colo_lib.errors import InputError
from colo_lib.examples.captures import Schema
from colo_lib.paths import CAPTURE
from colo_lib.trace import SET
from tests.exports import EMBED, GEN, Kernel, naive, write

PID, MAIN, HOSTED = 777, 777, 801
# Launched by turns, all of one name; the third of each in a graph, whose kernels carry their launch's correlation id.
GEN_SPANS = [(0, 10), (20, 30), (40, 50), (50, 60)]
EMBED_SPANS = [(5, 25), (35, 55), (55, 58), (70, 90)]


def global_tid(pid: int, tid: int) -> int:
    return (1 << 48) | (pid << 24) | tid


def planted(
    file: Path, streams: tuple[int, int] = (7, 13), graphs_whole: bool = False, launches_of: str = "both"
) -> Path:
    """An export of one process in which thread MAIN launched GEN_SPANS and thread HOSTED EMBED_SPANS."""
    kernels = [Kernel(PID, *span, stream=streams[0]) for span in GEN_SPANS]
    kernels += [Kernel(PID, *span, stream=streams[1]) for span in EMBED_SPANS]
    if graphs_whole:
        kernels = [Kernel(row.pid, row.start, row.end, blocks=0, stream=row.stream) for row in kernels]
    ids = list(range(1, len(kernels) + 1))  # as `exports.columns` numbers them
    threads = [MAIN] * len(GEN_SPANS) + [HOSTED] * len(EMBED_SPANS)
    rows = [(number, tid) for number, tid in zip(ids, threads, strict=True) if launches_of == "both" or tid != HOSTED]
    runtime = {
        "start": [number for number, _ in rows],
        "end": [number + 1 for number, _ in rows],
        "globalTid": [global_tid(PID, tid) for _, tid in rows],
        "correlationId": [number for number, _ in rows],
    }
    # Another process with the same correlation id and thread number is another's affair.
    for values, value in zip(runtime.values(), (1, 2, global_tid(9, HOSTED), 1), strict=True):
        values.append(value)
    copies = {
        "start": [3, 4], "end": [4, 5], "globalPid": [global_tid(PID, 0)] * 2, "streamId": list(streams),
        "bytes": [10, 20],
    }  # fmt: skip
    tables = {"CUPTI_ACTIVITY_KIND_RUNTIME": runtime, "CUPTI_ACTIVITY_KIND_MEMCPY": copies}
    return write(file, kernels, tables=tables)


def seen(captured: StepCapture, gen: str = "", embed: str = "") -> Any:
    view, guessed = looked_at(captured.capture, captured.facts, {"gen": gen, "embed": embed})
    assert not guessed
    return view


def expected() -> Any:
    """The same spans in two processes, counted naively."""
    kernels = [Kernel(GEN, *span) for span in GEN_SPANS] + [Kernel(EMBED, *span) for span in EMBED_SPANS]
    return naive(kernels)


@pytest.mark.parametrize("streams", [(7, 13), (7, 7)])
@pytest.mark.parametrize("graphs_whole", [False, True])
def test_the_thread_that_launched_decides_not_the_name_nor_the_stream(
    tmp_path: Path, streams: tuple[int, int], graphs_whole: bool
) -> None:
    file = planted(tmp_path / "trace.sqlite", streams, graphs_whole)
    view = seen(with_threads(read_files([file]), f"{PID}", f"{PID}:{HOSTED}"), f"{PID}", f"{PID}:{HOSTED}")
    for name, spans in (("gen", GEN_SPANS), ("embed", EMBED_SPANS)):
        active = view.workloads[name]
        assert sorted(active.get("start_ns").tolist()) == [start for start, _ in spans]
    counted, summary = expected(), summary_of(view)
    assert (summary["overlap_ns"], summary["busy_ns"]) == (counted.overlap_ns, counted.busy_ns)
    assert summary["workloads"]["embed"]["busy_ns"] == counted.embed_ns


def test_the_main_thread_can_be_named_as_well(tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite")
    words = f"{PID}:{MAIN}", f"{PID}:{HOSTED}"
    view = seen(with_threads(read_files([file]), *words), *words)
    assert len(view.workloads["gen"].get("start_ns")) == len(GEN_SPANS)


def test_copies_go_with_the_stream_that_is_the_threads_alone(tmp_path: Path) -> None:
    for streams, theirs in (((7, 13), [20]), ((7, 7), [])):
        file = planted(tmp_path / "trace.sqlite", streams)
        capture = with_threads(read_files([file]), f"{PID}:{HOSTED}").capture
        place = next(place for place, process in enumerate(capture.processes) if process.thread == HOSTED)
        its = capture.copies.process == place
        assert capture.copies.size_bytes[its & (capture.copies.kind != SET)].tolist() == theirs


def test_what_capture_json_says_is_heeded_without_a_word(tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite")
    facts = {
        "pids": {"gen": [5, PID], "embed": [PID]},
        "threads": {"embed": [[PID, HOSTED]]},
        "mechanism": "in-process",
    }
    (tmp_path / CAPTURE).write_text(json.dumps(facts | {"exports": [file.name]}))
    captured = read_files([file])
    view = view_of(captured.capture, captured.facts, Asked())
    assert [len(view.workloads[name].get("start_ns")) for name in ("gen", "embed")] == [4, 4]
    labels = {captured.capture.processes[place].label for place in view.assignment["embed"]}
    assert labels == {f"{PID}:{HOSTED}"}
    launches = captured.launches()
    by_label = {process.label: place for place, process in enumerate(captured.capture.processes)}
    for label, ids in ((f"{PID}", [1, 2, 3, 4]), (f"{PID}:{HOSTED}", [5, 6, 7, 8])):
        assert sorted(launches.correlation[launches.process == by_label[label]].tolist()) == ids


def test_work_without_its_launch_goes_by_stream_or_is_told(tmp_path: Path) -> None:
    file = planted(tmp_path / "trace.sqlite", launches_of="gen alone")
    with pytest.raises(InputError, match=f"no thread {HOSTED} of process {PID} launched work"):
        with_threads(read_files([file]), f"{PID}:{HOSTED}")
    capture = with_threads(read_files([file]), f"{PID}:{MAIN}").capture
    assert any("4 kernels have no launch" in words for words in capture.omissions)
    assert np.bincount(capture.kernels.process).tolist() == [4, 4]


def test_an_export_without_api_calls_cannot_tell(tmp_path: Path) -> None:
    kernels = [Kernel(PID, 0, 10)]
    file = write(tmp_path / "trace.sqlite", kernels, schema=Schema(without=frozenset({"CUPTI_ACTIVITY_KIND_RUNTIME"})))
    with pytest.raises(InputError, match="no thread"):
        with_threads(read_files([file]), f"{PID}:{HOSTED}")


def test_colo_trace_takes_pid_and_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = planted(tmp_path / "trace.sqlite")
    assert main(["trace", str(file), "--gen", f"{PID}", "--embed", f"{PID}:{HOSTED}", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [summary["workloads"][name]["kernel_count"] for name in ("gen", "embed")] == [4, 4]
    assert (summary["overlap_ns"], summary["workloads_guessed"]) == (expected().overlap_ns, False)
    assert {row["label"] for row in summary["processes"]} == {f"{PID}", f"{PID}:{HOSTED}"}
    assert main(["trace", str(file), "--gen", f"{PID}", "--embed", f"{PID}:4"]) == 2
