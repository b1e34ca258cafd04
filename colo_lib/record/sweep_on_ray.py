"""Cells of a sweep on Ray: one cell per GPU (or pair of GPUs) by Ray's own accounting, run folders brought back here.

Every node needs this workbook's environment (`pip install 'colo-workbook[ray]'` from the checkout, and the engines').
On a GPU a cell asks Ray for as many GPUs as its parameters name devices, and runs on those that Ray gave it. On
cores that stand in for GPUs a cell names cores, which Ray does not hand out: one such cell runs on a host at a time.
A cell whose worker or node is lost is sent again, and told as lost when that has happened `ATTEMPTS` times.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colo_lib.child_environment import package_environment
from colo_lib.errors import InputError
from colo_lib.launch.child import Child, wait_for
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.vllm_server import free_port
from colo_lib.params import check, split_list
from colo_lib.paths import cell_folder, cell_runs
from colo_lib.record.run import terminable
from colo_lib.record.sweep import Execute, Order, Say, carry_out_cell
from colo_lib.records import CellRecord
from colo_lib.sweep_plan import LOST, cell_params, changes_in_words, read_plan

ATTEMPTS = 3
HOST_LOCK = Path(f"/tmp/colo-cores-{os.getuid()}.lock")
POLL_S = 1.0
START_S = 120.0
CONNECT_S = 5.0
# Plain values there and back: driver and worker agree on JSON, whatever pickles.
Work = Callable[[dict[str, Any], str, int], tuple[bytes, dict[str, Any]]]


def carry_out_on(address: str | None, work: Work | None = None) -> Execute:
    """An executor for `carry_out_sweep`: on the cluster at `address`, or on a local Ray of this machine's resources.

    `work`: what a worker does for a cell (tests pretend), by default its run.
    Raises InputError, before anything starts, when Ray is not installed or the cluster cannot be reached.
    """
    if address is not None:
        refuse_unreachable(address)
    else:
        # Whoever can reach Ray's port could run anything as us: the token is this sweep's alone. Ray reads it once.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = _ray()

    def execute(orders: list[Order], say: Say) -> Iterator[CellRecord]:
        with _connected(ray, address, say):
            yield from _carry_out(ray, orders, say, work or cell_on_worker)

    return execute


def refuse_unreachable(address: str) -> None:
    """Raises InputError at once for HOST:PORT (or ray://HOST:PORT) where nobody listens: Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        if address != "auto":
            raise InputError(f"--ray {address}: give HOST:PORT, ray://HOST:PORT, or auto")
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray {address}: nobody answers there ({error}); `ray status` tells a cluster's address"
        ) from None


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # With this set, Ray would take GPUs away from workers that ask for none: a cell names its own devices.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--ray: Ray is not installed here: pip install -e '.[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, say: Say) -> Iterator[None]:
    """Connected to a Ray as long as the block lasts; a local one of our own ends with it, and with us."""
    with contextlib.ExitStack() as stack:
        where = address or stack.enter_context(_local_ray())
        try:
            ray.init(address=where, log_to_driver=False, logging_level="CRITICAL")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray {where}: {' '.join(str(error).split())}") from None
        stack.callback(ray.shutdown)
        stack.enter_context(terminable())  # Ray puts its own handlers in the place of ours
        nodes = [node for node in ray.nodes() if node["Alive"]]
        resources = ray.cluster_resources()
        say(f"Ray: {len(nodes)} nodes, {resources.get('GPU', 0):.0f} GPUs, {resources.get('CPU', 0):.0f} CPUs")
        yield


@contextlib.contextmanager
def _local_ray() -> Iterator[str]:
    """A Ray of this machine's resources under guard: Ray's own agents would outlive a driver that is killed."""
    with runtime_folder() as runtime:
        port = free_port()
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
        words += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={runtime / 'ray'}"]
        words += ["--disable-usage-stats"]
        child = Child("ray", words, runtime / "ray.log", env=dict(os.environ) | package_environment({}), grace_s=10.0)
        try:
            wait_for(lambda: "Ray runtime started" in child.log.read_text(errors="replace"), child, START_S, "Ray")
            yield f"127.0.0.1:{port}"
        finally:
            child.stop()


def _carry_out(ray: Any, orders: list[Order], say: Say, work: Work) -> Iterator[CellRecord]:
    task = ray.remote(work)
    under_way: dict[Any, Order] = {}

    def send(order: Order) -> None:
        base, _ = read_plan(order.folder)
        params = cell_params(base, order.cell, order.folder)
        wanted = task.options(
            max_retries=0, **resources_of(params.device, split_list(params.devices), ray.cluster_resources())
        )
        under_way[wanted.remote(params.model_dump(), order.cell.name, order.attempt)] = order

    for order in orders:
        say(f"{order.cell.name}: {changes_in_words(order.cell.changes)}")
        send(order)
    sent_again: dict[str, int] = {}
    while under_way:
        ready, _ = ray.wait(list(under_way), num_returns=1, timeout=POLL_S)
        for reference in ready:
            order = under_way.pop(reference)
            name = order.cell.name
            try:
                packed, record = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = str(error).strip().splitlines()[0][:300]
                sent_again[name] = sent_again.get(name, 0) + 1
                if sent_again[name] < ATTEMPTS:
                    say(f"{name}: its worker was lost ({cause}): sent again")
                    send(replace(order, attempt=order.attempt + 1))
                    continue
                reason = f"its worker was lost {ATTEMPTS} times: {cause}"
                yield CellRecord(cell=name, status=LOST, reason=reason, attempts=order.attempt, host="", total_s=0.0)
                continue
            unpack(packed, cell_folder(order.folder, name))
            yield CellRecord.model_validate(record)


def resources_of(device: str, devices: Sequence[str], offered: Mapping[str, float]) -> dict[str, Any]:
    """What a cell asks of Ray, in Ray's own words; raises InputError when the cluster could never give it."""
    if device == "cuda":
        needed, there = len(devices), offered.get("GPU", 0)
        if there < needed:
            raise InputError(f"--ray: a cell needs {needed} GPUs (parameter 'devices'), the cluster has {there:.0f}")
        return {"num_gpus": needed, "num_cpus": 0}
    return {"num_cpus": min(1.0, offered.get("CPU", 1.0)), "scheduling_strategy": "SPREAD"}


def cell_on_worker(values: dict[str, Any], cell: str, attempt: int) -> tuple[bytes, dict[str, Any]]:
    """On a worker: the cell's run in a folder of its own; gives (packed folder, its record)."""
    ray = _ray()
    # The end of this worker ends the run: `carry_out_cell`'s child is tied to this process by a pipe.
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(runtime_folder())
        changed = {"runs_dir": str(cell_runs(runtime / cell))}
        if values["device"] == "cuda":
            changed["devices"] = ",".join(str(device) for device in ray.get_gpu_ids())
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # the launcher names devices itself
        else:
            stack.enter_context(_host_alone())
        params = check(values | changed, f"{cell} on a Ray worker")
        record = carry_out_cell(params, runtime / cell, cell, attempt, lambda _: None)
        host = f"{record.host} (Ray node {ray.get_runtime_context().get_node_id()[:8]})"
        return pack(runtime / cell), record.joined(host=host).plain()


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


def pack(folder: Path) -> bytes:
    """A folder as one gzip-compressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Lay a packed folder down at `folder`, in the place of what an earlier attempt left; only plain files below it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")
