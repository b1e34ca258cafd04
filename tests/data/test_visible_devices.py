"""Two processes that both call their GPU 0: the launcher's word puts each where it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colo_lib.analysis.trace import summary
from colo_lib.analysis.trace.window import look
from colo_lib.data.capture import on_their_gpus, read_capture, read_exports
from colo_lib.paths import RECORDED
from tests.exports import Kernel, write

GPUS = {"id": [1, 0], "uuid": ["bbbb", "aaaa"], "name": ["GPU of rank 1", "GPU of rank 0"]}
# gen sees both GPUs; each embedder one, and calls it 0
WORK = [Kernel(10, 0, 50, device=0), Kernel(10, 60, 90, device=1), Kernel(20, 0, 40), Kernel(21, 0, 30)]


def export(tmp_path: Path, **tables: Any) -> Path:
    return write(tmp_path / "trace.sqlite", WORK, tables={"TARGET_INFO_GPU": GPUS} | tables)


def where(capture: Any) -> dict[int, set[int]]:
    kernels = capture.kernels
    found: dict[int, set[int]] = {}
    for process, device in zip(kernels.process, kernels.device, strict=True):
        found.setdefault(capture.processes[process].pid, set()).add(capture.devices[device].number)
    return found


@pytest.mark.parametrize("names", [("0", "1"), ("GPU-aaaa", "GPU-bbbb")])
def test_each_process_is_put_on_the_gpu_that_it_saw(tmp_path: Path, names: tuple[str, str]) -> None:
    capture = read_exports([export(tmp_path)])
    assert where(capture) == {10: {0, 1}, 20: {0}, 21: {0}}, "as the export has it"
    visible = {"10": list(names), "20": [names[0]], "21": [names[1]]}
    assert where(on_their_gpus(capture, visible)) == {10: {0, 1}, 20: {0}, 21: {1}}


def test_a_gpu_that_only_the_second_embedder_used_is_found(tmp_path: Path) -> None:
    file = write(tmp_path / "t.sqlite", [Kernel(20, 0, 40), Kernel(21, 0, 30)], tables={"TARGET_INFO_GPU": GPUS})
    told = on_their_gpus(read_exports([file]), {"20": ["0"], "21": ["1"]})
    assert where(told) == {20: {0}, 21: {1}}
    assert {device.name for device in told.devices} == {"GPU of rank 0", "GPU of rank 1"}


def test_an_export_that_tells_the_gpus_itself_is_left_alone(tmp_path: Path) -> None:
    told = {"gpuId": [0, 1, 0, 1], "cudaId": [0, 1, 0, 0], "pid": [10, 10, 20, 21]}
    capture = read_exports([export(tmp_path, TARGET_INFO_CUDA_DEVICE=told)])
    assert where(capture) == {10: {0, 1}, 20: {0}, 21: {1}}
    assert where(on_their_gpus(capture, {"21": ["0"]})) == {10: {0, 1}, 20: {0}, 21: {1}}


def test_without_anybodys_word_the_reader_is_warned(tmp_path: Path) -> None:
    capture = read_exports([export(tmp_path)])
    places = {"gen": [0], "embed": [1, 2]}
    assert any("does not say which of them" in note for note in summary.notes(look(capture, places)))
    mapped = on_their_gpus(capture, {"10": ["0", "1"], "20": ["0"], "21": ["1"]})
    assert not any("does not say which of them" in note for note in summary.notes(look(mapped, places)))


def test_the_recorded_embedders_of_two_gpus_are_apart() -> None:
    (run,) = RECORDED.glob("h100-x2-*/cells/cell-001/runs/*")
    for step, worked in (("configB", {0, 1}), ("configB-one", {1}), ("tp2-mps-alone", set())):
        one = read_capture(run, step)
        embeds = set((one.facts.pids or {})["embed"])
        assert {gpu for pid, gpus in where(one.capture).items() if pid in embeds for gpu in gpus} == worked, step
