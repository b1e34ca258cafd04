"""How many tokens gen decoded in a window of a capture, counted from the CUDA graphs that it replayed.

A decode step of vLLM with full graphs replays one graph, and all of a replay's kernels carry its correlation id. So the
replays in a window are its steps, and a step gives a token to each request in flight. The rate while profiling, over a
longer window than a capture that was cut to be shared, is what is left where replays cannot be told.
"""

from __future__ import annotations

import numpy as np

from colo_lib.traces import Ints, Kernels

ALIKE = 0.98  # of the largest replay's kernels; a profiler loses a few
WORST_RATIO = 2.0  # between counted and expected: more is another kind of replay


def replays(kernels: Kernels, rows: Ints) -> float | None:
    """Graph replays among `rows`, which are one process's kernels on one device in order of their start.

    The first and the last are counted by the part of their kernels that is there. None where fewer than three are seen
    (no whole one is certain), or where they differ, as graphs of single layers or of several batch sizes do.
    """
    correlation = kernels.correlation[rows[kernels.node[rows]]]
    _, first, counts = np.unique(correlation, return_index=True, return_counts=True)
    counts = counts[np.argsort(first)]
    whole = counts[1:-1].max(initial=0)
    if not whole or (counts[1:-1] < ALIKE * whole).any():
        return None
    return len(counts) - 2 + float(np.minimum(counts[[0, -1]] / whole, 1.0).sum())


def tokens_of(steps: float | None, expected: float, concurrency: int) -> float:
    """Tokens of `steps` replays with `concurrency` requests in flight, else `expected`, which is rate x window."""
    if steps is None:
        return expected
    counted = steps * concurrency
    return counted if 1 / WORST_RATIO <= counted / expected <= WORST_RATIO else expected
