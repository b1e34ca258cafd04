"""The published runs (`recorded/published/`): their tables and their conditions, as they were printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from colo_lib import paths
from colo_lib.errors import InputError

FOLDER = paths.REPOSITORY / "recorded" / "published"
LATER = "later-"  # what the files of the runs that were published afterwards begin with


@dataclass(frozen=True)
class Published:
    """`figures`: a row a printed figure (run, table, item, metric, unit, step, low, high, approximate, printed).

    `changes`: a row a printed percentage or factor that follows from figures (run, where, metric, step, against, low,
    high, digits, kind, printed). `conditions`: run -> what it ran, on what, as far as it was told.
    """

    figures: pd.DataFrame
    changes: pd.DataFrame
    conditions: Mapping[str, Mapping[str, Any]]


def read_published(folder: Path = FOLDER, prefix: str = "") -> Published:
    """Read the published runs (`prefix` `LATER`: the later ones).

    Raises InputError naming the folder and what is missing or damaged.
    """
    try:
        figures = pd.read_csv(folder / f"{prefix}figures.csv", keep_default_na=False, dtype=str)
        changes = pd.read_csv(folder / f"{prefix}changes.csv", keep_default_na=False, dtype=str)
        conditions = json.loads((folder / f"{prefix}conditions.json").read_text(encoding="utf-8"))["runs"]
        for frame in (figures, changes):
            for column in ("low", "high"):
                frame[column] = pd.to_numeric(frame[column])
        changes["digits"] = changes["digits"].astype(int)
        figures["approximate"] = figures["approximate"] == "yes"
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the published runs in {folder} cannot be read: {error}") from None
    return Published(figures, changes, conditions)


def printed_figure(figures: pd.DataFrame, run: str, metric: str, step: str, item: str = "") -> tuple[float, float]:
    """(low, high) of a printed figure of a run's own tables; (nan, nan) where it printed none."""
    mine = figures[(figures["run"] == run) & (figures["metric"] == metric) & (figures["step"] == step)]
    mine = mine[(mine["table"] != "comparison") & (mine["item"] == item)]
    return (np.nan, np.nan) if mine.empty else (float(mine["low"].iloc[0]), float(mine["high"].iloc[0]))
