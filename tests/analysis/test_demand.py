"""A demand made of the embedder: what is met of it counts from when it was due, and what is nearly free is found."""

from __future__ import annotations

import numpy as np
import pytest

from colo_lib.analysis.demand import demands, free_demand
from colo_lib.analysis.sweep import SweepMeasures, collect
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.data.sweep import open_sweep
from colo_lib.examples.simulated_run import write_sweep
from colo_lib.frames import share_met
from colo_lib.params import Params

BOUNDS = Thresholds.of(Params(slo_embed_batch_ms=400.0))
MS = 1_000_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SweepMeasures:
    sweep = open_sweep(write_sweep(tmp_path_factory.mktemp("sweeps"), "demand", blocks=5))
    return collect(sweep.cells, sweep.names)


def test_a_server_that_stalls_pays_for_all_that_was_due_meanwhile() -> None:
    # One request a 10 ms; the server answers nothing for a second, then all at once. Who times from the sending, one
    # request at a time, sees one slow request of a hundred.
    due = np.arange(100) * 10 * MS
    answered = np.maximum(due + 1 * MS, 1000 * MS)
    assert share_met(due, answered, 100, (0, 1000 * MS), 500.0) == pytest.approx(0.5)
    # What never was answered is in the count of what was due.
    assert share_met(due[:50], answered[:50], 100, (0, 1000 * MS), 2000.0) == pytest.approx(0.5)
    assert share_met(due, answered, 50, (0, 500 * MS), 900.0) == pytest.approx(0.8)
    assert share_met(due, answered, 0, (0, 1), 1.0) is None


def test_what_was_planted_is_found(measured: SweepMeasures) -> None:
    table = demands(measured, BOUNDS)
    both = table[table["step"] == "step2"]
    assert both["rate"].tolist() == [20, 40, 80, 120, 160, 200]
    assert np.allclose(both["gen_mean"], 1 - 0.35 * (both["rate"] / 240) ** 2, atol=0.03)
    assert (both["met_mean"] > 0.98).all()
    turns = table[table["step"] == "step3"].set_index("rate")
    # In turns 115 a second are served: what is due beyond that waits longer and longer.
    assert turns.loc[120, "met_mean"] > 0.95
    assert turns.loc[200, "met_mean"] < 0.5
    assert turns["latency_mean"].loc[200] > 3 * turns["latency_mean"].loc[80]
    # Free is what holds by its means too, and never what misses a bound.
    assert (table.loc[table["free"], "holds"]).all()
    assert not both.set_index("rate").loc[[160, 200], "holds"].any()
    assert not turns["free"].any()


def test_the_sentence_names_the_demand_and_its_cost(measured: SweepMeasures) -> None:
    told = free_demand(measured, BOUNDS)
    free = demands(measured, BOUNDS).query("step == 'step2' and free")["rate"]
    assert f"up to {free.max():g} sequences/s embedding is nearly free" in told
    assert "at 200, the most that is met within its SLO, the LLM keeps" in told
    assert "no demand that was measured is nearly free" in told  # in turns
    strict = Thresholds.of(Params(slo_embed_batch_ms=400.0, min_gen_kept=1.5))
    assert "nearly free" in free_demand(measured, strict)
    assert "up to" not in free_demand(measured, strict)


def test_a_demand_that_was_refused_is_named(measured: SweepMeasures) -> None:
    cells = measured.cells.assign(status=["done"] * 5 + ["refused"])
    last = cells["cell"].iloc[-1]
    refused = SweepMeasures(measured.values[measured.values["cell"] != last], cells, measured.names)
    assert "200 sequences/s could not be had even alone" in free_demand(refused, BOUNDS)
    empty = SweepMeasures(measured.values.iloc[:0], measured.cells, measured.names)
    assert free_demand(empty, BOUNDS) == "No demand was measured beside the LLM: nothing can be said."
