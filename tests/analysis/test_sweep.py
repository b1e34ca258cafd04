"""What was planted into simulated sweeps comes out of them, in the measures and in the sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from colo_lib.analysis import operating_point
from colo_lib.analysis import sweep as analysis_sweep
from colo_lib.analysis.capacity import Range
from colo_lib.analysis.sweep import COLUMNS, SweepMeasures, collect, difference, ratio_gain, with_prefill_share
from colo_lib.data.sweep import open_sweep
from colo_lib.examples.simulated_run import write_sweep
from colo_lib.params import Params

LENGTHS = (Params().gen_prompt_tokens, Params().gen_output_tokens)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SweepMeasures]:
    root = tmp_path_factory.mktemp("sweeps")
    blocks = {"threads": 5, "batch-more": 5, "eager": 3, "memory": 2, "prefill": 1}
    opened = {name: open_sweep(write_sweep(root, name, blocks=count)) for name, count in blocks.items()}
    assert all(sweep.simulated for sweep in opened.values())
    return {name: collect(sweep.cells, sweep.names) for name, sweep in opened.items()}


def test_planted_kept_fractions_come_out(measured: dict[str, SweepMeasures]) -> None:
    kept = measured["threads"].of("step2", "gen_kept").set_index("mps_embed_thread_percentage")["mean"]
    for share, found in kept.items():
        assert found == pytest.approx(1 - 0.28 * (share / 100) ** 1.5, abs=0.03)


def test_the_thread_sentence_takes_only_what_surely_keeps_enough(measured: dict[str, SweepMeasures]) -> None:
    told = analysis_sweep.threads(measured["threads"], 0.80)
    assert "mps_embed_thread_percentage = 50" in told or "mps_embed_thread_percentage = 75" in told
    assert analysis_sweep.threads(measured["threads"], 1.5).startswith("At no setting does the LLM surely keep 150%")
    assert "thread percentages do nothing" in analysis_sweep.threads(measured["batch-more"], 0.8)


def test_a_trend_is_told_with_its_interval_and_none_is_not_settled(measured: dict[str, SweepMeasures]) -> None:
    told = analysis_sweep.trend(measured["batch-more"], "gen_concurrency", "By requests")
    assert "at 1 and" in told
    assert "not settled" not in told
    flat = measured["memory"]
    one_size = SweepMeasures(flat.values[flat.values["embed_batch_size"] == 8], flat.cells, flat.names)
    assert "not settled" in analysis_sweep.trend(one_size, "gen_kv_cache_gib", "By cache")


def test_batching_becomes_wasteful_where_it_was_planted(measured: dict[str, SweepMeasures]) -> None:
    gains = operating_point.against_sharing(measured["batch-more"])
    truth = [1500 * 2 * c / (2 * c + 12) / (1500 * c / (c + 12)) - 1 for c in gains["concurrency"]]
    assert np.allclose(gains["batch_gain"], truth, atol=0.06)
    assert operating_point.wasteful_from(gains) in (8, 16)
    told = operating_point.batching_sentence(measured["batch-more"], 1e6)
    assert "batching more is wasteful" in told
    assert "alone up to 32 and shared up to 32" in told
    assert "alone nowhere and shared nowhere" in operating_point.batching_sentence(measured["batch-more"], 0.001)


def test_wasteful_means_from_there_on() -> None:
    frame = pd.DataFrame({"concurrency": [1, 2, 4, 8], "wasteful": [True, False, True, True]})
    assert operating_point.wasteful_from(frame) == 4
    assert operating_point.wasteful_from(frame.assign(wasteful=[True, True, True, False])) is None


def test_eager_keeps_more_and_gives_less(measured: dict[str, SweepMeasures]) -> None:
    told = analysis_sweep.eager(measured["eager"])
    assert "not settled" not in told
    assert "difference -" in told.split("tokens/s")[1]
    assert "nothing can be said" in analysis_sweep.eager(SweepMeasures(
        measured["eager"].values[measured["eager"].values["gen_enforce_eager"].astype(bool)],
        measured["eager"].cells, measured["eager"].names))  # fmt: skip


def test_prefill_share_is_of_a_requests_tokens(measured: dict[str, SweepMeasures]) -> None:
    shares = with_prefill_share(measured["prefill"], *LENGTHS)
    assert sorted(shares.cells["prefill_share"]) == [0.125, 0.375, 0.625, 0.875]
    only_output = SweepMeasures(measured["eager"].values, measured["eager"].cells, ("gen_output_tokens",))
    assert (with_prefill_share(only_output, *LENGTHS).cells["prefill_share"] == 0.5).all()


def test_what_did_not_fit_is_told_and_counted_nowhere(measured: dict[str, SweepMeasures]) -> None:
    told = analysis_sweep.memory(measured["memory"])
    assert told.startswith("3 of 12 cells did not fit.")
    assert "2 GiB beside batches of 128" in told
    assert "vary both" in analysis_sweep.memory(measured["eager"])
    refused = measured["memory"].cells[measured["memory"].cells["status"] == "refused"]
    assert set(refused["cell"]).isdisjoint(measured["memory"].values["cell"])


def test_an_empty_sweep_says_so() -> None:
    empty = SweepMeasures(
        pd.DataFrame(columns=[*COLUMNS, "gen_concurrency"]),
        pd.DataFrame({"cell": [], "status": [], "gen_concurrency": []}), ("gen_concurrency",),
    )  # fmt: skip
    assert "nothing can be said" in operating_point.batching_sentence(empty, 100.0)
    assert "fewer than two cells" in analysis_sweep.trend(empty, "gen_concurrency", "x")
    assert "nothing can be said" in analysis_sweep.threads(empty, 0.9)


def test_differences_and_gains_of_two_estimates() -> None:
    before, after = (Range(mean, mean - 0.03, mean + 0.03) for mean in (1.0, 1.04))
    found = difference(before, after)
    assert (found.mean, found.high - found.mean) == (pytest.approx(0.04), pytest.approx(0.03 * 2**0.5))
    assert not found.settled
    gain = ratio_gain(before, after)
    assert gain.mean == pytest.approx(0.04)
    assert gain.low < 0 < gain.high
