"""One look for every figure: a colour a workload, a hatch and a marker a mechanism (Okabe-Ito, colour-blind safe)."""

from __future__ import annotations

import textwrap

import matplotlib as mpl

from colo_lib.steps import MECHANISMS

GEN_COLOUR = "#0072B2"
EMBED_COLOUR = "#D55E00"
BOTH_COLOUR = "#4D4D4D"
BOUND_COLOUR = "#A3195B"
WORKLOAD_COLOURS = {"gen": GEN_COLOUR, "embed": EMBED_COLOUR}

MECHANISM_HATCHES = {row.id: row.hatch for row in MECHANISMS.values()}

MECHANISM_MARKERS = {row.id: row.marker for row in MECHANISMS.values()}

GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # of words that a line may pass behind
WIDTH_IN = 8.0  # a figure at report size: 8 in at 100 dpi on the page
DPI = 150


def wrapped(name: str, characters: int) -> str:
    """A step's name in lines that fit where it stands."""
    return textwrap.fill(name, characters, break_long_words=False, break_on_hyphens=False)


def apply_style() -> None:
    """Set matplotlib's defaults for report figures."""
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": DPI,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "font.family": "DejaVu Sans",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.7,
            "hatch.linewidth": 0.6,
            "lines.linewidth": 1.6,
            "svg.hashsalt": "colo",
        }
    )
