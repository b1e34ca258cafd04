"""Where a token's time goes in the recorded captures: parts that add up, and the split that the findings rest on."""

from __future__ import annotations

import pytest

from colo_lib import paths
from colo_lib.analysis.sweep_analysis import SweepAnalysis
from colo_lib.data.sweep import open_sweep
from colo_lib.params import Params
from colo_lib.report import trace_tables


def test_beside_embed_gen_waits_and_as_an_mps_client_alone_it_does_not() -> None:
    sweep = open_sweep(next(paths.RECORDED.glob("h100-llama-*[0-9]")))
    told = trace_tables.token_times(SweepAnalysis(sweep, Params()).token_times).set_index("Step")
    shared, alone = "both under MPS", "LLM alone as an MPS client"
    assert {*told.index} == {shared, alone}
    numbers = told[list(trace_tables.PARTS.values())].astype(float)
    whole, *rest = trace_tables.PARTS.values()
    assert numbers[rest].sum(axis=1).to_numpy() == pytest.approx(numbers[whole].to_numpy(), abs=0.03)
    waiting = numbers["Waiting for the device (ms)"]
    assert waiting[shared] > 0.5 * numbers.loc[shared, whole] > 10 * waiting[alone]


def test_beside_embed_on_both_each_rank_s_own_kernels_take_longer() -> None:
    sweep = open_sweep(next(paths.RECORDED.glob("h100-x2-*[0-9]")))
    met = SweepAnalysis(sweep).collectives
    alone, both = met["tp2-mps-alone"], met["configB"]
    for one in (alone, both):
        assert one.summary["collectives_per_token"] == pytest.approx(66, abs=0.5), "65 all-reduces, one all-gather"
    assert alone.summary["own_ms"] == pytest.approx(4.29, abs=0.01)
    assert both.summary["own_ms"] == pytest.approx(5.61, abs=0.01)
