"""The timeline to zoom in a real browser: what it shows at every zoom is what was measured, and names are words."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from colo_lib.analysis.trace import downsample, summary
from colo_lib.analysis.trace.processes import assign, printable
from colo_lib.analysis.trace.window import TraceWindow, look
from colo_lib.data.capture import read_exports
from colo_lib.examples.captures import simulated_capture
from colo_lib.report import notebook_output, page, timeline, trace_tables
from tests.corpus_files import MARKUP
from tests.report import chromium
from tests.report.chromium import Press

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: install the chromium package"),
]
READY = """new Promise(done => { const look = () => document.querySelector('.colo-timeline').dataset.state == 'reading'
    ? setTimeout(look, 20) : done(document.querySelector('.colo-timeline').dataset.state); look(); })"""
FOCUS = "document.querySelector('.colo-stage').focus()"
STATUS = "document.querySelector('.colo-status').textContent"
SHOWS = "document.querySelector('.colo-timeline').dataset.shows"
SPAN = "(box => [Number(box.fromNs), Number(box.toNs)])(document.querySelector('.colo-timeline').dataset)"
TIP = "(tip => tip.hidden ? null : tip.textContent)(document.querySelector('.colo-tip'))"
POINT = """(() => { const canvas = document.querySelector('.colo-stage canvas'), box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 54 + %(share)s * (box.width - 64),
        clientY: box.top + %(y)s, bubbles: true})); })()"""
GEN_Y, EMBED_Y = 60, 120  # in the rows, below the canvas's top


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> TraceWindow:
    """Step 2, simulated, with a name of embed's that is no name."""
    file = simulated_capture(tmp_path_factory.mktemp("trace") / "trace.sqlite", "step2")
    with contextlib.closing(sqlite3.connect(file)) as export, export:
        export.execute("UPDATE StringIds SET value = ? || value WHERE value LIKE '%coopA_TNT'", (MARKUP,))
    return view_of(file)


def view_of(file: Path, mechanism: str = "mps") -> TraceWindow:
    capture = read_exports([file])
    return look(capture, assign(capture, {})[0], mechanism=mechanism)


def page_of(view: TraceWindow, file: Path, **options: Any) -> Path:
    """A page as `page.run_html` makes one, of the part that a notebook shows of a view."""
    shown: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook_output, "_publish", lambda data, part: shown.append(part))
        words = trace_tables.overlap_words(summary.summary_of(view))
        whole = timeline.timeline_of(view, sum(view.window) // 2, **options)
        notebook_output.show_timeline(whole, "kernel-zoom", "To zoom.", words, section="traces")
    own = {"title": "A timeline", "about": {}, "footer": "", "skip": ("t", "Skip"), "zooming": True}
    parts = [{**shown[0], "names": ["kernel-zoom"]}]
    file.write_text(page.document("page.html", parts=parts, **own), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def file(view: TraceWindow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(view, tmp_path_factory.mktemp("page") / "page.html")


def seen(file: Path, *steps: Any, width: int = 1280, dark: bool = False) -> dict[str, Any]:
    """Go through `steps` on the page with its timeline ready: keys to press, expressions to carry out, and
    (name, expression) for what is to be told. Nothing may have gone wrong, nothing been fetched.
    """
    named = {"ready": READY}
    for place, step in enumerate(steps):
        name, expression = step if isinstance(step, tuple) else (f"step {place}", step)
        named[name] = expression
    found = chromium.load(file, width, dark, named)
    assert (found["complaints"], found["ready"]) == ([], "ready")
    return found


def test_it_opens_with_what_the_numbers_tell(view: TraceWindow, file: Path) -> None:
    told = seen(file, ("status", STATUS), ("shows", SHOWS), ("span", SPAN))
    found = summary.summary_of(view)
    shares = [found["workloads"][name]["busy_ns"] / view.window_ns for name in ("gen", "embed")]
    both = found["overlap_ns"] / view.window_ns
    assert told["span"] == [0, view.window_ns]
    assert told["shows"] == "bins of 80000 ns"
    assert "The whole window, 60.06 ms. Bars: share of bins of 80 us" in told["status"]
    assert f"LLM busy {shares[0]:.1%}, embedder busy {shares[1]:.1%}, both at once {both:.1%}." in told["status"]


def test_the_browser_has_every_bin_and_every_kernel_exactly(view: TraceWindow, file: Path) -> None:
    data = (Path(notebook_output.__file__).parent / "timeline_data.js").read_text(encoding="utf-8")
    unpacked = f"""{data}; unpack(document.querySelector('.colo-timeline').dataset.packed).then(data => [
        data.levels.map(level => [level.binNs, [...level.busy, ...level.starts, level.both].map(list => [...list])]),
        data.rows.map(rows => [rows.start, rows.end, rows.blocks, rows.name].map(list => [...list])), data.names])"""
    levels, rows, names = seen(file, ("data", unpacked))["data"]
    for (bin_ns, columns), level in zip(levels, downsample.every_level(view, levels[0][0]), strict=True):
        exact = [*level.busy_ns.values(), *level.starts.values(), level.overlap_ns]
        assert (bin_ns, columns) == (level.bin_ns, [column.tolist() for column in exact])
    for (start, end, blocks_of, places), own in zip(rows, downsample.rows_of(view, view.window).values(), strict=True):
        assert (start, blocks_of) == (own.start_ns.tolist(), own.blocks.tolist())
        assert end == (own.start_ns + own.duration_ns).tolist()
        assert [names[place] for place in places] == [
            printable(view.capture.names[place]) for place in own.name.tolist()
        ]


def test_keys_zoom_to_single_kernels_move_and_go_back(view: TraceWindow, file: Path) -> None:
    told = seen(
        file, FOCUS, *[Press("+")] * 6, ("near", SPAN), ("shows", SHOWS), ("status", STATUS), Press("ArrowRight"),
        ("moved", SPAN), Press("-"), ("far", SPAN), Press("0"), ("whole", SPAN),
    )  # fmt: skip
    near, moved, far = told["near"], told["moved"], told["far"]
    assert near[1] - near[0] == pytest.approx(view.window_ns / 2**6)
    assert told["shows"] == "kernels"
    assert "Kernels one by one; LLM busy" in told["status"]
    assert [after - before for after, before in zip(moved, near, strict=True)] == pytest.approx(
        [view.window_ns / 2**8] * 2
    )
    assert far[1] - far[0] == pytest.approx(view.window_ns / 2**5)
    assert told["whole"] == [0, view.window_ns]


@pytest.mark.parametrize("zooms", [2, 7], ids=["bins", "kernels"])
def test_what_is_told_of_a_stretch_is_true_of_it(view: TraceWindow, file: Path, zooms: int) -> None:
    told = seen(file, FOCUS, *[Press("+")] * zooms, ("span", SPAN), ("shows", SHOWS), ("status", STATUS))
    grain = int(told["shows"].split()[2]) if zooms == 2 else 1  # bins are told whole
    start, end = math.floor(told["span"][0] / grain) * grain, math.ceil(told["span"][1] / grain) * grain
    assert shares_in(told["status"]) == pytest.approx(true_shares(view, start, end), abs=0.06)


def shares_in(status: str) -> list[float]:
    return [float(words) for words in re.findall(r"([\d.]+)%", status)]


def true_shares(view: TraceWindow, start_ns: float, end_ns: float) -> list[float]:
    """Busy shares of gen and embed and of both at once in a stretch since the window's start, %."""
    stretch = (view.window[0] + start_ns) / 1e9, (view.window[0] + end_ns) / 1e9
    found = summary.summary_of(look(view.capture, view.assignment, stretch, mechanism=view.mechanism))
    parts_ns = [found["workloads"][name]["busy_ns"] for name in ("gen", "embed")] + [found["overlap_ns"]]
    return [100 * part / (end_ns - start_ns) for part in parts_ns]


def test_wheel_and_drag_move_it_once_the_reader_turned_to_it(file: Path) -> None:
    wheel = """document.querySelector('.colo-stage canvas').dispatchEvent(new WheelEvent('wheel',
        {deltaY: -400, clientX: 640, bubbles: true, cancelable: true}))"""
    drag = """(canvas => { const top = canvas.getBoundingClientRect().top, at = (kind, x) => canvas.dispatchEvent(
        new PointerEvent(kind, {clientX: x, clientY: top + 60, pointerId: 1, bubbles: true}));
        canvas.setPointerCapture = () => 0; at('pointerdown', 640); at('pointermove', 540); at('pointerup', 540); })(
        document.querySelector('.colo-stage canvas'))"""
    told = seen(
        file, ("scrolls", wheel), ("whole", SPAN), FOCUS, ("also scrolls", wheel), ("near", SPAN), drag, ("moved", SPAN)
    )
    assert told["scrolls"], "a wheel over the picture scrolls the page"
    assert not told["also scrolls"]
    near, moved, whole = told["near"], told["moved"], told["whole"]
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) * math.exp(-0.8))
    assert moved[0] - near[0] == pytest.approx(moved[1] - near[1])
    assert moved[0] > near[0], "dragged to the left, later times come into view"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_hostile_name_is_shown_as_words(file: Path, width: int, dark: bool) -> None:
    steps = [step for place in range(6) for step in (Press("n"), (f"kernel {place}", TIP))]
    told = seen(
        file, FOCUS, *[Press("+")] * 7, Press("ArrowDown"), *steps, ("status", STATUS),
        ("made", "document.querySelectorAll('img, .colo-timeline script, b').length"), width=width, dark=dark,
    )  # fmt: skip
    hostile = [told[f"kernel {place}"] for place in range(6) if printable(MARKUP) in told[f"kernel {place}"]]
    assert hostile, "every fourth kernel of embed has that name"
    assert re.search(r"\nembedder: from [\d,]+\.\d{3} us, lasts [\d.]+ us, 1,056 blocks$", hostile[0])
    assert told["made"] == 0, "no element was made of a name"
    assert told["kernel 5"].replace("\n", "; ") == told["status"], "who does not see the picture is told the same"


def test_the_pointer_is_told_what_lies_under_it(file: Path) -> None:
    told = seen(
        file, POINT % {"share": 0.5, "y": GEN_Y}, ("bin", TIP), FOCUS, *[Press("+")] * 8,
        POINT % {"share": 0.5, "y": EMBED_Y}, ("kernel", TIP), POINT % {"share": -0.03, "y": EMBED_Y}, ("nothing", TIP),
    )  # fmt: skip
    lines = [re.sub(r"\d[\d.,]*", "N", line) for line in told["bin"].splitlines()]
    assert lines[0] == "N us to N us"
    assert lines[1].startswith("LLM: busy N%, N kernel")
    assert lines[2].startswith("embedder: busy N%, N kernel")
    assert lines[3] == "both at once: N%"
    assert re.search(r"embedder: from [\d,.]+ us, lasts [\d.]+ us, [\d,]+ blocks", told["kernel"])
    assert told["nothing"] is None


def test_it_is_drawn_in_the_colours_of_the_workloads(file: Path) -> None:
    colours = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => { const pen =
        document.querySelector('.colo-stage canvas').getContext('2d'), found = new Set();
        for (const y of [80, 143]) { const row = pen.getImageData(0, y, pen.canvas.width, 1).data;
            for (let i = 0; i < row.length; i += 4) if (row[i + 3] == 255) found.add([...row.slice(i, i + 3)].join()); }
        done([...found]); })))"""
    told = seen(file, ("bins", colours), FOCUS, *[Press("+")] * 7, ("kernels", colours))
    for shown in (told["bins"], told["kernels"]):
        assert {"0,114,178", "213,94,0"} <= set(shown), "GEN_COLOUR and EMBED_COLOUR"


def test_time_switched_out_is_told(tmp_path: Path) -> None:
    view = view_of(simulated_capture(tmp_path / "trace.sqlite", "step3"), "time-sliced")
    assert view.basis == "residency"
    steps = [step for place in range(40) for step in (Press("n"), (f"kernel {place}", TIP))]
    told = seen(page_of(view, tmp_path / "page.html"), FOCUS, *[Press("+")] * 5, Press("ArrowDown"), *steps, Press("0"),
                *[Press("+")] * 4, ("shows", SHOWS), ("span", SPAN), ("status", STATUS))  # fmt: skip
    assert [told[f"kernel {place}"] for place in range(40) if ", of it switched out 2 ms, " in told[f"kernel {place}"]]
    assert "pale: begun, but switched out" in told["status"]
    assert told["shows"] == "kernels"
    assert shares_in(told["status"]) == pytest.approx(true_shares(view, *told["span"]), abs=0.06)
    assert shares_in(told["status"])[2] == 0


def test_beyond_its_budget_the_finest_bins_are_told(view: TraceWindow, tmp_path: Path) -> None:
    tight = page_of(view, tmp_path / "page.html", most_characters=16_000)
    told = seen(
        tight, FOCUS, *[Press("+")] * 6, ("middle", SHOWS), Press("0"), *[Press("ArrowLeft")] * 9, *[Press("+")] * 2,
        *[Press("ArrowLeft")] * 9, *[Press("+")] * 20, ("edge", SHOWS), ("status", STATUS), ("span", SPAN),
    )  # fmt: skip
    assert told["middle"] == "kernels", "those in the middle are held one by one"
    assert re.fullmatch(r"bins of \d+ ns", told["edge"])
    assert re.search(r"the finest here \(kernels one by one are held from [\d.]+ ms to [\d.]+ ms\)", told["status"])
    assert told["span"][0] > 0


def test_without_scripts_words_and_numbers_are_left(file: Path) -> None:
    asked = {
        "words": "document.querySelector('.colo-timeline').innerText",
        "pictures": "document.querySelectorAll('canvas, .colo-timeline button').length",
        "rows": "document.querySelectorAll('.colo-timeline tbody tr').length",
    }
    told = chromium.load(file, 1280, False, asked, scripts=False)
    assert "no script ran" in told["words"]
    assert "Both ran at once for" in told["words"]
    assert told["pictures"] == 0
    assert told["rows"] > 3
