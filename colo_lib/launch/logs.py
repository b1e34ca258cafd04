"""What a dead process's log says of its end: its last lines, and the errors that came before them."""

from __future__ import annotations

import os
import re
from pathlib import Path

LAST_LINES = 20
MOST_CAUSES = 5
READ_BYTES = 256 * 1024
# Said by every interpreter that ends in a hurry; it would push the cause out of sight.
NOISE = re.compile(r"nanobind: |^ - (leaked |\.\.\. skipped)|resource_tracker|^\s*warnings\.warn\(|^\s*$")
CAUSE = re.compile(r"\b\w*(Error|Exception)\b: |died unexpectedly|out of memory|Killed|Segmentation fault")


def tail(file: Path, lines: int = LAST_LINES) -> str:
    """The last `lines` lines of a text file without shutdown noise, led by earlier lines that name an error.

    Empty when the file cannot be read; at most the last 256 KiB are looked at.
    """
    try:
        with open(file, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - READ_BYTES))
            said = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line[:400] for line in said if not NOISE.search(line)]
    earlier, last = said[:-lines], said[-lines:]
    causes = list(dict.fromkeys(line for line in earlier if CAUSE.search(line)))[-MOST_CAUSES:]
    return "\n".join([*causes, "…", *last] if causes else last)
