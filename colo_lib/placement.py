"""Which devices each workload of a step runs on, and by which mechanism they share them.

On a CPU, cores stand in for devices: a step of one device takes all of them as the one, a step of two takes each as
one. On NVIDIA GPUs a step of one device takes the first, a step of two the first two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from colo_lib.errors import InputError
from colo_lib.params import Params, split_list
from colo_lib.records import Devices
from colo_lib.steps import MECHANISMS, STEPS


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
        environment = self.mechanism if MECHANISMS[self.mechanism].own_engines else "plain"
        return (self.gen_devices, self.embed_devices, self.tensor_parallel, environment)

    def to_json(self) -> dict[str, object]:
        """Plain values for a record."""
        return asdict(self)


def placement_of(step: str, params: Params) -> Placement:
    """The placement of `step`; raises InputError when the machine's devices do not suffice."""
    row, devices = STEPS[step], tuple(split_list(params.devices))
    if not devices:
        raise InputError("parameter 'devices' names no device; give cores or GPU indexes, by comma")
    if len(set(devices)) != len(devices):
        raise InputError(f"parameter 'devices' = {params.devices!r} names a device twice")
    if row.needs_two and len(devices) < 2:
        named = f"parameter 'devices' = {params.devices!r} names one"
        raise InputError(f"{step} needs two devices, {named}: leave the step out of 'steps'")
    gen: tuple[str, ...]
    embed: tuple[tuple[str, ...], ...]
    if row.layout == "one each":
        gen, embed, used = devices[:1], (devices[1:2],), devices[:2]
    elif row.layout == "sharded":
        gen, embed, used = devices[:2], (devices[:1], devices[1:2]), devices[:2]
    else:
        used = devices if params.device == "cpu" else devices[:1]
        gen, embed = used, (used,)
    at_work = tuple(range(len(embed))) if row.runs_embed else ()
    return Placement(
        step=step,
        device=params.device,
        mechanism=row.mechanism_on(params.device),
        runs_gen=row.runs_gen,
        runs_embed=row.runs_embed,
        gen_devices=gen,
        embed_devices=embed,
        tensor_parallel=2 if row.layout == "sharded" else 1,
        all_devices=used,
        embeds_at_work=at_work[1:] if row.embedders == "second" else at_work,
    )
