"""Which setting is worth having: planted kept fractions are ranked, bounded and told as they were planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib.analysis import operating_point
from colo_lib.analysis.sweep import collect
from colo_lib.data.run import open_run
from colo_lib.data.sweep import SweepCell, open_sweep
from colo_lib.examples.simulated_run import write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.params import Params, check
from colo_lib.paths import RECORDED
from colo_lib.plot import decisions
from colo_lib.plot.style import MECHANISM_MARKERS

# cap -> what step 2 keeps of (gen, embed): 50 is worse than 25 in both
PLANTED = {100: (0.60, 0.80), 50: (0.70, 0.20), 25: (0.97, 0.30)}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[SweepCell]:
    folder = tmp_path_factory.mktemp("cells")
    made = []
    for cap, (gen, embed) in PLANTED.items():
        name = f"cell-{cap:03d}"
        plan = Plan(
            run_id=name, blocks=8, noise=0.002, window_s=1.0, device="cuda", gap_spread={"step1": 0.05, "step2": 0.05},
            gen_kept={"step1": 1.0, "step2": gen}, embed_kept={"step4": 1.0, "step2": embed},
            params={"mps_embed_thread_percentage": cap},
        )  # fmt: skip
        run = open_run(write_run(folder, plan))
        made.append(SweepCell(name, {"mps_embed_thread_percentage": cap}, "done", None, run))
    return made


def settings(cells: list[SweepCell], least: float = 0.95, growth: float = 0.10) -> object:
    measures = collect(cells, ("mps_embed_thread_percentage",))
    return operating_point.settings(measures, cells, least, growth)


def test_settings_are_ranked_and_those_that_another_beats_are_marked(cells: list[SweepCell]) -> None:
    found = settings(cells)
    assert found["gen"].round(1).tolist() == [1.0, 0.7, 0.6]
    assert found["number"].tolist() == [1, 2, 3]
    assert found["worth_having"].tolist() == [True, False, True]
    assert found["setting"].tolist() == [
        "capped at 25 % of the SMs",
        "capped at 50 % of the SMs",
        "flat out",
    ]
    for row in found.itertuples():
        gen, embed = next(kept for kept in PLANTED.values() if kept[0] == pytest.approx(row.gen, abs=0.01))
        assert (row.gen, row.embed) == (pytest.approx(gen, abs=0.01), pytest.approx(embed, abs=0.03))
        assert row.gap_growth == pytest.approx(1 / gen - 1, abs=0.06)


def test_only_a_setting_that_keeps_both_bounds_with_its_interval_meets_them(cells: list[SweepCell]) -> None:
    assert settings(cells)["meets"].tolist() == [True, False, False]
    assert settings(cells, growth=0.01)["meets"].tolist() == [False, False, False]
    assert settings(cells, least=0.99)["meets"].tolist() == [False, False, False]


def test_the_sentence_names_the_best_or_the_nearest(cells: list[SweepCell]) -> None:
    good = operating_point.operating_sentence(settings(cells), 0.95, 0.10)
    assert "1 of 3 settings surely meet" in good
    assert "the embedder capped at 25 % of the SMs" in good
    none = operating_point.operating_sentence(settings(cells, least=0.99), 0.99, 0.10)
    assert "None of 3 settings surely meets" in none
    assert "The most work in all" in none


def test_levers_are_told_only_where_they_act() -> None:
    paced = check({"embed_pacing": "duty", "embed_duty": 0.25, "embed_micro_batch_size": 8}, "test")
    assert operating_point.levers_in_words(paced, "step2") == "in passes of 8 sequences, working 25% of the time"
    capped = check({"mps_embed_thread_percentage": 25, "sm_partition_embed_sms": 16}, "test")
    assert operating_point.levers_in_words(capped, "step2") == "capped at 25 % of the SMs"
    assert operating_point.levers_in_words(capped, "step3") == "flat out", "time slices know no percentage"
    assert operating_point.levers_in_words(capped, "sm-partition").endswith("held to 16 SMs")
    assert operating_point.levers_in_words(Params(), "step2") == "flat out"
    both = check({"mps_gen_thread_percentage": 90, "mps_embed_thread_percentage": 10}, "test")
    words = "capped at 10 % of the SMs, the LLM capped at 90 % of the SMs"
    assert operating_point.levers_in_words(both, "step2") == words
    one = check({"inproc_embed_sms": "96,0", "inproc_policy": "phase", "inproc_gen_priority": "normal"}, "test")
    words = "on 96 or all SMs, not beside prompts, beside an LLM of normal priority"
    assert operating_point.levers_in_words(one, "inproc") == words
    assert operating_point.levers_in_words(one, "step2") == "flat out"


def test_the_recorded_frontier_meets_no_bound_and_mps_alone_says_why() -> None:
    (folder,) = RECORDED.glob("h100-llama-*[0-9]")
    sweep = open_sweep(folder)
    found = operating_point.settings(collect(sweep.cells, sweep.names), sweep.cells, 0.95, 0.10)
    assert len(found) == 14
    assert not found["meets"].any()
    said = operating_point.operating_sentence(found, 0.95, 0.10)
    assert "keeps 0.910 [0.908, 0.912, within one start] at 1, 0.930 [" in said, said
    assert "0.938 [0.927, 0.950, within one start] at 32" in said
    assert "on these engines no lever" in said, "one start rules nothing out"
    assert found["aggregate"].max() == pytest.approx(1.115, abs=0.002)


def test_mechanisms_stand_on_one_frontier_each_with_its_mark_and_its_idle_neighbour(tmp_path: Path) -> None:
    made = []
    for sizes, kept in (("0", (0.5, 0.6)), ("96", (0.8, 0.4))):
        plan = Plan(
            run_id=f"cell-{sizes}", blocks=4, noise=0.002, window_s=1.0, device="cuda",
            gen_kept={"step1": 1.0, "step2": 0.6, "mps-alone": 0.9, "inproc": kept[0], "inproc-alone": 0.97},
            embed_kept={"step4": 1.0, "step2": 0.5, "inproc": kept[1]}, params={"inproc_embed_sms": sizes},
        )  # fmt: skip
        run = open_run(write_run(tmp_path, plan))
        made.append(SweepCell(f"cell-{sizes}", {"inproc_embed_sms": sizes}, "done", None, run))
    found = operating_point.settings(collect(made, ("inproc_embed_sms",)), made, 0.95, 0.10)
    by_setting = {(row.mechanism, row.setting): row for row in found.itertuples()}
    assert set(by_setting) == {("mps", "flat out"), ("in-process", "flat out"), ("in-process", "on 96 SMs")}
    for (mechanism, _), row in by_setting.items():
        assert row.idle_neighbour == pytest.approx(0.9 if mechanism == "mps" else 0.97, abs=0.02)
    figure = decisions.operating_points(found, 0.95)
    marks = {line.get_marker() for line in figure.axes[0].lines}
    assert {MECHANISM_MARKERS["mps"], MECHANISM_MARKERS["in-process"]} <= marks
