"""Figures by their marks: what is drawn where, in whose colour, with unit and count; never pixels."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from colo_lib.analysis import statistics, telemetry, thresholds
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trial_metrics import measure_trials
from colo_lib.data.run import open_run
from colo_lib.plot import run as plot_latency
from colo_lib.plot import telemetry as plot_memory
from colo_lib.plot.style import EMBED_COLOUR, GEN_COLOUR, MECHANISM_HATCHES, MECHANISM_MARKERS
from colo_lib.steps import CO_LOCATED, STEPS
from tests.run_folders import Plan, write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    run = open_run(write_run(tmp_path_factory.mktemp("runs"), Plan(window_s=2.0)))
    measured = measure_trials(run.trials, run.frame, Thresholds.of(run.params))
    ratios = statistics.block_ratios(measured.counted)
    return {
        "run": run,
        "measured": measured,
        "ratios": ratios,
        "kept": statistics.kept_fractions(ratios),
        "bounds": thresholds.against_bounds(measured.counted, Thresholds.of(run.params)),
        "telemetry": telemetry.telemetry_series(run.trials, run.frame),
    }


def marks(figure: Figure) -> dict[str, object]:
    return {
        artist.get_gid(): artist for axes in figure.axes for artist in [*axes.patches, *axes.lines] if artist.get_gid()
    }


def all_figures(data: dict) -> list[Figure]:
    budget = telemetry.budget_frame(data["run"].manifest.budget)
    used = telemetry.measured_frame(data["run"].trials)
    mechanisms = dict(zip(data["run"].trials["step"], data["run"].trials["mechanism"], strict=True))
    return [
        plot_latency.kept_fractions(data["kept"], data["ratios"]),
        plot_latency.distributions(data["measured"].samples),
        plot_latency.stalls(data["bounds"], mechanisms),
        plot_memory.telemetry_over_time(data["telemetry"], telemetry.METRICS),
        plot_memory.budget_and_use(budget, used),
    ]


def test_bars_stand_at_the_kept_fractions_in_the_workloads_colour(data: dict) -> None:
    bars = marks(plot_latency.kept_fractions(data["kept"], data["ratios"], {"gen": 0.95}))
    for row in data["kept"].itertuples():
        if row.step != "configA" and row.quantity in ("gen", "embed"):
            bar = bars[f"{row.step}-{row.quantity}"]
            assert bar.get_height() == pytest.approx(row.mean)
            assert to_hex(bar.get_edgecolor()).upper() == {"gen": GEN_COLOUR, "embed": EMBED_COLOUR}[row.quantity]
            assert bar.get_hatch() == MECHANISM_HATCHES[row.mechanism]


def test_every_block_is_a_dot_and_every_bar_has_its_interval(data: dict) -> None:
    left = plot_latency.kept_fractions(data["kept"], data["ratios"]).axes[0]
    dots = [point for group in left.collections if isinstance(group, PathCollection) for point in group.get_offsets()]
    shown = data["ratios"][data["ratios"]["step"].isin(CO_LOCATED) & data["ratios"]["quantity"].isin(["gen", "embed"])]
    assert sorted(dot[1] for dot in dots) == pytest.approx(sorted(shown["ratio"]))
    assert len(left.containers) == 12, "a bar and an interval for two workloads in three steps"
    assert all("n=3 blocks" in label.get_text() for label in left.get_xticklabels())


def test_every_axis_names_its_unit(data: dict) -> None:
    for figure in all_figures(data):
        named = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
        assert all(
            any(unit in name for unit in ("(ms)", "%", "GiB", "cores", "= 1)", "MHz", "(s)")) for name in named
        ), named


def test_distributions_reach_every_event_and_say_how_many(data: dict) -> None:
    figure = plot_latency.distributions(data["measured"].samples)
    samples = data["measured"].samples
    gaps = samples[(samples["kind"] == "gap") & (samples["step"] == "step2")]["ms"]
    line = next(line for line in figure.axes[0].lines if line.get_gid() == "step2")
    assert line.get_xdata().max() == pytest.approx(gaps.max())
    assert f"n={len(gaps):,}" in line.get_label()
    assert np.all(np.diff(line.get_ydata()) >= 0)


def test_the_slowest_events_are_each_drawn_and_thinning_moves_no_curve() -> None:
    times = np.random.default_rng(3).lognormal(3, 1, 50_000)
    samples = pd.DataFrame({"step": "step1", "kind": "gap", "ms": times})
    upper, _, lower, _ = plot_latency.distributions(samples).axes
    (under,) = (line for line in upper.lines if line.get_gid() == "step1")
    (above,) = (line for line in lower.lines if line.get_gid() == "step1")
    assert len(under.get_xdata()) < 3_000
    for time in np.sort(times)[[24, 25_000, 49_000, *range(49_900, 50_000)]]:
        drawn = under.get_ydata()[np.searchsorted(under.get_xdata(), time, side="right") - 1]
        assert drawn == pytest.approx(100 * np.mean(times <= time), abs=0.06)
    slowest = np.sort(times)[-100:]
    assert above.get_xdata()[-100:] == pytest.approx(slowest)
    assert above.get_ydata()[-100:] == pytest.approx(100 * np.arange(99, -1, -1) / 50_000, abs=1e-9)


def test_no_text_is_cut_off_and_no_labels_overlap(data: dict) -> None:
    # Stalls of less than a decade: an axis whose minor ticks matplotlib would label.
    near = data["bounds"].assign(worst=700.0, bound=1000.0)
    for figure in [*all_figures(data), plot_latency.stalls(near, {})]:
        figure.draw_without_rendering()
        for axes in figure.axes:
            across = _shown(axes.get_xticklabels(which="both"), 0, axes.get_xlim())
            up = _shown(axes.get_yticklabels(which="both"), 1, axes.get_ylim())
            for text in [axes._left_title, axes.xaxis.label, axes.yaxis.label, *across, *up]:
                box = text.get_window_extent()
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
                assert inside or not text.get_text() or not text.get_visible(), text.get_text()
            boxes = sorted((tick.get_window_extent().x0, tick.get_window_extent().x1) for tick in across)
            assert all(left[1] <= right[0] for left, right in itertools.pairwise(boxes))


def _shown(ticks: list, axis: int, limits: tuple[float, float]) -> list:
    """Tick labels within the axis: matplotlib keeps some beyond its ends and never draws them."""
    low, high = sorted(limits)
    return [tick for tick in ticks if tick.get_text() and low <= tick.get_position()[axis] <= high]


def test_lines_of_telemetry_break_between_trials(data: dict) -> None:
    drawn = marks(plot_memory.telemetry_over_time(data["telemetry"], telemetry.METRICS))
    assert np.isnan(drawn["cpu_cores-gen"].get_ydata()).sum() == 15, "gen runs in five steps of three blocks"
    assert to_hex(drawn["cpu_cores-gen"].get_color()).upper() == GEN_COLOUR


def test_nothing_measured_still_gives_figures(data: dict) -> None:
    empty = data["measured"].samples.iloc[:0]
    for figure in (
        plot_latency.distributions(empty),
        plot_latency.stalls(data["bounds"].iloc[:0], {}),
        plot_latency.kept_fractions(data["kept"].iloc[:0], data["ratios"].iloc[:0]),
        plot_memory.telemetry_over_time(data["telemetry"].iloc[:0], telemetry.METRICS),
        plot_memory.budget_and_use(telemetry.budget_frame([]), telemetry.measured_frame(data["run"].trials.iloc[:0])),
    ):
        figure.savefig(io.BytesIO(), format="png")


def test_every_mechanism_has_its_look() -> None:
    names = {row.mechanism_on(device) for row in STEPS.values() for device in ("cpu", "cuda")}
    assert names <= set(MECHANISM_HATCHES) & set(MECHANISM_MARKERS)


def test_plots_read_no_file_and_analysis_draws_nothing() -> None:
    root = Path(plot_latency.__file__).parents[1]
    for room, banned in (
        ("plot", ("colo_lib.data", ".read_", "open(")),
        ("analysis", ("matplotlib", "open(", "colo_lib.plot")),
    ):
        for file in (root / room).rglob("*.py"):
            if file.name in {"__init__.py"}:
                continue
            assert not [word for word in banned if word in file.read_text(encoding="utf-8")], file
