"""What every frame of a run folder holds: columns, types, units. One place for writers and readers.

Times are CLOCK_MONOTONIC in ns, the same for every process of a host. The run folder's layout and
the meaning of each frame are fixed in the README's section on the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1

# column -> Arrow type name; "?" after it: may be null
GEN = {"request_id": "int32", "sequence_number": "int32", "arrival_ns": "int64"}
REQUESTS = {
    "request_id": "int32",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "submitted_ns": "int64",
    "first_token_ns": "int64?",
    "done_ns": "int64?",
    "error": "string?",
}
EMBED = {"started_ns": "int64", "done_ns": "int64", "sequences": "int32", "tokens": "int32"}
# A row a turn of cpu-alternating: who was allowed to run from start to end.
SLICES = {"workload": "string", "start_ns": "int64", "end_ns": "int64"}
# A row an entity a sample: `scope` is "device" (a GPU, or a core that stands in) or "workload" (all of its processes).
TELEMETRY = {
    "t_ns": "int64",
    "scope": "string",
    "name": "string",
    "sm_clock_mhz": "float64?",
    "memory_clock_mhz": "float64?",
    "power_w": "float64?",
    "energy_mj": "float64?",
    "temperature_c": "float64?",
    "throttle_reasons": "int64?",
    "utilization": "float64?",
    "memory_utilization": "float64?",
    "memory_used_gib": "float64?",
    "sm_active": "float64?",
    "sm_occupancy": "float64?",
    "tensor_active": "float64?",
    "dram_active": "float64?",
    "nvlink_gib_s": "float64?",
    "cpu_cores": "float64?",
    "processes": "int32?",
}
# A row a tick of the controller that paces embed: what it saw of gen since the last one, what it asked of embed.
PACING = {
    "t_ns": "int64",
    "gaps": "int32",
    "late": "int32",
    "gap_max_ms": "float64?",
    "gap_p99_ms": "float64?",
    "duty": "float64",
    "embed_duty": "float64?",
}
FRAMES = {
    "gen": GEN,
    "requests": REQUESTS,
    "embed": EMBED,
    "slices": SLICES,
    "telemetry": TELEMETRY,
    "pacing": PACING,
}


@dataclass(frozen=True)
class Rows:
    """What holds in every frame of a kind beyond its columns' types; numbers are finite and not negative in all.

    `ordered`: the column in whose order the rows stand. `rises`: columns that do not fall along a row, nulls aside.
    `unique`: columns that together name a row. `words`: column -> what it may say. `least`, `most`: what no column
    of a name, or of a unit at its end, is below or above.
    """

    ordered: str
    rises: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)


ROWS = {
    "gen": Rows("arrival_ns", unique=("request_id", "sequence_number")),
    "requests": Rows("submitted_ns", ("submitted_ns", "first_token_ns", "done_ns"), ("request_id",)),
    "embed": Rows("done_ns", ("started_ns", "done_ns"), least={"sequences": 1, "tokens": 1}),
    "slices": Rows("start_ns", ("start_ns", "end_ns"), words={"workload": ("gen", "embed")}),
    "telemetry": Rows(
        "t_ns",
        unique=("t_ns", "scope", "name"),
        words={"scope": ("device", "workload")},
        # Far beyond any device: a slip in a unit is no sample. Fractions may pass 1 by a sampler's own grain.
        most={
            "_mhz": 1e5,
            "_w": 1e5,
            "_mj": 1e15,
            "_c": 1e3,
            "utilization": 1.5,
            "_active": 1.5,
            "_occupancy": 1.5,
            "_gib": 1e6,
            "_gib_s": 1e6,
            "_cores": 1e5,
            "processes": 1e6,
        },
    ),
    "pacing": Rows("t_ns", most={"duty": 1.5}),
}


def limits(frame: str, column: str) -> tuple[float, float]:
    """The least and the most that a number of a frame's column can be."""
    rules = ROWS[frame]
    least = max((value for end, value in rules.least.items() if column.endswith(end)), default=0.0)
    return least, min((value for end, value in rules.most.items() if column.endswith(end)), default=2.0**63)


# How far from its trial's window a row's times can be: warm-up and the longest wait for an engine, and much more.
REACH_S = 86_400.0

STEP_TITLES = {
    "step1": "gen alone",
    "step2": "both, shared",
    "step3": "both, alternating",
    "step4": "embed alone",
    "mps-alone": "gen alone, as an MPS client",
    "configA": "dedicated, one device each",
    "configB": "sharded over two devices and co-located",
    "configB-one": "sharded over two devices, embed on one of them",
    "tp2-mps-alone": "gen alone, sharded, as an MPS client",
    "tp2-alone": "gen alone, sharded over two devices",
    "mig": "both, an instance each",
    "sm-partition": "both, embed held to its SMs",
}
STEP_NOTEBOOKS = {
    "step1": "11-gen-alone",
    "step2": "12-both-shared",
    "step3": "13-both-alternating",
    "step4": "14-embed-alone",
    "mps-alone": "17-mps-alone",
    "configA": "21-dedicated",
    "configB": "22-sharded-co-located",
    "configB-one": "23-embed-on-one",
    "tp2-mps-alone": "24-sharded-mps-alone",
    "tp2-alone": "25-sharded-alone",
    "mig": "15-mig",
    "sm-partition": "16-sm-partition",
}
# step -> device -> the mechanism's name (design: mps, time-sliced, mig, sm-partition, none)
MECHANISMS = {
    "step1": {"cpu": "none", "cuda": "none"},
    "step2": {"cpu": "cpu-shared", "cuda": "mps"},
    "step3": {"cpu": "cpu-alternating", "cuda": "time-sliced"},
    "step4": {"cpu": "none", "cuda": "none"},
    # Cores have no MPS: there it is step 1 again, the null.
    "mps-alone": {"cpu": "none", "cuda": "mps"},
    "configA": {"cpu": "none", "cuda": "none"},
    "configB": {"cpu": "cpu-shared", "cuda": "mps"},
    "configB-one": {"cpu": "cpu-shared", "cuda": "mps"},
    "tp2-mps-alone": {"cpu": "none", "cuda": "mps"},
    "tp2-alone": {"cpu": "none", "cuda": "none"},
    # Cores have neither: skipped there, with the reason.
    "mig": {"cpu": "mig", "cuda": "mig"},
    "sm-partition": {"cpu": "sm-partition", "cuda": "sm-partition"},
}
# The steps in which both workloads share what dedicated devices would give to each.
CO_LOCATED = ("step2", "step3", "configB", "configB-one", "mig", "sm-partition")
# The steps that need two devices, and those of them that shard gen over both.
SHARDED = ("configB", "configB-one", "tp2-mps-alone", "tp2-alone")
TWO_DEVICES = ("configA", *SHARDED)
# The steps that run gen alone, or embed alone.
GEN_ALONE = ("step1", "mps-alone", "tp2-mps-alone", "tp2-alone")
EMBED_ALONE = ("step4",)
# The step against which a shared step's kept fractions are taken: (for gen, for embed)
BASELINES = {
    "step1": ("step1", None),
    "step2": ("step1", "step4"),
    "step3": ("step1", "step4"),
    "step4": (None, "step4"),
    "mps-alone": ("step1", None),
    "configA": ("configA", "configA"),
    "configB": ("configA", "configA"),
    "configB-one": ("configA", "configA"),
    # Of one device's rate: what sharding gains.
    "tp2-mps-alone": ("configA", None),
    "tp2-alone": ("configA", None),
    "mig": ("step1", "step4"),
    "sm-partition": ("step1", "step4"),
}
