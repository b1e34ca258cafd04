"""Config B as the capacity plan predicts it from a run of one GPU, beside a run that measured it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from colo_lib.analyse import capacity, two_devices
from colo_lib.analyse.findings import against_bounds
from colo_lib.analyse.kept import block_ratios, kept_fractions
from colo_lib.analyse.measure import measure
from colo_lib.params import Params
from colo_lib.parse.choose import alike
from colo_lib.parse.run_folder import Run

NEEDED = ("step1", "step2", "step4")


@dataclass(frozen=True)
class Beside:
    """`two_devices.prediction`, and which runs were compared, with what differs between their loads."""

    table: pd.DataFrame
    caption: str


def beside(params: Params, pair: Run, counted: pd.DataFrame, bounds: Params) -> Beside:
    """The prediction from the newest run of one GPU with the pair's models and concurrency; empty without one."""
    single = alike(params, pair.params, NEEDED)
    if single is None:
        empty = two_devices.prediction(None, counted)
        return Beside(empty, f"No run of one GPU with these models and concurrency has {', '.join(NEEDED)}.")
    own = measure(single.trials, single.frame, bounds).counted
    kept = kept_fractions(block_ratios(own))
    units = capacity.units(own, kept, against_bounds(own, bounds), bounds.slo_gen_gap_ms)
    predicted = next((unit for unit in units if unit.predicted), None)
    told = f"Config B predicted from {single.run_id}, and measured."
    if others := two_devices.other_loads(single.params.model_dump(), pair.params.model_dump()):
        told += f" The loads differ, so that this compares more than the layout: {'; '.join(others)}."
    return Beside(two_devices.prediction(predicted, counted), told)
