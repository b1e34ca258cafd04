"""From one GPU to both shared: planted ratios come out, and what was not measured is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from colo_lib.analysis import two_devices
from colo_lib.analysis.capacity import Range, Unit
from colo_lib.analysis.statistics import block_ratios, kept_fractions

RATES = {"configA": 100.0, "tp2-alone": 150.0, "tp2-mps-alone": 135.0, "configB-one": 108.0, "configB": 81.0}


def counted(rates: dict[str, float] = RATES, blocks: int = 4) -> pd.DataFrame:
    rows = []
    for step, rate in rates.items():
        shares = step.startswith("config")
        for block in range(1, blocks + 1):
            drift = 1 + 0.1 * block  # of the machine: paired by block it cancels
            rows.append({
                "step": step, "block": block, "gen_start": f"{block}", "embed_start": f"{block}",
                "mechanism": "mps" if step not in ("configA", "tp2-alone") else "none",
                "gen_tokens_per_s": rate * drift, "embed_sequences_per_s": 50.0 * drift if shares else np.nan,
                "gen_devices": ("0",) if step == "configA" else ("0", "1"),
                "embed_devices": ("1",) if step in ("configA", "configB-one") else ("0", "1"), "status": "done",
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_chain_leads_from_one_gpu_to_both_shared() -> None:
    found = two_devices.chain(counted()).set_index("what")["ratio"]
    assert found.round(6).tolist() == [1.5, 0.9, 0.8, 0.6, 0.81]
    steps = [
        "sharding over two devices gains",
        "MPS itself leaves of that",
        "the embedder on both devices leaves of that",
    ]
    assert np.prod(found[steps]) == pytest.approx(found["in all: sharded and co-located against dedicated"])


def test_outcomes_are_answered_by_their_intervals() -> None:
    frame = counted()
    kept = kept_fractions(block_ratios(frame))
    met = {"tp2-mps-alone": {"collectives_per_token": 65.0, "exchange_p50_us": 3.6, "exchange_us_per_token": 234.0,
                             "skew_p50_us": 0.7}}  # fmt: skip
    work, scaling, exchange, headroom, beside = two_devices.outcomes(two_devices.chain(frame), {1: kept}, met)
    assert "? No: 1.50" in scaling
    assert "leaves 0.90" in scaling
    assert "65 a token, 3.6 us each once both ranks are there: 0.23 ms a token" in exchange
    assert "the LLM keeps 0.60" in headroom
    assert "Not measured" in beside
    parts = {"own_ms": 4.29, "idle_ms": 0.69, "waiting_ms": 0.37, "exchange_ms": 0.25}
    met = {"tp2-mps-alone": met["tp2-mps-alone"] | parts, "configB": {"skew_p50_us": 12.8} | parts | {"own_ms": 5.61}}
    assert (
        "'sharded and co-located', means of the two ranks: own kernels 4.29 to 5.61"
        in two_devices.outcomes(two_devices.chain(frame), {1: kept}, met)[4]
    )
    # config B: (0.81 + 1.0) / 2 of a dedicated GPU's worth, 0.905
    assert "sharded and co-located 0.91 [0.91, 0.91] at 1 in flight (less)" in work
    linear = counted(RATES | {"tp2-alone": 190.0})
    assert "? Yes: 1.90" in two_devices.outcomes(two_devices.chain(linear), {1: kept}, met)[1]


def test_one_block_has_no_interval_and_says_so() -> None:
    frame = counted()
    one = frame[frame["block"] == frame["block"].iloc[0]]
    said = two_devices.outcomes(two_devices.chain(one), {1: kept_fractions(block_ratios(one))}, {})
    assert "0.91 (one block: no interval) at 1 in flight (not settled)" in said[0]
    assert "1.50 (one block: no interval) times one device's rate" in said[1]


def test_what_was_not_measured_is_said() -> None:
    frame = counted({"configA": 100.0})
    said = two_devices.outcomes(two_devices.chain(frame), {1: kept_fractions(block_ratios(frame))}, {})
    assert all("Not measured" in line for line in said)


def test_a_prediction_stands_beside_the_measurement_with_its_error() -> None:
    rates = {"gen": Range(90.0, 60.0, 120.0), "embed": Range(100.0, 95.0, 105.0)}
    unit = Unit("configB", 2, rates["gen"], rates["embed"], np.nan, True)
    table = two_devices.prediction(unit, counted()).set_index("workload")
    mean = 81.0 * np.prod([1.1, 1.2, 1.3, 1.4]) ** 0.25
    assert table.loc["gen", "measured"] == pytest.approx(mean)
    assert table.loc["gen", "error"] == pytest.approx(mean / 90.0 - 1)
    assert two_devices.prediction(None, counted()).empty
    assert two_devices.prediction(dataclasses.replace(unit), counted({"configA": 1.0})).empty


def test_loads_that_differ_are_named() -> None:
    one = {"embed_batch_size": 32, "gen_concurrency": 1}
    assert two_devices.other_loads(one, one) == []
    assert two_devices.other_loads(one, one | {"embed_batch_size": 8}) == ["embed_batch_size 32 against 8"]
