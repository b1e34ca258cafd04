"""What telemetry says of itself: why values are missing, what it cost, where it has gaps."""

from __future__ import annotations

import pandas as pd

from colo_lib.analysis.telemetry import cost_sentence, reasons


def trials(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_a_reason_stands_once_with_the_trials_that_gave_it() -> None:
    refused = {"0": {"energy_mj": "NotSupported", "power_w": "NoPermission: ask root"}}
    found = reasons(trials(telemetry_absent=[refused, {"0": {"energy_mj": "NotSupported"}}, None, {}]))
    assert found.to_dict("records")[0] == {"device": "0", "field": "energy_mj", "reason": "NotSupported", "trials": 2}
    assert len(found) == 2
    assert reasons(trials(telemetry_absent=[None])).empty


def test_the_cost_is_told_and_a_gap_with_its_cause() -> None:
    told = cost_sentence(trials(telemetry_cpu_fraction=[0.01, 0.03], telemetry_gaps=[[], None]))
    assert "2.0% of one core (at most 3.0%)" in told
    assert "no gaps" in told
    gap = {"start_ns": 1, "end_ns": 2, "reason": "the sampler was ended by SIGSEGV"}
    assert "SIGSEGV" in cost_sentence(trials(telemetry_cpu_fraction=[None], telemetry_gaps=[[gap]]))
