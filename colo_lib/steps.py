"""The one table of steps, and the mechanisms by which their workloads share a GPU.

A step is a row of `STEPS`, by its id as recorded; what the rest of the package needs (which steps share, which need
two devices, names, colours, the order in figures) is derived from the rows. On cores that stand in for GPUs a step
does what cores can do; where that is something else, the row says what, and by which name people read of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["one", "one each", "sharded"]

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Mechanism:
    """How two workloads share a device, by its name as recorded.

    `name`: for people. `module`: of `colo_lib.launch.mechanisms`, that starts and proves it; empty on cores.
    `concurrent`: no context is switched out for the other workload's. `own_engines`: engines need an environment of
    their own. `mps`: engines are clients of an MPS server, and heed its limits. `may_be_absent`: a machine that does
    not offer it skips its step with the reason. `holds_embed`: what embed is held to decides how both are started.
    `in_gen`: embed is a thread of gen's worker, so that both are up whenever one is; cores do it too.
    `cores`: it is what cores do instead. Which parameters it reads, each parameter says (`params.PURPOSES`).
    """

    id: str
    name: str
    hatch: str
    marker: str
    module: str = "time_slicing"
    concurrent: bool = False
    own_engines: bool = False
    mps: bool = False
    may_be_absent: bool = False
    holds_embed: bool = False
    in_gen: bool = False
    cores: bool = False


MECHANISMS: Mapping[str, Mechanism] = {
    row.id: row
    for row in (
        Mechanism("none", "nothing shared", "", "o"),
        Mechanism("mps", "MPS", "///", "s", "mps", concurrent=True, own_engines=True, mps=True),
        Mechanism("time-sliced", "time-slicing", "...", "^"),
        Mechanism("mig", "MIG instances", "xxx", "D", "mig", concurrent=True, own_engines=True, may_be_absent=True),
        Mechanism("sm-partition", "SM partition", "+++", "P", "sm_partition", concurrent=True, own_engines=True,
                  mps=True, may_be_absent=True, holds_embed=True),
        Mechanism("in-process", "one process", "\\\\\\", "X", "in_process", concurrent=True, own_engines=True,
                  in_gen=True),
        Mechanism("cpu-shared", "both at once, on cores", "///", "s", "", cores=True),
        Mechanism("cpu-alternating", "in turns, on cores", "...", "^", "", cores=True),
    )
}  # fmt: skip


# Those under which the engines are clients of an MPS server.
UNDER_MPS = tuple(row.id for row in MECHANISMS.values() if row.mps)


@dataclass(frozen=True)
class Step:
    """All that is true of a step, by its id as recorded and as params name it.

    `name`: what people read on figures and pages. `mark`: a character or two that stand for it where a name has no
    room, with a key. `notebook`: records it. `mechanism`: on GPUs. `gen_baseline`, `embed_baseline`: the step against
    which a workload's rate is taken, None where the workload has no work. `layout`: both on one device, a device each,
    or gen sharded over two with an embedding process on each. `embedders`: of several embedding processes, which get
    work. `default`: it is in a run unless params say otherwise. `*_on_cores`: where cores do, and are called, something
    else.
    """

    id: str
    name: str
    mark: str
    notebook: str
    mechanism: str
    gen_baseline: str | None
    embed_baseline: str | None
    colour: str
    line: Any
    layout: Layout = "one"
    embedders: Literal["all", "second"] = "all"
    default: bool = False
    mechanism_on_cores: str = ""
    name_on_cores: str = ""

    @property
    def runs_gen(self) -> bool:
        """Whether gen gets work."""
        return self.gen_baseline is not None

    @property
    def runs_embed(self) -> bool:
        """Whether an embedding process gets work."""
        return self.embed_baseline is not None

    @property
    def runs_both(self) -> bool:
        """Whether both workloads get work."""
        return self.runs_gen and self.runs_embed

    @property
    def baselines(self) -> dict[str, str | None]:
        """Workload -> the step against which its rate is taken."""
        return {"gen": self.gen_baseline, "embed": self.embed_baseline}

    @property
    def needs_two(self) -> bool:
        """Whether it takes two devices."""
        return self.layout != "one"

    def mechanism_on(self, device: str) -> str:
        """The mechanism's name on `device` (cpu or cuda)."""
        return self.mechanism_on_cores or self.mechanism if device == "cpu" else self.mechanism

    def name_on(self, device: str) -> str:
        """The name for people on `device` (cpu or cuda)."""
        return self.name_on_cores or self.name if device == "cpu" else self.name


# The order of a run's trials, of tables and of figures.
TABLE: tuple[Step, ...] = (
    Step("step1", "LLM alone", "1", "11-gen-alone", "none", "step1", None, "#0072B2", "-", default=True),
    Step("step2", "both under MPS", "2", "12-both-shared", "mps", "step1", "step4", "#E69F00", "--", default=True,
         mechanism_on_cores="cpu-shared", name_on_cores="both at once"),
    Step("step3", "both time-sliced", "3", "13-both-alternating", "time-sliced", "step1", "step4", "#009E73", "-.",
         default=True, mechanism_on_cores="cpu-alternating", name_on_cores="both, alternating"),
    Step("step4", "embedder alone", "4", "14-embed-alone", "none", None, "step4", "#CC79A7", ":", default=True),
    # Cores have no MPS: there it is step 1 again, the null.
    Step("mps-alone", "LLM alone as an MPS client", "1m", "17-mps-alone", "mps", "step1", None, "#D55E00",
         (0, (1, 1)), mechanism_on_cores="none", name_on_cores="LLM alone, once more"),
    Step("configA", "dedicated, one GPU each", "A", "21-dedicated", "none", "configA", "configA", "#56B4E9",
         (0, (5, 1)), "one each", default=True, name_on_cores="dedicated, one core each"),
    Step("configB", "sharded and co-located", "B", "22-sharded-co-located", "mps", "configA", "configA", "#000000",
         (0, (3, 1, 1, 1)), "sharded", default=True, mechanism_on_cores="cpu-shared"),
    # The second embedding process: what one disturbed rank does to the other shows on the first device.
    Step("configB-one", "sharded, embedding on one GPU", "B1", "23-embed-on-one", "mps", "configA", "configA",
         "#44AA99", (0, (5, 1, 1, 1, 1, 1)), "sharded", "second", mechanism_on_cores="cpu-shared",
         name_on_cores="sharded, embedding on one core"),
    # Of one device's rate: what sharding gains.
    Step("tp2-mps-alone", "LLM alone, sharded, as an MPS client", "Sm", "24-sharded-mps-alone", "mps", "configA", None,
         "#AA4499", (0, (2, 1)), "sharded", mechanism_on_cores="none", name_on_cores="LLM alone, sharded, once more"),
    Step("tp2-alone", "LLM alone, sharded", "S", "25-sharded-alone", "none", "configA", None, "#661100", (0, (6, 2)),
         "sharded"),
    # Config B without MPS: the ranks that exchange at every layer get their turns on each GPU apart.
    Step("configB-sliced", "sharded and time-sliced", "Bt", "26-sharded-time-sliced", "time-sliced", "configA",
         "configA", "#F0B000", (0, (6, 1, 1, 1)), "sharded", mechanism_on_cores="cpu-alternating",
         name_on_cores="sharded, alternating"),
    # An embedder in each rank's worker.
    Step("configB-inproc", "sharded, both in one process a GPU", "Bi", "27-sharded-in-process", "in-process", "configA",
         "configA", "#8DA0CB", (0, (5, 2, 2, 2)), "sharded", name_on_cores="sharded, both in one process a core"),
    # Cores have neither: skipped there, with the reason.
    Step("mig", "both on MIG instances", "g", "15-mig", "mig", "step1", "step4", "#882255", (0, (7, 2, 1, 2))),
    Step("sm-partition", "both with the embedder held to its SMs", "p", "16-sm-partition", "sm-partition", "step1",
         "step4", "#999933", (0, (2, 3))),
    Step("inproc", "both in one process", "i", "18-in-process", "in-process", "step1", "step4", "#332288",
         (0, (4, 1, 2, 1))),
    # What the embedder's presence costs, idle: one interpreter runs both.
    Step("inproc-alone", "LLM alone, the embedder idle in its process", "1i", "19-in-process-alone", "in-process",
         "step1", None, "#6699CC", (0, (1, 2, 1, 2, 3, 2))),
)  # fmt: skip

STEPS: Mapping[str, Step] = {row.id: row for row in TABLE}

STEP_IDS = tuple(STEPS)

DEFAULT_STEPS = tuple(row.id for row in TABLE if row.default)

# The steps in which both workloads share what dedicated devices would give to each.
CO_LOCATED = tuple(row.id for row in TABLE if row.runs_both and row.mechanism != "none")

# Those of one device, kept fractions of which are taken to each workload alone on it.
CO_LOCATED_ON_ONE = tuple(name for name in CO_LOCATED if not STEPS[name].needs_two)

SHARDED = tuple(row.id for row in TABLE if row.layout == "sharded")

TWO_DEVICES = tuple(row.id for row in TABLE if row.needs_two)

# The steps that cannot be had without MPS; one that may be absent is skipped with the reason.
NEED_MPS = tuple(row.id for row in TABLE if row.mechanism in UNDER_MPS and not MECHANISMS[row.mechanism].may_be_absent)

# The steps that have kept fractions: all but those that are one workload alone, the measure of themselves.
KEPT = tuple(row.id for row in TABLE if row.runs_both or row.id not in row.baselines.values())

# Of these, those that are not 1 by definition; one workload alone under a mechanism stands before both.
KEPT_AGAINST_OTHERS = tuple(
    row.id
    for row in sorted(TABLE, key=lambda row: row.runs_both)
    if row.id in KEPT and row.id not in row.baselines.values()
)

# The steps in which a mechanism, or a neighbour by way of it, can cost gen time.
GEN_CAN_LOSE = tuple(name for name in KEPT_AGAINST_OTHERS if STEPS[name].runs_gen and STEPS[name].mechanism != "none")

# The step that runs a workload alone on one device with nothing shared.
ALONE: Mapping[str, str] = {
    "gen": next(row.id for row in TABLE if row.runs_gen and not row.runs_both and row.mechanism == "none"),
    "embed": next(row.id for row in TABLE if row.runs_embed and not row.runs_both and row.mechanism == "none"),
}

# The order in which a capture is looked for: both at work before one alone.
CAPTURES_FIRST = tuple(row.id for row in sorted(TABLE, key=lambda row: row.id not in CO_LOCATED))


# Workload -> what people call it.
WORKLOADS: Mapping[str, str] = {"gen": "LLM", "embed": "embedder"}


def part_in_words(part: str) -> str:
    """'LLM weights' for 'gen weights': a part of the memory budget, whose name begins with its workload."""
    return " ".join(WORKLOADS.get(word, word) for word in part.split(" "))


def names_of(pairs: Iterable[tuple[str, object]]) -> dict[str, str]:
    """step -> its name for people, from (step, mechanism as recorded, or anything where it is not known).

    On cores if one of the mechanisms is what cores do; else on GPUs. Raises KeyError for what is no step.
    """
    known = list(pairs)
    device = "cpu" if any(_on_cores(step, mechanism) for step, mechanism in known) else "cuda"
    return {step: STEPS[step].name_on(device) for step, _ in known}


def names_in(frame: Any) -> dict[str, str]:
    """`names_of` the columns step and, where there is one, mechanism of a data frame."""
    if not len(frame):
        return {}
    return names_of(zip(frame["step"], frame.get("mechanism", [None] * len(frame)), strict=True))


def mechanisms_in(frame: Any) -> dict[str, object]:
    """step -> its mechanism, of a data frame with both columns; empty where it has none of mechanisms."""
    return dict(zip(frame["step"], frame["mechanism"], strict=True)) if "mechanism" in frame else {}


def _on_cores(step: str, mechanism: object) -> bool:
    row = STEPS[step]
    return mechanism == row.mechanism_on("cpu") and mechanism != row.mechanism


def with_id(step: str, name: str = "") -> str:
    """'both under MPS (step2)': where a reader may have to type the id."""
    return f"{name or STEPS[step].name} ({step})"


def capital(name: str) -> str:
    """A name at the head of a sentence, a row or a column."""
    return name[0].upper() + name[1:]


def wanted_in_words(*steps: str) -> str:
    """'LLM alone (step1) and embedder alone (step4)': steps that somebody is to add to params."""
    return " and ".join(with_id(step) for step in steps)


def mechanism_in_words(mechanism: object) -> str:
    """A mechanism's name for people; as it stands where it is none of ours."""
    known = MECHANISMS.get(str(mechanism))
    return known.name if known else str(mechanism)


def check_table(rows: Sequence[Step], mechanisms: Sequence[Mechanism]) -> None:
    """Raises ValueError for a table that contradicts itself: found at import, not by a figure that lacks a step."""
    known, by_id = {row.id for row in mechanisms}, {row.id: row for row in rows}
    for what in ("id", "name", "mark", "notebook", "colour", "line"):
        values = [getattr(row, what) for row in rows]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"steps: {what} {twice} is given twice")
    for row in rows:
        if not (row.runs_gen or row.runs_embed):
            raise ValueError(f"steps: {row.id} runs nothing: give it a baseline")
        if unknown := {row.mechanism, row.mechanism_on("cpu")} - known:
            raise ValueError(f"steps: {row.id} has unknown mechanisms {unknown}")
        for workload, name in row.baselines.items():
            if name is not None and (name not in by_id or by_id[name].baselines[workload] != name):
                raise ValueError(f"steps: the baseline {name} of {workload} in {row.id} is no step that is its own")


check_table(TABLE, tuple(MECHANISMS.values()))
