"""The capacity plan: fewest GPUs by arithmetic one can check by hand, and no more certainty than the intervals give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.analysis import capacity
from colo_lib.analysis.capacity import Range, Unit
from colo_lib.analysis.statistics import block_ratios, kept_fractions
from colo_lib.analysis.trial_metrics import WATTS, with_power
from tests.run_folders import Plan, planted_measures

ZERO = Range(0.0, 0.0, 0.0)
NO_BOUNDS = pd.DataFrame({"step": [], "what": [], "worst": [], "bound": []})


def exact(value: float) -> Range:
    return Range(value, value, value)


GEN, EMBED = Unit("gen alone", 1, exact(100), ZERO, 300.0), Unit("embed alone", 1, ZERO, exact(50), 600.0)
BOTH = Unit("step2", 1, exact(80), exact(40), 650.0)


def planned(found: list[Unit], tokens: float, sequences: float) -> pd.DataFrame:
    return capacity.plan(found, tokens, sequences).set_index("layout")


def test_gpus_are_counted_as_by_hand() -> None:
    found = planned([GEN, EMBED, BOTH], 400, 100)
    assert found.loc["dedicated", ["gen_only", "embed_only", "gpus"]].tolist() == [4, 2, 6]
    # Three shared GPUs give 240 and 120, two more for gen the missing 160.
    assert found.loc["step2", ["shared", "gen_only", "embed_only", "gpus"]].tolist() == [3, 2, 0, 5]
    assert found.loc["dedicated", "power_w"] == 4 * 300 + 2 * 600
    assert found.loc["step2", "power_w"] == 3 * 650 + 2 * 300


def test_a_rounding_error_buys_no_gpu() -> None:
    assert planned([GEN, EMBED], 300 * (1 + 1e-12), 50)["gpus"].iloc[0] == 4


@settings(max_examples=40)
@given(st.floats(1, 2000), st.floats(1, 2000), st.floats(10, 120), st.floats(5, 60), st.integers(1, 2))
def test_a_layout_gives_what_is_wanted_and_one_gpu_less_does_not(
    tokens: float, sequences: float, gen: float, embed: float, gpus: int
) -> None:
    unit = Unit("step2", gpus, exact(gen), exact(embed), np.nan)
    row = planned([GEN, EMBED, unit], tokens, sequences).loc["step2"]
    assert row["shared"] * gen + row["gen_only"] * 100 >= tokens * (1 - 1e-6)
    assert row["shared"] * embed + row["embed_only"] * 50 >= sequences * (1 - 1e-6)
    for shared in range(1, 40):  # no other mix needs fewer
        rest = max(0, np.ceil((tokens - shared * gen) / 100 - 1e-9)) + max(
            0, np.ceil((sequences - shared * embed) / 50 - 1e-9)
        )
        assert shared * gpus + rest >= row["gpus"]


def test_wide_intervals_settle_nothing_and_narrow_ones_do() -> None:
    wide = dataclasses.replace(BOTH, gen=Range(80, 50, 110), embed=Range(40, 20, 60))
    told = capacity.answer(capacity.plan([GEN, EMBED, wide], 400, 100), 8)
    assert "Not settled against 'both under MPS'" in told or "Not settled against 'a GPU for each workload'" in told
    told = capacity.answer(capacity.plan([GEN, EMBED, BOTH], 400, 100), 8)
    assert told.startswith("With 8 GPUs: 'both under MPS' needs 5 GPUs, 5 to 5")
    assert "No other" in told


def test_too_few_gpus_and_broken_bounds_are_told() -> None:
    assert "No layout surely does it with 4 GPUs" in capacity.answer(capacity.plan([GEN, EMBED, BOTH], 400, 100), 4)
    broken = dataclasses.replace(BOTH, breaks=("gen: longest time without a token 900 ms, bound 500",))
    told = capacity.answer(capacity.plan([GEN, EMBED, broken], 400, 100), 8)
    assert told.startswith("With 8 GPUs: 'a GPU for each workload' needs 6")
    nothing = capacity.plan([dataclasses.replace(GEN, breaks=("late",)), EMBED], 400, 100)
    assert "No layout keeps its bounds" in capacity.answer(nothing, 8)


def units_of(plan: Plan, power: bool = False) -> list[Unit]:
    counted = planted_measures(plan)
    counted = counted.assign(trial=counted["block"], **({WATTS: 400.0} if power else {}))
    kept = kept_fractions(block_ratios(counted))
    return capacity.units(counted, kept, NO_BOUNDS, 1000.0)


def test_config_b_is_a_prediction_until_two_gpus_were_measured() -> None:
    single = Plan(blocks=5, noise=0.002, gen_kept={"step1": 1, "step2": 0.8}, embed_kept={"step2": 0.7, "step4": 1})
    pair = units_of(single)[-1]
    assert (pair.step, pair.gpus, pair.predicted) == ("configB", 2, True)
    assert pair.embed.mean == pytest.approx(2 * 0.7 * 64, rel=0.02)
    assert pair.gen.low == pytest.approx(0.8 * 120, rel=0.03)
    assert pair.gen.high == pytest.approx(2 * 0.8 * 120, rel=0.03)
    assert any("PREDICTION" in text for text in capacity.assumptions(units_of(single)))
    both = dataclasses.replace(single, gen_kept={**single.gen_kept, "configA": 1, "configB": 1.4},
                               embed_kept={**single.embed_kept, "configA": 1, "configB": 0.9})  # fmt: skip
    pair = units_of(both)[-1]
    assert not pair.predicted
    assert pair.gen.mean == pytest.approx(1.4 * 120, rel=0.03)
    assert not any("PREDICTION" in text for text in capacity.assumptions(units_of(both)))


def test_one_block_gives_no_plan() -> None:
    plan = Plan(blocks=1, gen_kept={"step1": 1, "step2": 0.8}, embed_kept={"step2": 0.7, "step4": 1})
    layouts = capacity.plan(units_of(plan), 400, 100)
    assert layouts["gpus_worst"].isna().all()
    assert "more blocks" in capacity.answer(layouts, 8)


def test_without_both_alone_there_is_nothing_to_plan_with() -> None:
    found = units_of(Plan(gen_kept={}, embed_kept={"step4": 1}))
    assert found == []
    layouts = capacity.plan(found, *capacity.wanted(found, 8, 0, 0))
    assert "LLM alone (step1) and embedder alone (step4)" in capacity.answer(layouts, 8)
    assert capacity.reachable(found, 8).empty
    assert capacity.energy_costs(found).empty


def test_energy_of_a_shared_gpu_is_split_without_loss() -> None:
    costs = capacity.energy_costs([GEN, EMBED, BOTH]).set_index("unit")
    assert costs.loc["gen alone", "j_per_token"] == pytest.approx(3.0)
    assert costs.loc["embed alone", "j_per_sequence"] == pytest.approx(12.0)
    shared = costs.loc["step2"]
    assert shared["j_per_token"] * 80 + shared["j_per_sequence"] * 40 == pytest.approx(650.0)
    assert shared["j_per_sequence"] / shared["j_per_token"] == pytest.approx(4.0)


def test_what_the_gpus_can_give_includes_the_ends_of_dedicated() -> None:
    found = capacity.reachable([GEN, EMBED, BOTH], 4)
    ends = found[found["layout"] == "dedicated"][["tokens_per_s", "sequences_per_s"]].to_numpy().tolist()
    assert ends == [[400, 0], [300, 50], [200, 100], [100, 150], [0, 200]]
    assert [320, 160] in found[found["layout"] == "step2"][["tokens_per_s", "sequences_per_s"]].to_numpy().tolist()


def test_power_is_of_all_devices_by_the_counter_where_there_is_one() -> None:
    seconds = np.arange(5) * 10**9
    first = pd.DataFrame({"t_ns": seconds, "name": "0", "power_w": 100.0, "energy_mj": seconds / 1e9 * 250e3})
    second = pd.DataFrame({"t_ns": seconds, "name": "1", "power_w": 50.0, "energy_mj": np.nan})
    samples = pd.concat([first, second]).assign(step="step1", trial=1, in_window=True, scope="device")
    counted = pd.DataFrame({"step": ["step1", "step2"], "trial": [1, 1]})
    assert with_power(counted, samples)[WATTS].tolist()[0] == pytest.approx(300.0)
    assert np.isnan(with_power(counted, samples)[WATTS].iloc[1])
    assert with_power(counted, pd.DataFrame())[WATTS].isna().all()


def test_a_plan_made_of_one_start_says_so() -> None:
    found = units_of(Plan(blocks=6, starts=1))
    assert any("fewer than three starts" in line for line in capacity.assumptions(found))
    assert not any(
        "fewer than three starts" in line for line in capacity.assumptions(units_of(Plan(blocks=6, starts=3)))
    )
