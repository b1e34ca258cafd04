"""What was read of files stays known: of a run while its files are as they were, by size, times and inode, as git tells
it; of a frame by the digest of its content, for the cells of a sweep hold many files of one content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from pathlib import Path

import pandas as pd

State = tuple[tuple[int, ...] | None, ...]
HELD_BYTES = 512 * 1024**2


def state_of(files: Iterable[Path]) -> State:
    """Size, times and inode of each file; None for one that is not there."""
    return tuple(_state(file) for file in files)


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        told = file.stat()
    except OSError:
        return None
    return told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_dev


class HeldFrames:
    """Frames by the content that they were read of, up to so many bytes; those not asked for longest go first."""

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._frames: OrderedDict[Hashable, tuple[pd.DataFrame, int]] = OrderedDict()

    def get(self, content: Hashable) -> pd.DataFrame | None:
        """The frame of this content, or None; a shallow copy: no column is added to what is held."""
        if content not in self._frames:
            return None
        self._frames.move_to_end(content)
        return self._frames[content][0].copy(deep=False)

    def put(self, content: Hashable, frame: pd.DataFrame) -> None:
        """Hold a frame, unless it is larger than all that may be held."""
        size = int(frame.memory_usage(deep=False).sum())
        if content in self._frames or size > self.most_bytes:
            return
        self._frames[content] = (frame.copy(deep=False), size)
        self.bytes += size
        while self.bytes > self.most_bytes:
            _, (_, dropped) = self._frames.popitem(last=False)
            self.bytes -= dropped
