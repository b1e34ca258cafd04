"""Progress for a person: what runs now, at most every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def to_stderr(text: str) -> None:
    """One line to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A `say` that drops what comes sooner than `every_s` seconds after the last thing said."""

    def __init__(self, every_s: float = 5.0, say: Callable[[str], None] = to_stderr) -> None:
        self.every_s, self.say, self.said_s = every_s, say, time.monotonic()

    def __call__(self, text: str) -> None:
        """Say it, unless something was said just now."""
        if time.monotonic() - self.said_s >= self.every_s:
            self.said_s = time.monotonic()
            self.say(text)
