"""When requests are due, where a demand is given: at a rate, at random or evenly, the same for the same seed.

Needs the standard library alone: `embed_worker` loads it as a file. A latency under such a demand counts from the time
at which its request was due. Counted from the sending it would leave out the wait that a busy server causes, just when
it is busy (coordinated omission).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

CLOSED, POISSON, CONSTANT = "closed", "poisson", "constant"


def due_times(kind: str, rate: float, seed: str) -> Iterator[float]:
    """Seconds from the beginning at which one request after the other is due, `rate` a second on average, for ever.

    `poisson`: independent exponential pauses of mean 1 / rate, so that the count in any span t has mean and variance
    rate t. `constant`: pauses of exactly 1 / rate, from a random moment in the first one on. Raises ValueError for a
    kind that has no times of its own, and for a rate that is not positive.
    """
    if kind not in (POISSON, CONSTANT) or not rate > 0:
        raise ValueError(f"no times at which requests are due: {kind!r} at {rate:g} a second")
    draw = random.Random(seed)
    if kind == CONSTANT:
        first = draw.random()
        for number in count():
            yield (first + number) / rate
    due_s = 0.0
    while True:
        due_s += draw.expovariate(rate)
        yield due_s
