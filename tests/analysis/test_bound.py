"""What could at best be had: never under what a planted device reaches, exact at its corners, told as what it is."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis import bound
from colo_lib.analysis.bound import AT_BEST, SURE, Use, best_split, frontier, most_of_embed, of_kinds
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.data.run import open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.paths import RECORDED
from colo_lib.report import run_tables
from tests.run_folders import Plan, write_run

part = st.floats(0, 1)
uses_of = st.lists(st.builds(Use, st.sampled_from(list(bound.RESOURCES)), part, part), min_size=1, max_size=6)
CLOSE = 1e-9


@given(uses_of, part, part)
def test_no_split_that_fits_does_more_work_than_the_best(uses: list[Use], x: float, y: float) -> None:
    """A planted device gives each what it takes until the first resource is used up: what it reaches fits."""
    scale = max([1.0, *(x * use.gen + y * use.embed for use in uses)])
    best = best_split(uses)
    assert best is not None
    assert (x + y) / scale <= best.aggregate + CLOSE
    assert y / scale <= most_of_embed(uses, x / scale) + CLOSE
    assert all(best.gen * use.gen + best.embed * use.embed <= 1 + CLOSE for use in uses), "the best itself fits"
    assert 1 - CLOSE <= best.aggregate <= 2


@given(uses_of, st.sampled_from(list(bound.RESOURCES)), part, part)
def test_a_further_resource_and_a_larger_use_never_raise_it(
    uses: list[Use], name: str, gen: float, embed: float
) -> None:
    best = best_split(uses)
    assert best is not None
    more = best_split([*uses, Use(name, gen, embed)])
    assert more is not None
    assert more.aggregate <= best.aggregate + CLOSE
    raised = [Use(use.resource, max(use.gen, gen), max(use.embed, embed)) for use in uses]
    worse = best_split(raised)
    assert worse is not None
    assert worse.aggregate <= best.aggregate + CLOSE


@given(uses_of)
def test_it_does_not_matter_which_of_the_two_is_which(uses: list[Use]) -> None:
    best, turned = best_split(uses), best_split([Use(use.resource, use.embed, use.gen) for use in uses])
    assert best is not None
    assert turned is not None
    assert best.aggregate == pytest.approx(turned.aggregate, abs=1e-6)


@given(uses_of)
def test_the_frontier_falls_from_the_llm_idle_to_all_of_it_and_bends_outwards(uses: list[Use]) -> None:
    points = frontier(uses)
    assert points[0][0] == 0
    assert points[-1][0] == 1
    assert all(right[1] <= left[1] + CLOSE for left, right in itertools.pairwise(points))
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        assert most_of_embed(uses, (x1 + x2) / 2) == pytest.approx((y1 + y2) / 2, abs=1e-6), "straight in between"


def test_the_best_of_two_lines_is_their_corner() -> None:
    best = best_split([Use("dram_active", 1.0, 0.25), Use("power_w", 0.25, 1.0)])
    assert best is not None
    assert (best.gen, best.embed) == (pytest.approx(0.8), pytest.approx(0.8))
    assert best.binds == ("DRAM bandwidth", "power")
    free = best_split([Use("dram_active", 0.3, 0.3)])
    assert free is not None
    assert (free.aggregate, free.binds) == (2, ())
    assert best_split([]) is None


SAMPLE = {"scope": "device", "name": "0", "status": "done", "in_window": True}


def planted(limit_w: float | None = 700.0) -> list[Use]:
    counted = pd.DataFrame({"step": ["step1", "step4"], "gen_devices": [("0",), None], "embed_devices": [None, ("0",)]})
    powers = [("step1", 100.0), ("step1", 400.0), ("step4", 400.0), ("step4", 700.0)]
    samples = pd.DataFrame([SAMPLE | {"step": step, "power_w": watts} for step, watts in powers])
    means = {
        "step1": {"power_w": 400.0, "dram_active": 70.0, "tensor_active": 2.0, "sm_clock_mhz": 2000.0},
        "step4": {"power_w": 703.0, "dram_active": 40.0, "tensor_active": 50.0, "sm_clock_mhz": 1500.0},
    }
    rows = [("device", "0", step, metric, mean) for step, each in means.items() for metric, mean in each.items()]
    summary = pd.DataFrame(rows, columns=["scope", "name", "step", "metric", "mean"])
    return bound.uses_alone(counted, samples, summary, limit_w, 2000.0)


def test_uses_are_taken_over_idle_power_and_at_the_highest_clock() -> None:
    uses = {use.resource: (use.gen, use.embed) for use in planted()}
    assert uses == {
        "dram_active": (0.7, 0.4),
        "tensor_active": (0.02, pytest.approx(0.375)),
        "power_w": (pytest.approx(0.5), 1.0),
    }, "idle power counts for neither; what is over the limit is all of it; SMs were not sampled"
    assert "power_w" not in {use.resource for use in planted(limit_w=None)}


def kept(step: str, mean: float) -> pd.DataFrame:
    """`kept_fractions` of a step in which the LLM keeps 0.4."""
    rows = [("aggregate", mean), ("gen", 0.4), ("embed", mean - 0.4)]
    none = {"low": math.nan, "high": math.nan, "starts": 1}
    return pd.DataFrame([{"quantity": name, "step": step, "mean": value} | none for name, value in rows])


def test_the_error_is_told_and_a_guess_is_not_taken_for_a_bound() -> None:
    uses = [Use("dram_active", 0.7, 0.4), Use("power_w", 0.5, 1.0), Use("sm_active", 0.8, 0.9),
            Use("utilization", 1.0, 1.0)]  # fmt: skip
    row = bound.against_best(uses, kept("step2", 1.2), {"step2": "mps"}).iloc[0]
    assert (row["sure"], row["best"], row["binds"]) == (pytest.approx(1 + 0.6 / 0.7), pytest.approx(1.5), "power")
    assert row["guess"] == pytest.approx(1 + 0.2 / 0.9)
    assert row["over"] == pytest.approx(0.25)
    turns = bound.against_best(uses, kept("step3", 0.9), {"step3": "time-sliced"}).iloc[0]
    assert turns["guess"] == pytest.approx(1), "kernels of two processes in turns"
    assert turns["best"] == pytest.approx(1.5)
    assert row["filled"] == pytest.approx(0.4 * 0.5 + 0.8), "power, of the split that was reached"
    assert of_kinds(uses, SURE) == uses[:1]
    assert of_kinds(uses, AT_BEST) == uses[:2]


def test_the_sentence_says_what_binds_and_what_was_reached_or_that_nothing_was_yet() -> None:
    uses, names = planted(), {"step2": "mps"}
    shared = bound.bound_sentence(uses, bound.against_best(uses, kept("step2", 1.107), names))
    assert shared == ("At best 1.50 GPUs' worth of work (the LLM keeps 1.00, the embedder 0.50), bound by power; "
                      "reached 1.11 (both under MPS).")  # fmt: skip
    alone = bound.against_best(uses, kept("step2", 1.1).iloc[:0], {})
    assert "no shared step has been measured yet" in bound.bound_sentence(uses, alone)
    assert run_tables.at_best(alone)["Step"].tolist() == ["Not measured yet"]
    assert "is not known" in bound.bound_sentence([], bound.against_best([], alone, {}))


def test_a_run_without_such_telemetry_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunAnalysis(open_run(write_run(tmp_path_factory.mktemp("runs"), Plan())))
    assert run.against_best.empty
    assert "is not known" in run.best_sentence


RECORDED_RUNS = sorted(folder for folder in RECORDED.glob("h*-*[0-9]") if (folder / "manifest.json").is_file())


@pytest.mark.parametrize("folder", RECORDED_RUNS, ids=lambda folder: folder.name)
def test_no_recorded_run_reached_more(folder: Path) -> None:
    rows = RunAnalysis(open_run(folder)).against_best
    assert len(rows)
    assert rows["reached"].notna().all()
    assert (rows["reached"] <= 1.01 * rows["best"]).all(), "by more than one trial's rate varies"
    assert (rows["best"] <= rows["sure"]).all()
    assert (rows["guess"] <= rows["best"]).all()
    assert (rows["filled"] <= 1.01).all()


def test_the_large_pair_is_bound_by_power_and_reached_its_share() -> None:
    folder = next(folder for folder in RECORDED_RUNS if folder.name.startswith("h200-big"))
    run = RunAnalysis(open_run(folder))
    assert "At best 1.83 GPUs' worth" in run.best_sentence
    assert "bound by power; reached 1.11 (both under MPS), 0.945 (both time-sliced)" in run.best_sentence
    turns = run.against_best.set_index("step").loc["step3"]
    assert turns["guess"] == pytest.approx(1.03, abs=0.01)


def test_two_gpus_have_no_such_bound() -> None:
    folder = next(RECORDED.glob("h100-x2-*[0-9]"))
    run = next(iter(open_sweep(folder).runs.values()))
    assert RunAnalysis(run).uses_alone == []
