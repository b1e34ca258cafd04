"""What is not known of an embedding server that was not started here, in words, and the trials that it makes void."""

from __future__ import annotations

from collections.abc import Sequence

from colo_lib.errors import StepFailed
from colo_lib.hardware.nvml import GpuLook, look_at_gpus
from colo_lib.launch.embed_over_http import EmbedServerHandle
from colo_lib.launch.engines import Handles
from colo_lib.launch.mechanisms.base import process_tree
from colo_lib.launch.pacing import shares
from colo_lib.placement import Placement


def unproved(placement: Placement, handles: Handles) -> str | None:
    """What of the embedder cannot be proved, in words; None where nothing has to be told."""
    if not placement.runs_embed or not any(
        isinstance(handle, EmbedServerHandle) and not handle.log for handle in handles.embeds
    ):
        return None
    if handles.unseen_embed():
        return (
            "the embedding server was not started here, and no process of it can be seen from here: on which device it "
            "computes, and how that is shared, is not proved"
        )
    return "the embedding server was not started here: its settings, and its cache if it has one, are not known"


def refuse_unproved(placement: Placement, handles: Handles) -> None:
    """Raises StepFailed for a shared GPU where the embedder's process is unseen, or is a server's that is elsewhere.

    What is proved of a mechanism is proved of processes.
    """
    if placement.device != "cuda" or not shares(placement):
        return
    remedy = "Run the server on this machine and GPU as this user, or set embed_engine: vllm"
    if handles.unseen_embed():
        said = f"{unproved(placement, handles)}, so its attachment is not either"
        raise StepFailed(f"void: {placement.mechanism}: {said}. {remedy}")
    if unproved(placement, handles) and not computes_on(placement.all_devices, handles.pids()["embed"], look_at_gpus()):
        raise StepFailed(
            f"void: {placement.mechanism}: NVML lists the server at embed_url (pids {handles.pids()['embed']}) on none "
            f"of the step's GPUs ({', '.join(placement.all_devices)}): that it shares one is not proved. {remedy}"
        )


def computes_on(devices: Sequence[str], roots: Sequence[int], look: GpuLook) -> bool:
    """Whether NVML lists a process of these trees on one of the GPUs."""
    gpus = [gpu for gpu in map(look.find, devices) if gpu is not None]
    listed = {process.pid for gpu in gpus for process in [*(gpu.compute_processes or ()), *(gpu.mps_processes or ())]}
    return bool(listed & {pid for root in roots for pid in process_tree(root)})
