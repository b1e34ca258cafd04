"""An engine started below a profiler's launch command of its own, where one session cannot hold all engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOTES = "engine-{}.json"  # in the launcher's private folder, by the engine's name
START = Path(__file__).with_name("wrapped_start.py")


@dataclass(frozen=True)
class Wrap:
    """`launch`: the profiler's words before the engine's; `environment`: what they need; `note`: who the engine is."""

    launch: tuple[str, ...]
    environment: Mapping[str, str]
    note: Path

    def around(
        self, command: Sequence[str], env: Mapping[str, str], shared: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """The command to start instead, and its environment.

        `shared`, what the sharing mechanism adds to `env`, is kept from the profiler: below an MPS client's
        variables its own look at the GPU would be one more client, which the proof of the mechanism rejects.
        """
        self.note.unlink(missing_ok=True)
        own = {name: env.get(name) for name in sorted({*shared, *self.environment})}
        start = [sys.executable, "-I", str(START), str(self.note), json.dumps(own)]
        outer = {name: value for name, value in env.items() if name not in own}
        return [*self.launch, *start, *command], outer | dict(self.environment)

    def engine_pid(self) -> int:
        """The engine's own process, below the profiler's; of an engine that has answered."""
        return int(json.loads(self.note.read_text())["pid"])
