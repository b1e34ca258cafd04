"""What a Ray worker does for a sweep: carries out some of its cells, then hands their folders over chunk by chunk.

The cells are a sweep of their own there, `colo sweep --resume` under guard: the end of this worker, by whatever signal,
ends the child, its engines and all else that it started.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from colo_lib.child_environment import package_environment
from colo_lib.frames import SCHEMA_VERSION
from colo_lib.json_records import now_utc
from colo_lib.launch.child import Child
from colo_lib.launch.rpc import runtime_folder
from colo_lib.paths import SWEEP, cell_folder
from colo_lib.record.sweep import GRACE_S, last_words
from colo_lib.records import CellRecord, SweepAxis, SweepPlan, SweepRow
from colo_lib.sweep_plan import FAILED, SET_BY_SWEEP, recorded

HOST_LOCK = Path(f"/tmp/colo-cores-{os.getuid()}.lock")
CHUNK_BYTES = 4 << 20
POLL_S = 0.2
# Plain values there and back: driver and worker agree on JSON, whatever pickles.
Values = dict[str, Any]
Work = Callable[[Path, list[Values], bool], list[Values]]


class CellsOnWorker:
    """A Ray actor: `carry_out` once, then `chunk` for each cell until it gives no more. `work`: what cells are."""

    def __init__(self, work: Work) -> None:
        self.work, self.stack = work, ExitStack()
        self.streams: dict[str, Iterator[bytes]] = {}

    def carry_out(self, cells: list[Values], jointly: bool) -> list[Values]:
        """The records of cells, each given as cell, values (its parameters) and attempt."""
        self.folder = self.stack.enter_context(runtime_folder())
        records = self.work(self.folder, cells, jointly)
        self.left = [record["cell"] for record in records]
        return records

    def chunk(self, cell: str) -> bytes:
        """The next piece of a cell's packed folder, empty at its end. Folders are removed as they have gone."""
        stream = self.streams.setdefault(cell, packed(cell_folder(self.folder, cell)))
        piece: bytes = next(stream, b"")
        if not piece:
            shutil.rmtree(cell_folder(self.folder, cell), ignore_errors=True)
            self.left.remove(cell)
            if not self.left:
                self.stack.close()
        return piece


def carry_out_on_worker(folder: Path, cells: list[Values], jointly: bool) -> list[Values]:
    """The cells as a sweep of their own below `folder`, on the GPUs that Ray gave this worker; gives their records."""
    import ray

    with ExitStack() as stack:
        changed = {}
        if cells[0]["values"]["device"] == "cuda":
            changed["devices"] = ",".join(str(device) for device in ray.get_gpu_ids())
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # the launcher names devices itself
        else:
            stack.enter_context(_host_alone())
        _plan([{**cell, "values": cell["values"] | changed} for cell in cells], jointly).write(folder / SWEEP)
        log = folder / "sweep.log"
        words = [sys.executable, "-m", "colo_lib.cli", "sweep", "--resume", str(folder)]
        environment = dict(os.environ) | package_environment({"PYTHONUNBUFFERED": "1"})
        child = Child("cells", words, log, env=environment, grace_s=GRACE_S)
        try:
            while child.running():
                time.sleep(POLL_S)
        finally:
            child.stop()
        node = ray.get_runtime_context().get_node_id()[:8]
        return [_record(folder, cell, log, node).plain() for cell in cells]


def _plan(cells: list[Values], jointly: bool) -> SweepPlan:
    """The worker's own sweep: the first cell's parameters, and what the others have otherwise."""
    base = cells[0]["values"]
    differing = {name for cell in cells for name, value in cell["values"].items() if value != base[name]}
    names = sorted(differing - set(SET_BY_SWEEP)) or ["seed"]  # one cell differs from itself in nothing
    rows = [{name: cell["values"][name] for name in names} for cell in cells]
    return SweepPlan(
        schema_version=SCHEMA_VERSION,
        sweep_id="on-ray",
        created_utc=now_utc(),
        params=base,
        jointly=jointly,
        over=[SweepAxis(names=names, values=[list(row.values()) for row in rows])],
        cells=[SweepRow(cell=cell["cell"], changes=row) for cell, row in zip(cells, rows, strict=True)],
    )


def _record(folder: Path, cell: Values, log: Path, node: str) -> CellRecord:
    record = recorded(folder, cell["cell"])
    if record is None:
        record = CellRecord(cell=cell["cell"], status=FAILED, reason=last_words(log), attempts=cell["attempt"],
                            host=socket.gethostname(), total_s=0.0)  # fmt: skip
    return record.joined(host=f"{record.host} (Ray node {node})", attempts=cell["attempt"])


@contextlib.contextmanager
def _host_alone() -> Iterator[None]:
    """Wait until no other cell runs on this host's cores; the system lets go when we die."""
    # Never followed, never emptied: the name is known to every user of this host.
    lock = os.open(HOST_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def packed(folder: Path) -> Iterator[bytes]:
    """A folder as one gzip-compressed tar, piece by piece; a piece is made when it is asked for, with one ahead."""
    source, sink = os.pipe()

    def write() -> None:
        with (
            open(sink, "wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w|") as archive,
        ):
            archive.add(folder, arcname=".")

    with ThreadPoolExecutor(1) as pool, open(source, "rb") as pieces:
        writing = pool.submit(write)
        while piece := pieces.read(CHUNK_BYTES):
            yield piece
        writing.result()


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Lay a packed folder down at `folder`, in the place of what an earlier attempt left; only plain files below it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=archive, mode="r:gz") as packed_folder:
        packed_folder.extractall(folder, filter="data")
