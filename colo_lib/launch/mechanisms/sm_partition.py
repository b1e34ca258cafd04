"""`sm-partition`: both under MPS, embed held to some of the SMs by one of three backends, the first that verifies.

Each backend is tried on the idle GPU before the engines start: a fixed matrix product must be slowed as far as the
partition's share of the SMs demands. What does not hold is never measured as if it did.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_lib.child_environment import child_environment
from colo_lib.errors import StepFailed, StepSkipped
from colo_lib.hardware.nvml import look_at_gpus
from colo_lib.launch.child import Child
from colo_lib.launch.mechanisms.mps import FOREGROUND, STATIC, Mps
from colo_lib.launch.mechanisms.mps_control import ControlFailed
from colo_lib.launch.specs import EngineSpec
from colo_lib.mechanism_records import MpsFacts, Partition

HOLD = Path(__file__).with_name("sm_hold.py")
VERIFY_TIMEOUT_S = 180.0
LIBRARY = "COLO_LIBSMCTRL"
# The product is bound by arithmetic, but few SMs clock higher and all of them share a cache: within these factors of
# the SMs' own ratio the partition holds.
SCALING = (0.7, 1.6)
PARTITION = re.compile(r"GPU-[^\s/]+/\S+")
MOST_CHUNKS = 24


class NotHere(Exception):
    """A backend that this machine does not offer or that does not hold; the message says why."""


@dataclass(frozen=True)
class Timed:
    """`sm_hold`'s answer: a matrix product on all SMs that its process sees, and on those that it is held to."""

    visible_sms: int
    free_ms: float
    held_ms: float
    held_sms: int | None = None


class Partitioned(Mps):
    """MPS with embed held to its SMs: a green context or libsmctrl's mask in the embedding process."""

    name = "sm-partition"
    backend = "green-context"

    def __init__(self, spec: EngineSpec, runtime: Path, logs: Path) -> None:
        assert spec.gen.mechanism.partition is not None
        self.held: dict[str, Any] = {"backend": self.backend, "sms": spec.gen.mechanism.partition.embed_sms}
        self.scaling = Partition()
        self.prepare()
        super().__init__(spec, runtime, logs)
        try:
            self.scaling = self.verified()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """What the backend needs before anything starts; raises NotHere."""

    def verified(self) -> Partition:
        """The measured scaling; raises NotHere when it is not what the partition demands."""
        timing = self.timed("embed", self.held)
        assert timing.held_sms is not None
        return check_scaling(timing.visible_sms, timing.held_sms, timing.free_ms, timing.held_ms)

    def timed(self, workload: str, spec: Mapping[str, Any]) -> Timed:
        """`sm_hold`'s answer under a workload's environment; raises NotHere with its error."""
        log = self.control.log / f"hold-{workload}.log"
        python = self.spec.embed.python
        env = child_environment(self.environment(workload))
        child = Child(f"{self.backend} check", [str(python), "-I", str(HOLD), json.dumps(dict(spec))], log, env=env)
        try:
            deadline = time.monotonic() + VERIFY_TIMEOUT_S
            while child.running() and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            child.stop()
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("{")]
        if not said:
            raise NotHere(f"the check gave no answer within {VERIFY_TIMEOUT_S:g} s: {child.tail()[-300:]}")
        reply: dict[str, Any] = json.loads(said[-1])
        if "error" in reply:
            raise NotHere(str(reply["error"]))
        return Timed(
            **{name: reply[name] for name in ("visible_sms", "held_sms", "free_ms", "held_ms") if name in reply}
        )

    def embed_job(self) -> dict[str, Any]:
        """The embedding process holds itself."""
        return {"hold": {"module": str(HOLD), **self.held}}

    def facts(self) -> MpsFacts:
        """As of MPS, and the partition with its measured scaling."""
        return super().facts().joined(partition=Partition(backend=self.backend).joined(self.scaling))


class Masked(Partitioned):
    """libsmctrl's mask, where the user has the library."""

    backend = "libsmctrl"

    def prepare(self) -> None:
        """Find the library."""
        library = os.environ.get(LIBRARY) or ctypes.util.find_library("smctrl")
        if not library:
            raise NotHere(f"no libsmctrl: build it and name it in {LIBRARY}")
        self.held["library"] = library


class StaticPartitions(Partitioned):
    """Partitions of the MPS daemon itself: one for each workload, whole chunks of SMs."""

    backend = "mps-static"
    flags = (FOREGROUND, STATIC)

    def ready(self) -> None:
        """Partitions first: a client without one is refused."""
        self.partitions: dict[str, str] = {}
        try:
            self.partitions["embed"] = self.add(-(-self.held["sms"] // self.chunk_sms()))
            self.partitions["gen"] = self.add_the_rest()
        except ControlFailed as error:
            raise NotHere(f"this driver's MPS has no static partitions: {error}") from None
        super().ready()

    def chunk_sms(self) -> int:
        """SMs of a chunk, the unit of partitions: 8 from Hopper on, 4 before (NVIDIA MPS documentation)."""
        gpu = next((row for row in look_at_gpus().gpus if row.uuid == self.uuids[0]), None)
        major, _ = (gpu and gpu.compute_capability) or (9, 0)
        return 8 if major >= 9 else 4

    def add(self, chunks: int) -> str:
        """A new partition's name; raises ControlFailed when there are not as many chunks."""
        said = self.control.ask(f"sm_partition add {self.uuids[0]} {chunks}")
        made = PARTITION.search(said)
        if made is None:
            raise ControlFailed(f"sm_partition add names no partition: {said[:200]!r}")
        return made[0]

    def add_the_rest(self) -> str:
        """The largest partition that is left: how many chunks a GPU has differs from card to card."""
        for chunks in range(MOST_CHUNKS, 1, -1):
            with contextlib.suppress(ControlFailed):
                return self.add(chunks)
        return self.add(1)

    def environment(self, workload: str, number: int = 0) -> dict[str, str]:
        """As of MPS, and the workload's partition; thread percentages mean nothing here."""
        variables = super().environment(workload, number) | {"CUDA_MPS_SM_PARTITION": self.partitions[workload]}
        variables.pop("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", None)
        return variables

    def verified(self) -> Partition:
        """embed's partition against gen's: there is no client outside of them."""
        gen, embed = (self.timed(name, {"backend": "none"}) for name in ("gen", "embed"))
        return check_scaling(gen.visible_sms, embed.visible_sms, gen.free_ms, embed.free_ms)

    def embed_job(self) -> dict[str, Any]:
        """The daemon holds the process."""
        return {}


BACKENDS: dict[str, type[Partitioned]] = {kind.backend: kind for kind in (Partitioned, StaticPartitions, Masked)}


def start(spec: EngineSpec, runtime: Path, logs: Path) -> Partitioned:
    """The wanted backend, or the first that verifies; raises StepSkipped with each one's reason when none does."""
    assert spec.gen.mechanism.partition is not None
    wanted = spec.gen.mechanism.partition.backend
    reasons = []
    for name, kind in BACKENDS.items():
        if wanted in ("auto", name):
            try:
                return kind(spec, runtime, logs)
            except (NotHere, StepFailed) as error:
                reasons.append(f"{name}: {error}")
    raise StepSkipped("sm-partition: " + "; ".join(reasons))


def check_scaling(all_sms: int, held_sms: int, free_ms: float, held_ms: float) -> Partition:
    """What was measured, as evidence; raises NotHere when the product was not slowed as the share of SMs demands."""
    demanded, measured = all_sms / held_sms, held_ms / free_ms
    if not SCALING[0] * demanded <= measured <= SCALING[1] * demanded:
        raise NotHere(
            f"the partition does not hold: on {held_sms} of {all_sms} SMs a matrix product took {measured:.2f} times "
            f"as long, between {SCALING[0] * demanded:.2f} and {SCALING[1] * demanded:.2f} times were demanded"
        )
    return Partition(all_sms=all_sms, held_sms=held_sms, slowdown_demanded=demanded, slowdown_measured=measured)
