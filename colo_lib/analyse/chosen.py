"""The view of a chosen capture: whose processes are gen and embed, as a notebook's parameters and the capture say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colo_lib.analyse.view import View, look, window_of
from colo_lib.analyse.workloads import WORKLOADS, assign
from colo_lib.params import Params
from colo_lib.traces import Capture


def view_of(capture: Capture, facts: Mapping[str, Any], params: Params) -> View:
    """Look at `capture`, whose capture.json says `facts`, through `trace_gen`, `trace_embed` and `trace_window`."""
    asked = {"gen": params.trace_gen, "embed": params.trace_embed}
    recorded = facts.get("pids") or {}
    known = {process.pid for process in capture.processes}
    for workload in WORKLOADS:
        if not asked[workload]:
            # The recorded pids are a whole process tree, of which some launched work.
            own = [str(pid) for pid in recorded.get(workload) or [] if pid in known]
            asked[workload] = ",".join(own)
    assignment, _ = assign(capture, asked)
    return look(capture, assignment, window_of(params.trace_window), mechanism=facts.get("mechanism"))


def views_alone(captures: Mapping[str, tuple[Capture, Mapping[str, Any]]]) -> dict[str, View]:
    """Workload -> the view of a capture in which it ran alone; a key that is no workload stands for the likely one."""
    found = {}
    for name, (capture, facts) in captures.items():
        likely, _ = assign(capture, {})
        places = sorted({place for own in likely.values() for place in own})
        workload = name if name in WORKLOADS else next(iter(likely))
        found[workload] = look(capture, {workload: places}, mechanism=facts.get("mechanism"))
    return found
