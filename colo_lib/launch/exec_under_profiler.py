"""Becomes an engine below a profiler: says which process it is, takes the engine's own environment, and executes it.

Standard library only, run as a file: python exec_under_profiler.py NOTE '{"NAME": "value" or null, …}' COMMAND …
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Files that nsys's injection makes outside any folder of ours, and leaves when it is killed.
LEFT_BEHIND = "/tmp/injection_config_"


def main(note: Path, variables: dict[str, str | None], command: list[str]) -> None:
    """Write the note, whole or not at all, then be the engine."""
    left_behind = sorted({value for value in os.environ.values() if value.startswith(LEFT_BEHIND)})
    temporary = note.with_name(note.name + ".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "left_behind": left_behind}))
    temporary.rename(note)
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
