"""How busy the processes of gen's load client were in a window: a busy one times tokens late."""

from __future__ import annotations

from collections.abc import Sequence

# (monotonic ns, CPU time of the process ns)
Reading = tuple[int, int]

# A process of Python that uses more of its core than this may keep arrivals waiting.
BUSY_CORES = 0.8
# Spans shorter than this say more of the scheduler than of the load.
LEAST_SPAN_NS = 900_000_000
# A reading is taken each half second: one so much outside the window still speaks of it.
SLACK_NS = 600_000_000


def busiest(asked: Sequence[Sequence[Reading]], start_ns: int, end_ns: int) -> float | None:
    """The most of a core that any process used over about a second of [start_ns, end_ns); None where it is not known.

    `asked`: a reading a process, each time that they were asked, in the order of time.
    """
    most: float | None = None
    for process in zip(*[row for row in asked if row], strict=False):
        mine = [reading for reading in process if start_ns - SLACK_NS <= reading[0] <= end_ns + SLACK_NS]
        before = 0
        for place, (t_ns, cpu_ns) in enumerate(mine):
            while before < place and t_ns - mine[before + 1][0] >= LEAST_SPAN_NS:
                before += 1
            span_ns = t_ns - mine[before][0]
            if span_ns >= LEAST_SPAN_NS:
                most = max(most or 0.0, (cpu_ns - mine[before][1]) / span_ns)
    return most
