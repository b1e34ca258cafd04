"""Power of a trial's devices inside its window, W: from the energy counter where there is one, else mean power."""

from __future__ import annotations

import numpy as np
import pandas as pd

from colo_lib.analyse.throughput import NS_PER_S

WATTS = "device_power_w"


def with_power(counted: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """`counted` with a column `WATTS`: the sum over the trial's devices, null where no device offers it.

    `samples`: `telemetry.series`. The counter's rise over the samples' span is exact where sampled power is not.
    """
    if samples.empty:
        return counted.assign(**{WATTS: np.nan})
    mine = samples[samples["in_window"] & (samples["scope"] == "device")]
    watts = {
        (str(step), int(trial)): sum(_watts(device) for _, device in group.groupby("name"))
        for (step, trial), group in mine.groupby(["step", "trial"])
    }
    keys = zip(counted["step"], counted["trial"], strict=True)
    return counted.assign(**{WATTS: [watts.get((str(step), int(trial)), np.nan) for step, trial in keys]})


def _watts(device: pd.DataFrame) -> float:
    counter = device[["t_ns", "energy_mj"]].dropna()
    span_s = (counter["t_ns"].max() - counter["t_ns"].min()) / NS_PER_S if len(counter) > 1 else 0.0
    if span_s > 0:
        return float(counter["energy_mj"].max() - counter["energy_mj"].min()) / 1e3 / span_s
    return float(device["power_w"].mean())
