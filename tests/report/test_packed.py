"""What a page holds of a capture: exact, within its budget, and refused where it is not what was packed."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from colo_lib.analysis.trace import downsample, intervals
from colo_lib.analysis.trace.window import TraceWindow, look
from colo_lib.report import notebook_output, timeline
from colo_lib.trace import Alignment, Capture, Copies, Device, Kernels, Overhead, Process, Switches
from tests.analysis.test_levels import kernels_of, view_of
from tests.corpus_files import MARKUP
from tests.exports import EMBED, GEN, Kernel


def unpacked(text: str) -> tuple[dict[str, Any], list[list[int]]]:
    """Header and columns, read as the format says, number by number."""
    raw = zlib.decompress(base64.b64decode(text))
    at = 4 + int.from_bytes(raw[:4], "little")
    header, columns = json.loads(raw[4:at]), []
    for count, width, signed in header["columns"]:
        planes = [raw[at + plane * count : at + (plane + 1) * count] for plane in range(width)]
        values = [sum(planes[plane][i] << 8 * plane for plane in range(width)) for i in range(count)]
        columns.append([(-(value + 1) // 2 if value % 2 else value // 2) if signed else value for value in values])
        at += count * width
    assert at == len(raw)
    return header, columns


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kernels_of)
def test_every_kernel_comes_back_to_the_ns(tmp_path: Path, made: list[Kernel]) -> None:
    view = view_of(tmp_path / "e.sqlite", made)
    fitted = timeline.fit(view, view.window[0])
    assert fitted.whole
    header, columns = unpacked(fitted.text)
    assert header["kernels_ns"] == [0, view.window_ns]
    at = len(header["bins_ns"]) * (2 * len(header["workloads"]) + 1)
    for name, rows in downsample.rows_of(view, view.window).items():
        holes, lasting, names, blocks, *_ = columns[at : at + 6]
        starts, before = [], 0
        for hole, length in zip(holes, lasting, strict=True):
            starts.append(before + hole)
            before += hole + length
        assert (starts, lasting, blocks) == (rows.start_ns.tolist(), rows.duration_ns.tolist(), rows.blocks.tolist())
        graphs = ["CUDA graph launch" if graph else "x" for graph in rows.graph.tolist()]
        assert [header["names"][place] for place in names] == graphs, name
        at += 6
    totals = [sum(columns[place]) for place in range(2 * len(header["workloads"]) + 1)]
    busy = [intervals.length(active.busy) for active in view.workloads.values()]
    assert totals[:-1:2] == busy


def test_minutes_are_held_as_exactly_as_microseconds(tmp_path: Path) -> None:
    longest = 300_000_000_001
    kernels = [Kernel(GEN, 1, longest + 1), Kernel(EMBED, 7, 9)]
    header, columns = unpacked(timeline.fit(view_of(tmp_path / "e.sqlite", kernels), 0).text)
    top = (len(header["bins_ns"]) - 1) * 5
    assert [sum(column) for column in columns[top : top + 5]] == [longest, 1, 2, 1, 2]


def many(count: int, grain_ns: int = 1) -> TraceWindow:
    """A view of `count` kernels of two processes, three quarters gen's; names that look like those of vLLM."""
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {name: np.zeros(count, dtype) for name, dtype in Kernels.dtypes().items()}
    place = (np.arange(count) % 4 == 3).astype(np.int16)
    for process, (most_hole, longest) in enumerate(((18_000, 9_000), (40_000, 30_000))):
        own = place == process
        starts = np.cumsum(rng.integers(2_000, most_hole, own.sum()))
        columns["start_ns"][own] = starts // grain_ns * grain_ns
        columns["end_ns"][own] = (starts + rng.integers(1_000, longest, own.sum())) // grain_ns * grain_ns
    columns["process"] = place
    columns["name"] = rng.integers(0, 60, count).astype(np.int32)
    columns["blocks"] = rng.integers(1, 300, 60)[columns["name"]]
    kernels = Kernels(**columns).take(np.argsort(columns["start_ns"], kind="stable"))
    names = [f"void vllm::kernel_{k}<c10::BFloat16, (int){k}>(c10::BFloat16 *, float *)" for k in range(60)]
    processes = [Process(GEN, str(GEN), "gen"), Process(EMBED, str(EMBED), "embed")]
    nothing = (Copies.empty(), Switches.empty(), Overhead.empty())
    capture = Capture(kernels, *nothing, names, [Device("0", 0, "GPU", 132)], processes, alignment=Alignment())
    return look(capture, {"gen": [0], "embed": [1]}, mechanism="mps")


@pytest.fixture(scope="module")
def million() -> TraceWindow:
    return many(1_000_000)


def test_a_million_kernels_fit_a_notebook_and_none_is_lost(
    million: TraceWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        notebook_output, "_publish", lambda data, part: shown.append({"data": data, "metadata": {"colo": part}})
    )
    notebook_output.show_timeline(
        timeline.timeline_of(million, million.window_ns // 2), "kernel-zoom", "Caption.", "In words.", section="traces"
    )
    assert len(json.dumps(shown[0])) <= 3_000_000
    part = shown[0]["metadata"]["colo"]
    header, columns = unpacked(part["packed"])
    assert sum(columns[1]) + sum(columns[3]) == 1_000_000
    assert sum(columns[0]) == intervals.length(million.workloads["gen"].busy)
    assert "1,000,000 kernels in bins of 200 us at the finest, none left out; one by one from" in part["caption"]
    start, end = header["kernels_ns"]
    assert 0 < start < million.window_ns / 2 < end < million.window_ns, "those about the moment asked for are held"
    held = downsample.rows_of(million, (start + million.window[0], end + million.window[0]))
    assert sum(map(len, held.values())) > 50_000


@pytest.mark.parametrize("most", [40_000, 4_000, 400])
def test_a_smaller_budget_is_kept_and_what_it_costs_is_told(most: int) -> None:
    view = many(20_000)
    fitted = timeline.fit(view, view.window_ns // 2, most)
    assert len(fitted.text) <= most
    assert timeline.readable(fitted.text)
    for level in fitted.levels:
        assert sum(int(starts.sum()) for starts in level.starts.values()) == 20_000
    told = timeline.timeline_in_words(fitted)
    assert "20,000 kernels in bins of " in told
    assert ("none fits here one by one" in told) == (fitted.stretch_ns is None)


def test_a_small_capture_is_whole_and_small() -> None:
    fitted = timeline.fit(many(8_000, grain_ns=32), 0)
    assert fitted.whole
    assert len(fitted.text) + len(notebook_output.page_script(zooming=True)) < 300_000
    assert timeline.timeline_in_words(fitted) == "All 8,000 kernels can be seen one by one."


def test_what_was_not_packed_is_told_not_embedded() -> None:
    good = timeline.fit(many(50), 0).text
    raw = zlib.decompress(base64.b64decode(good))
    encoded = lambda content: base64.b64encode(content).decode()  # noqa: E731
    bomb = encoded(zlib.compress(bytes(timeline.MOST_UNPACKED_BYTES + 1)))
    headless = encoded(zlib.compress((2).to_bytes(4, "little") + b"[]"))
    strange = [None, 5, "", "<script>", good[:-8], encoded(raw), encoded(zlib.compress(raw + b"x")), bomb, headless,
               encoded(zlib.compress(b"\xff" * 99)), "A" * (timeline.MOST_CHARACTERS + 4)]  # fmt: skip
    assert timeline.readable(good)
    for text in strange:
        assert not timeline.readable(text), str(text)[:40]
        html = notebook_output.render_block("timeline", {"packed": text, "name": MARKUP, "caption": "", "alt": ""})
        assert "colo-timeline" not in html
        assert "<script" not in html


def test_its_numbers_are_there_in_words_too() -> None:
    view = many(5_000)
    shown = timeline.timeline_of(view, 0)
    assert shown["columns"] == [
        "From (ms)",
        "LLM busy",
        "LLM kernels started",
        "embedder busy",
        "embedder kernels started",
        "Both at once",
    ]
    assert 4 <= len(shown["rows"]) <= timeline.MOST_ROWS
    assert sum(int(row[2].replace(",", "")) + int(row[4].replace(",", "")) for row in shown["rows"]) == 5_000
