"""Figures of captures by their marks; and notebooks 41-45 as tracked."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from colo_lib import params, paths
from colo_lib.analysis.trace import downsample, kernels, occupancy, summary, window
from colo_lib.analysis.trace.window import Asked
from colo_lib.data.run import open_run
from colo_lib.examples.captures import H100_PAIR
from colo_lib.notebooks_sync import names_of
from colo_lib.params import Params
from colo_lib.plot import trace as plot_trace
from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR
from colo_lib.report import notebook_output
from colo_lib.select import select_trace
from tests.corpus_files import MARKUP
from tests.forked_notebooks import executed_in_forks
from tests.run_folders import Plan, add_capture, write_run

NOTEBOOKS = ("41-kernel-overlap", "42-sm-occupancy", "43-idle-gaps", "44-kernel-durations", "45-categories")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trace = select_trace(Params(runs_dir=str(tmp_path_factory.mktemp("none"))), alone=True)
    view = window.view_of(trace.captured.capture, trace.captured.facts, Asked())
    own = {name: (one.capture, one.facts, one.window_s) for name, one in trace.alone.items()}
    moved = [kernels.duration_shifts(alone, view, name) for name, alone in window.views_alone(own).items()]
    return {"view": view, "found": summary.summary_of(view), "shift": moved}


def figures(data: dict[str, Any]) -> list[Figure]:
    view, found = data["view"], data["found"]
    stretch = downsample.typical_stretch(view, 2_000_000)
    over, holes = occupancy.occupancy_over_time(view), occupancy.find_gaps(view)
    classes = {name: occupancy.distribution(active, view.device) for name, active in view.workloads.items()}
    kinds = {name: workload["categories"] for name, workload in found["workloads"].items()}
    return [
        plot_trace.timeline(downsample.rectangles(view, stretch), stretch, over, view.window[0]),
        plot_trace.occupancy(over, classes),
        plot_trace.gaps(occupancy.by_class(holes, view.window_ns), occupancy.idle_over_time(holes, view.window)),
        plot_trace.shifts(data["shift"]),
        plot_trace.categories(kinds, kernels.CATEGORIES),
    ]


def test_the_timeline_has_a_row_of_kernels_for_each_workload(data: dict[str, Any]) -> None:
    figure = figures(data)[0]
    rows = {item.get_gid(): item for item in figure.axes[0].collections if item.get_gid()}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["embedder", "LLM"]
    for name, colour in (("gen", GEN_COLOUR), ("embed", EMBED_COLOUR)):
        row = rows[f"row-{name}"]
        assert to_hex(row.get_facecolor()[0]).upper() == colour
    drawn = downsample.rectangles(data["view"], downsample.typical_stretch(data["view"], 2_000_000))
    assert len(rows["row-gen"].get_paths()) == len(drawn.rows["gen"][0])


def test_bars_stand_at_the_counted_shares(data: dict[str, Any]) -> None:
    figure = figures(data)[4]
    bars = [bar for group in figure.axes[0].containers for bar in group]
    widths = sorted(bar.get_width() for bar in bars if bar.get_width())
    shares = [row["fraction"] * 100 for w in data["found"]["workloads"].values() for row in w["categories"]]
    assert widths == pytest.approx(sorted(shares))


def test_no_text_is_cut_off_and_every_axis_names_its_unit(data: dict[str, Any]) -> None:
    for figure in figures(data):
        figure.draw_without_rendering()
        for axes in figure.axes:
            named = axes.get_xlabel() + axes.get_ylabel()
            assert any(unit in named for unit in ("(ms)", "(%)", "(us)", "(count)", "could fill")), named
            low, high = axes.get_xlim()
            ticks = [t for t in axes.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
            boxes = sorted((tick.get_window_extent().x0, tick.get_window_extent().x1) for tick in ticks)
            if not any(tick.get_rotation() for tick in ticks):
                assert all(a[1] <= b[0] for a, b in pairwise(boxes)), [t.get_text() for t in ticks]
            bottom, top = sorted(axes.get_ylim())
            up = [t for t in axes.get_yticklabels() if bottom <= t.get_position()[1] <= top]
            for text in [axes._left_title, axes.xaxis.label, axes.yaxis.label, *up]:
                box = text.get_window_extent()
                inside = box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
                assert inside or not text.get_text(), text.get_text()


def test_nothing_known_still_gives_figures() -> None:
    nothing = occupancy.FilledOverTime(np.array([0.0, 1.0]), {}, {})
    for figure in (
        plot_trace.occupancy(nothing, {"gen": None}),
        plot_trace.shifts([]),
        plot_trace.categories({"gen": []}, kernels.CATEGORIES),
    ):
        figure.savefig(io.BytesIO(), format="png")


def test_hostile_names_are_drawn_as_words() -> None:
    for name in (MARKUP, "$\\frac{", "a" * 500, "", "(((", "<<<", "void f<a<b>>::g<(int)3>(int)"):
        shown = plot_trace.short_name(name)
        assert len(shown) <= plot_trace.NAME_WIDTH
        assert shown.isprintable()
        assert "$" not in shown
    row = kernels.KernelShift(MARKUP, 1.0, 2.0, 1.0, alone_count=1, shared_count=1, alone_time_ns=1_000)
    figure = plot_trace.shifts([kernels.DurationShifts("gen", [row], 1.0, 1.0, [], [])])
    figure.savefig(io.BytesIO(), format="png")
    assert plot_trace.short_name("void vllm::moe::topkGating<8, 128>(const float *)") == "moe::topkGating"
    assert plot_trace.short_name("nvjet_sm90_tst_NNT") == "nvjet_sm90_tst_NNT"
    flash = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<X>>>(Params)"
    assert plot_trace.short_name(flash) == "device_kernel<FlashAttnFwdSm90>"
    assert plot_trace.signed(-0.001) == "+0%"


def test_hostile_names_stand_in_tables_as_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colo_lib.analysis.trace.processes import assign
    from colo_lib.data.capture import read_exports
    from colo_lib.report import trace_tables
    from tests.exports import EMBED, GEN, Kernel, write

    shown: list[dict[str, str]] = []
    monkeypatch.setattr(notebook_output, "_publish", lambda data, part: shown.append(data))
    named = {GEN: MARKUP, EMBED: MARKUP}
    file = write(tmp_path / "e.sqlite", [Kernel(GEN, 0, 9, name=MARKUP), Kernel(EMBED, 5, 20)], processes=named)
    capture = read_exports([file])
    found = summary.summary_of(window.look(capture, assign(capture, {"gen": str(GEN)})[0]))
    for table in (trace_tables.top_kernels(found), trace_tables.device(found), trace_tables.categories(found)):
        notebook_output.show_table(table, "hostile", "Names from outside.", section="traces")
        html = shown.pop()["text/html"]
        for own in (notebook_output.page_style(), notebook_output.page_script()):
            assert own in html
            html = html.replace(own, "")
        assert html.count("<script") == 1, "our own, which is empty now"
        assert not [tag for tag in ("<img", "<b ") if tag in html]
        assert all(char.isprintable() for char in html.replace("\n", ""))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_the_house_form(name: str) -> None:
    notebook = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    opening = "".join(notebook["cells"][0]["source"])
    assert all(word in opening for word in ("**Question.**", "**Needs.**", "**Shows.**"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "".join(code[0]["source"]) == params.cell_source(names_of(name))
    assert "params = from_notebook(globals())" in "".join(code[1]["source"])
    assert all(1 <= len(cell["source"]) <= 6 for cell in code[1:]), [len(cell["source"]) for cell in code]
    assert "".join(code[-1]["source"]) == f'out.finish("{name}", trace.run_id)'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_run(tmp_path_factory.mktemp("runs"), Plan(window_s=2.0))
    for step in ("step1", "step2", "step4"):
        add_capture(made, step)
    return made


@pytest.fixture(scope="module")
def executed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every notebook of captures on a run's; `exports` and `example`: the first on bare exports, and on nothing."""
    folder = tmp_path_factory.mktemp("executed")
    empty = {"runs_dir": str(folder / "none")}
    wanted = {name: (name, {"run": str(run)}) for name in NOTEBOOKS}
    wanted["exports"] = (NOTEBOOKS[0], empty | {"exports": ",".join(map(str, H100_PAIR))})
    wanted["example"] = (NOTEBOOKS[0], empty)
    return {key: notebook_output.lift(made) for key, made in executed_in_forks(folder, run, wanted).items()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_reads_a_runs_capture_to_the_end(name: str, executed: dict[str, list[dict[str, Any]]]) -> None:
    assert executed[name][-1]["run_id"] == "simulated-run"
    assert "Profiled / unprofiled rate: LLM 0." in json.dumps(executed[name])


def test_the_page_of_a_run_with_captures_shows_them(run: Path, executed: dict[str, list[dict[str, Any]]]) -> None:
    from colo_lib.report import page

    opened = open_run(run)
    assert page.notebooks_of(opened)[-5:] == NOTEBOOKS == page.TRACE_NOTEBOOKS
    html = page.run_html(opened, [part for name in NOTEBOOKS for part in executed[name]])
    section = html[html.index('<section id="traces"') : html.index('<section id="telemetry"')]
    assert section.count("data:image/png;base64,") == 5
    assert "This part is missing" not in section
    assert escape(page.NO_CAPTURE) in page.run_html(opened, [])


def test_a_notebook_reads_bare_exports_and_shows_the_example_where_there_is_nothing(
    executed: dict[str, list[dict[str, Any]]],
) -> None:
    given, example = executed["exports"], executed["example"]
    assert given[-1]["run_id"] == "exports"
    assert "82.3%" in json.dumps(given)
    assert example[-1]["run_id"] == "example-h100"
    assert "REAL but short" in json.dumps(example)
