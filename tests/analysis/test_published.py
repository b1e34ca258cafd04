"""The published tables: what the brief printed, recomputed from the figures it printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from colo_lib.analysis import published
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.published import LATER, Published, printed_figure, read_published
from colo_lib.data.run import open_run
from colo_lib.errors import InputError
from colo_lib.paths import RECORDED
from colo_lib.report import across_tables


@pytest.fixture(scope="module")
def told() -> Published:
    return read_published()


@pytest.fixture(scope="module")
def later() -> Published:
    return read_published(prefix=LATER)


@pytest.fixture(scope="module")
def large_pair() -> RunAnalysis:
    return RunAnalysis(open_run(next(folder for folder in RECORDED.glob("h200-big-*[0-9]") if folder.is_dir())))


def test_every_table_is_there_with_units_and_the_printed_text(told: Published) -> None:
    cells = told.figures.groupby(["run", "table"]).size().to_dict()
    assert cells == {
        ("run1", "results"): 14, ("run2", "results"): 34, ("run3", "results"): 30, ("run1", "comparison"): 9,
        ("run2", "comparison"): 9, ("run3", "comparison"): 9, ("trace", "kernel-trace"): 13,
        ("trace", "categories"): 18, ("trace", "top-kernels"): 10,
    }  # fmt: skip
    numbers = told.figures[told.figures["low"].notna()]
    assert (numbers["unit"] != "").all()
    assert (told.figures["printed"] != "").all()
    assert (numbers["low"] <= numbers["high"]).all()
    assert set(told.conditions) == set(told.figures["run"])


def test_every_number_stands_in_the_text_it_was_taken_from(told: Published) -> None:
    for row in told.figures[told.figures["low"].notna()].itertuples():
        plain = row.printed.replace(",", "")
        for value in {abs(row.low), abs(row.high)}:
            assert f"{value:g}" in plain, (row.printed, value)


def test_the_recomputed_changes_match_to_the_briefs_rounding_but_for_one(told: Published) -> None:
    found = published.recomputed(told.figures, told.changes)
    wrong = found[~found["agrees"]]
    assert wrong["printed"].tolist() == ["preserves 2.3x more gen throughput than time-slicing"]
    assert wrong["low"].iloc[0] == pytest.approx(143.3 / 78.2), "2.3 is the ratio of the losses"
    assert len(found) == 13


def test_figures_that_follow_from_others_do(told: Published) -> None:
    found = published.identities(told.figures)
    assert found["agrees"].all(), found[~found["agrees"]]
    assert len(found) == 12
    bent = told.figures.copy()
    bent.loc[bent["metric"] == "gpu_idle", ["low", "high"]] = 88.0
    assert not published.identities(bent)["agrees"].all()


def test_the_comparison_table_repeats_the_runs_own_tables(told: Published) -> None:
    repeated = told.figures[(told.figures["table"] == "comparison") & told.figures["low"].notna()]
    for row in repeated[repeated["metric"].str.endswith("_per_s")].itertuples():
        assert (row.low, row.high) == printed_figure(told.figures, row.run, row.metric, row.step)


def test_kept_fractions_of_the_published_runs(told: Published) -> None:
    run3 = published.points(told.figures, "run3").set_index(["step", "metric"])["mean"]
    assert run3["step2", "gen_kept"] == pytest.approx(0.734, abs=5e-4)
    assert run3["step2", "embed_kept"] == pytest.approx(0.958, abs=5e-4)
    assert run3["step2", "aggregate"] == pytest.approx(1.692, abs=5e-4)
    run1 = published.points(told.figures, "run1").set_index(["step", "metric"])
    assert run1.loc[("step2", "gen_kept"), "low"] == pytest.approx(238 / 869)
    assert ("step2", "embed_kept") not in run1.index, "run 1 never measured embed alone"


def test_what_differs_is_marked_and_what_was_not_told_counts_as_different(told: Published) -> None:
    mine = dict(told.conditions["run3"]) | {"weights": "dummy", "step2_mechanism": "mps"}
    rows = published.differences(told.conditions, mine).set_index("condition")
    assert "run3" in rows.loc["Weights", "differs from"]
    assert "run3" not in rows.loc["Model of the LLM", "differs from"]
    assert "run1" in rows.loc["Model of the LLM", "differs from"]
    assert "run3" not in rows.loc["Mechanism with both at once", "differs from"]
    assert rows.loc["vLLM version", "differs from"] == "run1, run2, run3, trace"


def test_every_table_of_the_later_runs_is_there_with_commit_and_caveats(later: Published) -> None:
    cells = later.figures.groupby(["run", "table"]).size().to_dict()
    assert cells == {
        ("later-alone", "in-flight"): 25, ("later-1024", "results"): 35, ("later-1024-fp8", "results"): 37,
        ("later-1024-served", "results"): 8, ("later-512-served", "results"): 22,
        ("later-512-served", "other-windows"): 9, ("later-512-eager", "results"): 3,
    }  # fmt: skip
    assert set(later.conditions) == set(later.figures["run"])
    for facts in later.conditions.values():
        assert facts["commit"]
        assert "One prompt for all requests" in facts["caveats"][0]
    assert (later.figures["unit"] != "").all()
    for row in later.figures.itertuples():
        plain = row.printed.replace(",", "")
        assert all(f"{value:g}" in plain for value in (row.low, row.high)), row


@pytest.mark.parametrize(
    ("run", "metric", "step", "item", "printed"),
    [
        ("later-alone", "gen_tokens_per_s", "step1", "2048", (22433, 22433)),
        ("later-alone", "sm_occupancy", "step1", "4096", (33.4, 33.4)),
        ("later-1024", "gen_tokens_per_s", "mps-alone", "", (15226, 15226)),
        ("later-1024", "embed_sequences_per_s", "step4", "", (348, 348)),
        ("later-1024", "request_latency_p99_s", "step3", "", (50.1, 50.1)),
        ("later-1024-fp8", "time_per_token_p95_ms", "step2", "", (77.0, 77.0)),
        ("later-1024-fp8", "gen_tokens_per_s", "mig", "LLM alone on 4g", (4647, 4647)),
        ("later-1024-served", "gen_tokens_per_s", "step3", "", (15934, 15934)),
        ("later-512-served", "gen_tokens_per_s", "step2", "", (22881, 23173)),
        ("later-512-served", "gen_tokens_per_s", "step2", "first windows", (20345, 20345)),
        ("later-512-served", "embed_sequences_per_s", "step3", "three windows (9642cf2)", (493, 500)),
        ("later-512-served", "sm_active", "step2", "", (0.856, 0.856)),
        ("later-512-eager", "gen_tokens_per_s", "step3", "", (9885, 9885)),
    ],
)
def test_spot_values_of_the_later_runs(
    later: Published, run: str, metric: str, step: str, item: str, printed: tuple[float, float]
) -> None:
    assert printed_figure(later.figures, run, metric, step, item) == printed


def test_the_kept_fractions_printed_with_the_later_runs_follow_from_their_rates(later: Published) -> None:
    found = published.recomputed(later.figures, later.changes)
    assert found["agrees"].tolist() == [True] * 6


def test_the_later_runs_stand_beside_a_run_on_the_same_metrics(later: Published, large_pair: RunAnalysis) -> None:
    points = large_pair.beside_later(later.figures)
    values = points.set_index(["run", "step", "metric"])["mean"]
    assert values["later-1024", "step2", "gen_kept"] == pytest.approx(0.976, abs=5e-4)
    assert values["later-512-served", "step3", "gen_kept"] == pytest.approx(0.998, abs=1e-3)
    assert values["later-1024-fp8", "mig", "gen_kept"] == pytest.approx(0.322, abs=1e-3)
    assert values["later-512-served", "step2", "sm_active"] == pytest.approx(85.6), "a fraction is shown in %"
    assert ("later-1024-fp8", "step2", "aggregate") not in values.index, "the embedder alone was not printed"
    mine = points[points["run"] == large_pair.run.run_id]
    assert {"sm_active", "power_w", "gen_kept", "aggregate"} <= set(mine["metric"])
    assert "MPS 0.94 to 1.01" in across_tables.later_sentence(points, large_pair.run.run_id)
    loads = large_pair.alone_beside_later(later.figures)
    assert loads["in_flight"].tolist() == [1, 256, 1024, 2048, 4096, 1]
    assert loads["gen_tokens_per_s"].iloc[-1] == pytest.approx(238, abs=1)


def test_settings_of_the_later_runs_that_differ_are_marked(later: Published, large_pair: RunAnalysis) -> None:
    rows = large_pair.unlike_later(later.conditions).set_index("condition")
    runs = [run for run in later.conditions if run != "later-alone"]
    assert rows.loc["Requests in flight", "differs from"] == ", ".join(runs)
    assert rows.loc["Model of the LLM", "differs from"] == "none"
    served = "later-1024-served, later-512-served, later-512-eager"
    assert rows.loc["The embedder runs in", "differs from"] == served


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_published(tmp_path)
    pd.DataFrame({"low": ["many"]}).to_csv(tmp_path / "figures.csv")
    with pytest.raises(InputError):
        read_published(tmp_path)
