"""What a parameter is for: its group, what it touches, where it has no effect, and which notebooks list it.

`colo_lib.params` gives every parameter one `Purpose`. Which trials can share engines, which cells of a sweep share
trials, what a notebook's first cell lists, what may be shared and how the params files and docs are divided all follow
from it, so that no second list of names has to be kept true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from pydantic import Field

# Group -> the heading under which its parameters stand in params files and docs, in this order.
GROUPS = {
    "storing": "where results go",
    "reading": "what is read",
    "machine": "machine",
    "models": "the two models",
    "gen load": "gen",
    "embed load": "embed",
    "mechanism": "sharing",
    "measuring": "measuring",
    "judging": "what counts as good",
}

TOUCHES = {
    "engine": "what a process, or the mechanism below it, is started with",
    "load": "what a workload is told to do in a trial",
    "trial": "how a trial is timed and checked",
    "capture": "what is profiled, beside the trials",
    "plan": "which trials there are",
    "hosting": "where a server listens, how long a notebook may run",
    "judgement": "what counts as good",
    "reading": "what a notebook reads and shows",
    "storing": "where results go and what they are called",
}

# What a trial depends on: with equal values of these, a trial measured once counts for several cells of a sweep.
DECIDE_A_TRIAL = frozenset({"engine", "load", "trial"})

Group = Literal[
    "storing", "reading", "machine", "models", "gen load", "embed load", "mechanism", "measuring", "judging"
]
Touch = Literal["engine", "load", "trial", "capture", "plan", "hosting", "judgement", "reading", "storing"]
Workload = Literal["", "gen", "embed", "both"]
# What a text stands for: it decides how the text may be shared.
Text = Literal[
    "", "run name", "path", "steps", "devices", "model", "interpreter", "process", "seconds", "arguments", "address",
    "counts",
]  # fmt: skip


@dataclass(frozen=True)
class Purpose:
    """What one parameter is for; raises TypeError without a known group and a known touch."""

    group: Group
    touches: frozenset[Touch]
    at_work: Workload = ""
    """Without effect on a trial in which this workload has no work; `both`: in which they do not share devices."""
    mechanisms: tuple[str, ...] = ()
    """Without effect under other mechanisms; empty: under any."""
    text: Text = ""
    notebooks: tuple[str, ...] = ()
    """Beginnings of the names of the notebooks whose parameters cell lists it."""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise TypeError(f"group {self.group!r} of a parameter is none of {', '.join(GROUPS)}")
        if not self.touches or not self.touches <= set(TOUCHES):
            raise TypeError(f"a parameter touches one or more of {', '.join(TOUCHES)}, not {sorted(self.touches)}")
        if self.text not in get_args(Text) or self.at_work not in get_args(Workload):
            raise TypeError(f"a parameter has text {self.text!r} and at_work {self.at_work!r}, which mean nothing")

    def matters(self, gen: bool, embed: bool, sharing: bool, mechanism: str) -> bool:
        """Whether a trial depends on it: which workloads have work, whether they share devices, and by what."""
        at_work = {"": True, "gen": gen, "embed": embed, "both": sharing}[self.at_work]
        return bool(self.touches & DECIDE_A_TRIAL) and at_work and self.under(mechanism)

    def under(self, mechanism: str) -> bool:
        """Whether it has an effect under a mechanism."""
        return not self.mechanisms or mechanism in self.mechanisms


def parameters(group: Group, *touches: Touch, **more: Any) -> Callable[..., Any]:
    """What makes the fields of one purpose: `(default, description, **bounds)`, `text` and `notebooks` among them."""
    return partial(_field, Purpose(group, frozenset(touches), **more))


def _field(
    purpose: Purpose, default: Any, description: str, text: Text = "", notebooks: tuple[str, ...] = (), **bounds: Any
) -> Any:
    complete = replace(purpose, text=text or purpose.text, notebooks=notebooks or purpose.notebooks)
    carried: dict[str, Any] = {"purpose": complete}
    return Field(default, description=description, json_schema_extra=carried, **bounds)


def purpose_of(name: str, field: Any) -> Purpose:
    """The purpose of a parameter's field; raises TypeError for one without, and for a text that stands for nothing."""
    extra = field.json_schema_extra
    purpose = extra.get("purpose") if isinstance(extra, dict) else None
    if not isinstance(purpose, Purpose):
        raise TypeError(f"parameter {name!r} has no purpose: say its group and what it touches")
    if field.annotation is str and not purpose.text:
        raise TypeError(f"parameter {name!r} is a text: say what it stands for, so that it is shared as it may be")
    return purpose
