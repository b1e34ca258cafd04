"""A sweep's frames shaped for reading."""

from __future__ import annotations

from typing import Any

import pandas as pd

from colo_lib.analyse import operating_point
from colo_lib.analyse.steps_table import number, with_interval, within_starts
from colo_lib.analyse.sweep import SweepMeasures
from colo_lib.parse.sweep import Sweep

NONE = "—"
SHOWN = {
    ("step1", "gen_tokens_per_s"): "gen alone, tokens/s",
    ("step2", "gen_tokens_per_s"): "gen in step 2, tokens/s",
    ("step2", "gen_kept"): "gen kept",
    ("step4", "embed_sequences_per_s"): "embed alone, sequences/s",
    ("step2", "embed_sequences_per_s"): "embed in step 2, sequences/s",
    ("step2", "embed_kept"): "embed kept",
    ("step2", "aggregate"): "aggregate",
}


def cells(measures: SweepMeasures) -> pd.DataFrame:
    """A row a cell: what it varied, its status, and the measures of `SHOWN` [95 % interval]."""
    told = {
        (row.cell, row.step, row.measure): with_interval(row.mean, row.low, row.high, row.starts)
        for row in measures.values.itertuples()
        if row.mean == row.mean
    }
    rows = []
    for cell in measures.cells.itertuples():
        status = f"{cell.counted} of {cell.trials} trials count" if cell.status == "done" else cell.status
        status += f": {cell.reason}" if isinstance(cell.reason, str) else ""
        values = [told.get((cell.cell, *key), NONE) for key in SHOWN]
        rows.append((*(str(getattr(cell, name)) for name in measures.names), status, *values))
    return pd.DataFrame(rows, columns=[*measures.names, "Status", *SHOWN.values()])


def settings(found: pd.DataFrame) -> pd.DataFrame:
    """`operating_point.settings` for reading: a row a numbered setting."""
    return pd.DataFrame(
        {
            "No.": found["number"].astype(str),
            "Embed": found["setting"],
            "Mechanism": found["mechanism"],
            "In flight": found["concurrency"].astype(str),
            "gen kept": [operating_point.told(row, "gen") for _, row in found.iterrows()],
            "embed kept": [operating_point.told(row, "embed") for _, row in found.iterrows()],
            "aggregate": [operating_point.told(row, "aggregate") for _, row in found.iterrows()],
            "p99 gap grows by": [_growth(row) for row in found.itertuples()],
            "gen kept, embed idle": [_idle(row) for row in found.itertuples()],
            "SM clock (MHz)": [number(value) for value in found["sm_clock_mhz"].astype("float64")],
            "Power (W)": [number(value) for value in found["power_w"].astype("float64")],
            "DRAM in use (%)": [number(value) for value in found["dram_active"].astype("float64")],
        }
    )


def _growth(row: Any) -> str:
    if row.gap_growth != row.gap_growth:
        return NONE
    return f"{row.gap_growth:.0%} [{row.gap_low:.0%}, {row.gap_high:.0%}{within_starts(row.starts)}]"


def _idle(row: Any) -> str:
    known = row.idle_neighbour is not None and row.idle_neighbour == row.idle_neighbour
    return with_interval(row.idle_neighbour, row.idle_low, row.idle_high, row.starts) if known else NONE


def states(sweep: Sweep) -> pd.DataFrame:
    """A row a cell: what it varies, and what became of it."""
    rows = []
    for cell in sweep.cells:
        counted = "" if cell.run is None else f": {int((cell.run.trials['status'] == 'done').sum())} trials count"
        why = f": {cell.reason}" if cell.reason and cell.run is None else ""
        changes = {name: str(cell.changes[name]) for name in sweep.names}
        rows.append({"Cell": cell.name, **changes, "Status": f"{cell.status}{counted}{why}"})
    return pd.DataFrame(rows)


def labelled(sweep: Sweep, sentence: str) -> str:
    """The sentence under the label that its data ask for."""
    if sweep.simulated:
        return f"SIMULATED, no device took part: {sentence}"
    return f"Cores stand in for GPUs: {sentence}" if sweep.stand_in else sentence
