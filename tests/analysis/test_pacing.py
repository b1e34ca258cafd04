"""The controller's trace, from frame to figure."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from colo_lib.analysis.telemetry import pacing_series, pacing_summary
from colo_lib.plot.style import EMBED_COLOUR
from colo_lib.plot.telemetry import pacing_over_time

NS = 1_000_000_000


def trace(_: str, trial: int, name: str) -> pd.DataFrame | None:
    """Ticks at 10 Hz: ten seconds of warm-up at full duty, then ten in the window at a fifth."""
    if name != "pacing" or trial != 1:
        return None
    t_ns = np.arange(0, 20 * NS, NS // 10)
    window = t_ns >= 10 * NS
    return pd.DataFrame(
        {
            "t_ns": t_ns, "gaps": 4, "late": np.where(window, 0, 2), "gap_max_ms": 12.0, "gap_p99_ms": 15.0,
            "duty": np.where(window, 0.2, 1.0), "embed_duty": np.where(window, 0.25, 1.0),
        }
    )  # fmt: skip


@pytest.fixture
def ticks() -> pd.DataFrame:
    window = {"step": "step2", "window_start_ns": 10 * NS, "window_end_ns": 20 * NS}
    return pacing_series(pd.DataFrame([window | {"trial": 1}, window | {"trial": 2}]), trace)


def test_only_what_lies_in_the_window_is_summed_up(ticks: pd.DataFrame) -> None:
    (row,) = pacing_summary(ticks).to_dict("records")
    assert (row["step"], row["trial"], row["gaps"], row["late_fraction"]) == ("step2", 1, 400, 0.0)
    assert (row["duty"], row["embed_duty"]) == (pytest.approx(0.2), pytest.approx(0.25))


def test_a_run_without_pacing_has_no_ticks() -> None:
    none = pacing_series(pd.DataFrame([{"step": "step2", "trial": 7, "window_start_ns": 1, "window_end_ns": 2}]), trace)
    assert pacing_summary(none).empty
    assert "no trial was paced" in pacing_over_time(none, 20.0).axes[0].texts[0].get_text()


def test_the_figure_shows_the_slo_and_the_duty_in_embeds_colour(ticks: pd.DataFrame) -> None:
    figure = pacing_over_time(ticks, 20.0)
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}
    assert set(lines["slo"].get_ydata()) == {20.0}
    assert lines["duty"].get_color() == EMBED_COLOUR
    assert max(lines["duty"].get_ydata()) == 100.0
    figure.savefig(io.BytesIO())
