"""Which devices each workload of a step runs on, and by which mechanism they share them.

On a CPU, cores stand in for devices: steps 1-4 take all of them as the one device, configurations A and B
take each as one. On NVIDIA GPUs steps 1-4 take the first device, A and B the first two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from colo_lib.errors import InputError
from colo_lib.params import Params, split_list
from colo_lib.schema import MECHANISMS


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

    def engine_key(self) -> tuple[object, ...]:
        """Steps with equal keys can use the same running engines: only who is given work differs."""
        environment = self.mechanism if self.mechanism in ("mps", "mig", "sm-partition") else "plain"
        return (self.gen_devices, self.embed_devices, self.tensor_parallel, environment)

    def to_json(self) -> dict[str, object]:
        """Plain values for a record."""
        return asdict(self)


def place(step: str, params: Params) -> Placement:
    """The placement of `step`; raises InputError when the machine's devices do not suffice."""
    devices = tuple(split_list(params.devices))
    if not devices:
        raise InputError("parameter 'devices' names no device; give cores or GPU indexes, by comma")
    if len(set(devices)) != len(devices):
        raise InputError(f"parameter 'devices' = {params.devices!r} names a device twice")
    two = step in ("configA", "configB")
    if two and len(devices) < 2:
        told = f"parameter 'devices' = {params.devices!r} names one"
        raise InputError(f"{step} needs two devices, {told}: leave the step out of 'steps'")
    one = devices if params.device == "cpu" else devices[:1]
    gen: tuple[str, ...]
    embed: tuple[tuple[str, ...], ...]
    if step == "configA":
        gen, embed, used = devices[:1], (devices[1:2],), devices[:2]
    elif step == "configB":
        gen, embed, used = devices[:2], (devices[:1], devices[1:2]), devices[:2]
    else:
        gen, embed, used = one, (one,), one
    return Placement(
        step=step,
        device=params.device,
        mechanism=MECHANISMS[step][params.device],
        runs_gen=step != "step4",
        runs_embed=step not in ("step1", "mps-alone"),
        gen_devices=gen,
        embed_devices=embed,
        tensor_parallel=2 if step == "configB" else 1,
        all_devices=used,
    )
