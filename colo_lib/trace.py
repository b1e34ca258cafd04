"""What a capture is once it is read: columns of device activity as numpy arrays, and what they refer to.

Times are ns since the start of the earliest session; intervals are half-open [start, end). `data` makes these,
`analysis` and `plot` take them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Union = tuple[Ints, Ints]  # starts and ends of disjoint intervals, sorted
UNKNOWN = -1  # a name or a process that the export does not give
ColumnsT = TypeVar("ColumnsT", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Equally long arrays, a row an event."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self: ColumnsT, rows: Any) -> ColumnsT:
        """The rows of a mask, an index array or a slice."""
        return replace(self, **{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @classmethod
    def empty(cls: type[ColumnsT]) -> ColumnsT:
        """No rows."""
        return cls(**{item.name: np.empty(0, cls.dtypes()[item.name]) for item in fields(cls)})

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        """Column -> its numpy type; narrow, since ten million rows are ordinary."""
        raise NotImplementedError


@dataclass(frozen=True)
class Kernels(Columns):
    """Kernels and, where graphs were traced whole, graph launches; sorted by start.

    `blocks` = gridX*gridY*gridZ, 0 where unknown (graphs always); `threads` a block, 0 where
    a part of its shape is not known; `shared_bytes` a block, static
    and dynamic; `process`, `device`, `name` are places in the capture's lists, UNKNOWN where the export gives none;
    `node`: the kernel is a node of a graph.
    """

    start_ns: Ints
    end_ns: Ints
    graph: Bools
    node: Bools
    process: NDArray[np.int16]
    device: NDArray[np.int16]
    stream: NDArray[np.int32]
    correlation: NDArray[np.uint32]
    name: NDArray[np.int32]
    blocks: Ints
    threads: NDArray[np.int32]
    registers: NDArray[np.int16]
    shared_bytes: NDArray[np.int32]

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        wide, narrow = np.int64, np.int32
        return {
            "start_ns": wide, "end_ns": wide, "graph": np.bool_, "node": np.bool_, "process": np.int16,
            "device": np.int16, "stream": narrow, "correlation": np.uint32, "name": narrow,
            "blocks": wide, "threads": narrow, "registers": np.int16, "shared_bytes": narrow,
        }  # fmt: skip


@dataclass(frozen=True)
class Copies(Columns):
    """Memory copies and sets, their own class: `kind` is CUPTI's copy kind, or SET."""

    start_ns: Ints
    end_ns: Ints
    process: NDArray[np.int16]
    device: NDArray[np.int16]
    stream: NDArray[np.int32]
    kind: NDArray[np.int16]
    size_bytes: Ints

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        return {
            "start_ns": np.int64, "end_ns": np.int64, "process": np.int16, "device": np.int16, "stream": np.int32,
            "kind": np.int16, "size_bytes": np.int64,
        }  # fmt: skip


SET = -2
COPY_KINDS = {
    SET: "memset", 1: "host to device", 2: "device to host", 8: "device to device", 9: "host to host",
    10: "peer to peer", 11: "unified, host to device", 12: "unified, device to host", 13: "unified, device to device",
}  # fmt: skip


@dataclass(frozen=True)
class Switches(Columns):
    """GPU context switches, of every context of the device: `opens` when one becomes resident, else it leaves.

    `host_pid` is the pid that the kernel driver sees, which in a container is not the one that kernels carry; `device`
    and `host_pid` are UNKNOWN where the export gives none. `readable`: the row says when and what happened; one that
    does not is kept, since its context's spans cannot be trusted then.
    """

    t_ns: Ints
    opens: Bools
    device: NDArray[np.int16]
    context: Ints
    host_pid: NDArray[np.int32]
    session: NDArray[np.int16]
    readable: Bools

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        return {
            "t_ns": np.int64, "opens": np.bool_, "device": np.int16, "context": np.int64, "host_pid": np.int32,
            "session": np.int16, "readable": np.bool_,
        }  # fmt: skip


@dataclass(frozen=True)
class Overhead(Columns):
    """The profiler's own time, from PROFILER_OVERHEAD."""

    start_ns: Ints
    end_ns: Ints
    process: NDArray[np.int16]
    name: NDArray[np.int32]

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        return {"start_ns": np.int64, "end_ns": np.int64, "process": np.int16, "name": np.int32}


@dataclass(frozen=True)
class Launches(Columns):
    """CUDA API calls that hand work to the device; joined to it on (process, correlation)."""

    start_ns: Ints
    end_ns: Ints
    process: NDArray[np.int16]
    correlation: NDArray[np.uint32]

    @classmethod
    def dtypes(cls) -> Mapping[str, Any]:
        return {"start_ns": np.int64, "end_ns": np.int64, "process": np.int16, "correlation": np.uint32}


@dataclass(frozen=True)
class Device:
    """A GPU. `limits` holds the per-SM limits that the export names: threads, blocks, registers, shared_bytes."""

    key: str  # what tells it from another: UUID, else bus location, else its number
    number: int
    name: str
    sm_count: int | None
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Process:
    """A process that launched work. `label` is its pid, with '@2' where the second session has the same pid.

    `thread`: of one thread's work alone, its number, which the label then holds after a colon.
    """

    pid: int
    label: str
    name: str
    session: int = 0
    thread: int | None = None


@dataclass(frozen=True)
class Alignment:
    """How several sessions came onto one clock. `offsets_ns`: each session's start after the earliest one's."""

    offsets_ns: tuple[int, ...] = (0,)
    uncertainty_ns: int = 0
    method: str = "one session"


@dataclass(frozen=True)
class ExportFacts:
    """What an export says of itself. `file`: its name as it may be shown; `path`: where it was read.

    `session_start_utc_ns`: None where it is not recorded; `normalised`: its times are UTC and not since that start;
    `time_shift_ns`: what they were shifted by. `gpus`: those that it describes; `tells_gpus`: it says which of them a
    process calls its device 0. `doubts`: what makes its numbers doubtful, in words. `clock_start_ns`: where the
    capture's clock starts, UTC.
    """

    file: str
    path: str
    product_version: str | None
    schema_version: str | None
    session_start_utc_ns: int | None
    normalised: bool
    time_shift_ns: int
    gpus: tuple[Device, ...] = ()
    tells_gpus: bool = True
    doubts: tuple[str, ...] = ()
    clock_start_ns: int = 0

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ExportFacts:
        """What `asdict` made of one, by way of JSON; raises KeyError or TypeError for anything else."""
        gpus = tuple(Device(**gpu) for gpu in plain["gpus"])
        return cls(**{**plain, "gpus": gpus, "doubts": tuple(plain["doubts"])})


@dataclass(frozen=True)
class Capture:
    """One or more exports on one clock. `omissions`: what was left out of the numbers, in words."""

    kernels: Kernels
    copies: Copies
    switches: Switches
    overhead: Overhead
    names: list[str]
    devices: list[Device]
    processes: list[Process]
    exports: list[ExportFacts] = field(default_factory=list)
    alignment: Alignment = field(default_factory=Alignment)
    omissions: list[str] = field(default_factory=list)
    simulated: bool = False


FRAMES: dict[str, type[Columns]] = {"kernels": Kernels, "copies": Copies, "switches": Switches, "overhead": Overhead}
REST = "rest.json"


def save_capture(folder: Path, capture: Capture) -> None:
    """Write a capture of one export into `folder`, a file a column; its alignment is that of one session."""
    for frame, kind in FRAMES.items():
        for column in kind.dtypes():
            np.save(folder / f"{frame}.{column}.npy", getattr(getattr(capture, frame), column))
    rest: dict[str, Any] = {
        "names": capture.names,
        "devices": [asdict(device) for device in capture.devices],
        "processes": [asdict(process) for process in capture.processes],
        "exports": [asdict(export) for export in capture.exports],
        "omissions": capture.omissions,
        "simulated": capture.simulated,
    }
    (folder / REST).write_text(json.dumps(rest), encoding="utf-8")


def load_capture(folder: Path) -> Capture:
    """What `save_capture` wrote; raises OSError, ValueError, KeyError or TypeError for anything else."""
    rest = json.loads((folder / REST).read_text(encoding="utf-8"))
    frames = {}
    for frame, kind in FRAMES.items():
        columns = {name: np.load(folder / f"{frame}.{name}.npy", mmap_mode="r") for name in kind.dtypes()}
        if any(columns[name].dtype != np.dtype(wanted) for name, wanted in kind.dtypes().items()):
            raise ValueError(f"{folder}: another layout")
        frames[frame] = kind(**columns)
    return Capture(
        kernels=frames["kernels"],  # type: ignore[arg-type]
        copies=frames["copies"],  # type: ignore[arg-type]
        switches=frames["switches"],  # type: ignore[arg-type]
        overhead=frames["overhead"],  # type: ignore[arg-type]
        names=[str(name) for name in rest["names"]],
        devices=[Device(**device) for device in rest["devices"]],
        processes=[Process(**process) for process in rest["processes"]],
        exports=[ExportFacts.from_plain(export) for export in rest["exports"]],
        omissions=rest["omissions"],
        simulated=bool(rest["simulated"]),
    )
