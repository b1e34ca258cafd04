"""Keeps one set of engines up and changes as little of it as the next trial needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from colo_lib.errors import StepSkipped
from colo_lib.launch.engines import Engines, Handles, publish
from colo_lib.launch.identity import EngineIdentity, identity_of
from colo_lib.launch.placement import Placement
from colo_lib.params import Params
from colo_lib.run.progress import Progress

Say = Callable[[str], None]
FIRST_ENGINE_START_S = 40.0


class EngineKeeper:
    """Owns the engines between trials; `stop` always."""

    def __init__(self, runtime: Path, logs: Path) -> None:
        self.runtime, self.logs = runtime, logs
        self.engines: Engines | None = None
        self.identity: EngineIdentity | None = None
        self.start_s = FIRST_ENGINE_START_S
        self.skipped: dict[str, str] = {}

    @property
    def key(self) -> object:
        """Key of the engines that are up, None when none are."""
        return self.engines.placement.engine_key() if self.engines else None

    @property
    def file(self) -> Path:
        """Where notebooks find the handles."""
        return self.runtime / "engines.json"

    def ready_for(self, params: Params, placement: Placement, sharing: Iterable[Placement], say: Say) -> Handles:
        """The engines of a trial: those that are up, with other embedding processes if need be, or new ones.

        `sharing`: every placement that will use them. Both engines are up if any of these needs both: what idles in
        memory is the same in every trial. Raises StepFailed when they cannot be had, StepSkipped when this machine
        lacks the mechanism: asked once.
        """
        wanted = identity_of(params, placement)
        if wanted.gen in self.skipped:
            raise StepSkipped(self.skipped[wanted.gen])
        if self.engines is None or self.identity is None or self.identity.gen != wanted.gen:
            self._start(params, placement, list(sharing), wanted, say)
        elif self.identity.embed != wanted.embed:
            say("embed starts anew; gen stays up")
            self.identity = None  # whatever becomes of the change, the engines are no longer what they were
            publish(self.engines.change_embed(params, Progress(5.0, say)), self.file)
            self.identity = wanted
        return self.engines.handles()  # type: ignore[union-attr]

    def _start(
        self, params: Params, placement: Placement, sharing: list[Placement], wanted: EngineIdentity, say: Say
    ) -> None:
        self.stop()
        self.engines = Engines(params, placement, self.runtime, self.logs)
        began = time.monotonic()
        gen, embed = any(one.runs_gen for one in sharing), any(one.runs_embed for one in sharing)
        try:
            publish(self.engines.start(gen, embed, Progress(5.0, say)), self.file)
        except StepSkipped as skipped:
            self.skipped[wanted.gen] = str(skipped)
            self.stop()
            raise
        self.identity, self.start_s = wanted, time.monotonic() - began

    def stop(self) -> None:
        """End the engines that are up."""
        self.identity = None
        if self.engines is not None:
            self.file.unlink(missing_ok=True)
            self.engines.stop()
            self.engines = None
