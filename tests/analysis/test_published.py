"""The published tables: what the brief printed, recomputed from the figures it printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from colo_lib.analysis import published
from colo_lib.data.published import Published, printed_figure, read_published
from colo_lib.errors import InputError


@pytest.fixture(scope="module")
def told() -> Published:
    return read_published()


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


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_published(tmp_path)
    pd.DataFrame({"low": ["many"]}).to_csv(tmp_path / "figures.csv")
    with pytest.raises(InputError):
        read_published(tmp_path)
