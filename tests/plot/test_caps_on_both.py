"""The figure of a sweep in which both caps vary: a place a pair, also where a workload has no rate that counts."""

from __future__ import annotations

from dataclasses import replace

from colo_lib import paths
from colo_lib.analysis.sweep import collect
from colo_lib.data.sweep import open_sweep
from colo_lib.plot.sweep import CAPS, thread_frontier


def test_every_pair_of_caps_has_a_place_of_its_own() -> None:
    (folder,) = paths.RECORDED.glob("h200-levers-*[0-9]")
    sweep = open_sweep(folder).along(CAPS)
    measures = collect(sweep.cells, sweep.names)
    pairs = ["90 / 10", "75 / 25", "50 / 50", "100 / 50", "100 / 100"]
    assert drawn(measures) == pairs
    values = measures.values
    lost = (values["measure"] == "gen_kept") & (values["mps_gen_thread_percentage"] == 75)
    assert lost.any()
    assert drawn(replace(measures, values=values[~lost])) == pairs, "its embedder was measured all the same"


def drawn(measures: object) -> list[str]:
    left = thread_frontier(measures, CAPS[0], 0.95).axes[0]  # type: ignore[arg-type]
    return [label.get_text() for label in left.get_xticklabels()]
