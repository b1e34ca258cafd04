"""Which devices each workload of a step runs on, and by which mechanism they share them.

On a CPU, cores stand in for devices: steps 1-4 take all of them as the one device, configurations A and B
take each as one. On NVIDIA GPUs steps 1-4 take the first device, A and B the first two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from colo_lib.errors import InputError
from colo_lib.params import Params, split_list
from colo_lib.records import Devices

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


@dataclass(frozen=True)
class Placement:
    """Devices by name: `gen` is one server over `gen_devices`; `embed` is one process per entry of `embed_devices`."""

    step: str
    device: str
    mechanism: str
    runs_gen: bool
    runs_embed: bool
    gen_devices: tuple[str, ...]
    embed_devices: tuple[tuple[str, ...], ...]
    tensor_parallel: int
    all_devices: tuple[str, ...]
    embeds_at_work: tuple[int, ...]
    """Which of the embedding processes get work; the others are up and idle."""

    def embed_devices_at_work(self) -> tuple[tuple[str, ...], ...]:
        """Devices of each embedding process that gets work."""
        return tuple(self.embed_devices[number] for number in self.embeds_at_work)

    def devices_record(self) -> dict[str, Devices | None]:
        """A record's `devices`: those of an idle embed where none of its processes works."""
        at_work = self.embed_devices_at_work() or self.embed_devices
        return {"gen": list(self.gen_devices), "embed": [list(devices) for devices in at_work]}

    def engine_key(self) -> tuple[object, ...]:
        """Steps with equal keys can use the same running engines: only who is given work differs."""
        environment = self.mechanism if self.mechanism in ("mps", "mig", "sm-partition") else "plain"
        return (self.gen_devices, self.embed_devices, self.tensor_parallel, environment)

    def to_json(self) -> dict[str, object]:
        """Plain values for a record."""
        return asdict(self)


def placement_of(step: str, params: Params) -> Placement:
    """The placement of `step`; raises InputError when the machine's devices do not suffice."""
    devices = tuple(split_list(params.devices))
    if not devices:
        raise InputError("parameter 'devices' names no device; give cores or GPU indexes, by comma")
    if len(set(devices)) != len(devices):
        raise InputError(f"parameter 'devices' = {params.devices!r} names a device twice")
    if step in TWO_DEVICES and len(devices) < 2:
        told = f"parameter 'devices' = {params.devices!r} names one"
        raise InputError(f"{step} needs two devices, {told}: leave the step out of 'steps'")
    one = devices if params.device == "cpu" else devices[:1]
    gen: tuple[str, ...]
    embed: tuple[tuple[str, ...], ...]
    if step == "configA":
        gen, embed, used = devices[:1], (devices[1:2],), devices[:2]
    elif step in SHARDED:
        gen, embed, used = devices[:2], (devices[:1], devices[1:2]), devices[:2]
    else:
        gen, embed, used = one, (one,), one
    runs_embed = step not in GEN_ALONE
    at_work = tuple(range(len(embed))) if runs_embed else ()
    return Placement(
        step=step,
        device=params.device,
        mechanism=MECHANISMS[step][params.device],
        runs_gen=step not in EMBED_ALONE,
        runs_embed=runs_embed,
        gen_devices=gen,
        embed_devices=embed,
        tensor_parallel=2 if step in SHARDED else 1,
        all_devices=used,
        # The second device: what one disturbed rank does to the other shows on the first.
        embeds_at_work=at_work[1:] if step == "configB-one" else at_work,
    )
