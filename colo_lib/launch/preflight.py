"""What stands in the way of a fair run on a GPU, told before it begins: strangers, limits, modes, facts to know."""

from __future__ import annotations

from collections.abc import Sequence

from colo_lib.errors import InputError, StepFailed
from colo_lib.gpus import find_gpu
from colo_lib.hardware.nvml import GpuLook, GpuRow
from colo_lib.launch.embed_over_http import look_at_url
from colo_lib.launch.mechanisms.base import MPS_REFUSES, PLAIN_REFUSES, device_uuids
from colo_lib.launch.mechanisms.in_process import refuse_settings
from colo_lib.launch.mechanisms.time_slicing import DEFAULT_PIPE
from colo_lib.launch.specs import EngineSpec
from colo_lib.placement import Placement
from colo_lib.steps import MECHANISMS
from colo_lib.telemetry.other_processes import process_in_words

# NVML's clock event reasons that are limits, not idleness (nvml.h, nvmlClocksEventReasons).
LIMITS = {
    0x2: "clocks are set by an application (nvidia-smi -rac resets them)",
    0x4: "the power limit holds the clocks down",
    0x8: "hardware holds the clocks down (heat or power)",
    0x20: "heat holds the clocks down",
    0x40: "heat holds the clocks down, by hardware",
    0x80: "a power brake holds the clocks down",
    0x100: "a display's clocks hold",
}


def preflight(devices: Sequence[str], placements: Sequence[Placement], look: GpuLook) -> list[str]:
    """Sentences about the GPUs of a run, most serious first; empty on a CPU.

    Raises InputError, with the remedy, for a mode in which a wanted step could not be what it says.
    """
    if any(placement.device == "cpu" for placement in placements):
        return []
    refuse_modes(placements, look)
    notes: list[str] = []
    for device in devices:
        gpu = look.find(device)
        if gpu is not None:
            notes += [f"GPU {device}: {note}" for note in about(gpu)]
    if (DEFAULT_PIPE / "control").exists():
        notes.append(f"an MPS daemon of this machine may listen in {DEFAULT_PIPE}: it is left alone, ours is another")
    return notes


def refuse_modes(placements: Sequence[Placement], look: GpuLook) -> None:
    """Raises InputError naming the step, the GPU's mode and the command that leaves it."""
    for placement in placements:
        if MECHANISMS[placement.mechanism].may_be_absent:
            continue  # skipped with the reason where they do not apply
        try:
            device_uuids(placement, look, MPS_REFUSES if MECHANISMS[placement.mechanism].mps else PLAIN_REFUSES)
        except StepFailed as error:
            raise InputError(f"{placement.step}: {error}") from None


def preflight_embed(engines: Sequence[EngineSpec]) -> None:
    """Raises InputError, with the remedy, where an embedding server cannot do what a wanted step asks of it.

    One at a URL is asked for a first vector: that it is not there, or serves another model, is told before all else.
    """
    for spec in engines:
        if MECHANISMS[spec.placement.mechanism].in_gen:
            refuse_settings(spec)
        server, partition, placement = spec.embed.server, spec.gen.mechanism.partition, spec.placement
        if server is None or not placement.runs_embed:
            continue
        if partition is not None and partition.backend != "mps-static":
            raise InputError(
                f"{placement.step}: sm_partition_backend = {partition.backend!r} works inside the loop, and a "
                "server has none: set sm_partition_backend: mps-static, or embed_engine: transformers"
            )
        if server.url and placement.embed_devices != (placement.gen_devices,):
            raise InputError(
                f"{placement.step}: embed_engine = 'url' drives one server, and this step wants embed on devices "
                "of its own: leave the step out of steps, or set embed_engine: vllm"
            )
        if server.url and placement.mechanism == "cpu-alternating":
            raise InputError(
                f"{placement.step}: on cores the two take turns by being stopped, and the server at embed_url is not "
                "ours to stop: leave the step out of steps, or set embed_engine: vllm"
            )
    at_url = [spec.embed for spec in engines if spec.embed.server is not None and spec.embed.server.url]
    if at_url:
        look_at_url(at_url[0])


def about(gpu: GpuRow) -> list[str]:
    """What a person should know of one GPU before a run, most serious first; what NVML does not tell is left out."""
    void = "every trial in which it is there is invalid; end it, or choose another GPU"
    notes = [f"{note}: {void}" for note in users(gpu)]
    reasons = gpu.clock_event_reasons or 0
    notes += [note for bit, note in LIMITS.items() if reasons & bit]
    limit, default = gpu.power_limit_w, gpu.power_limit_default_w
    if limit and default and limit < default - 1:
        notes.append(f"its power limit is {limit:.0f} W of {default:.0f} (nvidia-smi -pl {default:.0f} restores it)")
    card = find_gpu(gpu.name or "")
    if card is not None and limit and abs(limit - card.power_limit_w) > 1:
        notes.append(f"its power limit is {limit:.0f} W, the {card.name}'s datasheet says {card.power_limit_w}")
    if gpu.persistence is False:
        notes.append("persistence mode is off: each first client waits for the driver (nvidia-smi -pm 1)")
    if gpu.ecc is False:
        notes.append("ECC is off: its memory is a little larger and faster than with it")
    return notes


def users(gpu: GpuRow) -> list[str]:
    """Who computes on a GPU now, MPS clients and servers among them."""
    lists = [*(gpu.compute_processes or ()), *(gpu.mps_processes or ())]
    held = {row.pid: row.gib for row in lists}
    return [
        f"used by {process_in_words(pid)} (pid {pid}{'' if gib is None else f', {gib:.1f} GiB'})"
        for pid, gib in held.items()
    ]
