"""Cells of a sweep on Ray: what one set of engines can measure on one worker together, run folders brought back here.

Every node needs this workbook's environment (`pip install 'colo-workbook[ray]'` from the checkout, and the engines').
A worker asks Ray for as many GPUs as its cells' parameters name devices, and runs on those that Ray gave it. On
cores that stand in for GPUs cells name cores, which Ray does not hand out: one such worker runs on a host at a time.
Cells whose worker or node is lost are sent again, together once more and then each alone, and a cell is told as lost
when that has happened `ATTEMPTS` times. Folders come back piece by piece through a file: no run is held in memory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from colo_lib.child_environment import package_environment
from colo_lib.errors import InputError, StepFailed
from colo_lib.launch.child import Child, wait_for
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.vllm_server import free_port
from colo_lib.params import Params, split_list
from colo_lib.paths import cell_folder
from colo_lib.record.joint_sweep import cells_of_one_start
from colo_lib.record.ray_worker import CellsOnWorker, Values, Work, carry_out_on_worker, unpack
from colo_lib.record.run import terminable
from colo_lib.record.sweep import Execute, Order, Say
from colo_lib.records import CellRecord
from colo_lib.sweep_plan import LOST, cell_params, changes_in_words, is_joint, read_plan

ATTEMPTS = 3
POLL_S = 1.0
START_S = 120.0
CONNECT_S = 5.0


def carry_out_on(address: str | None, work: Work | None = None) -> Execute:
    """An executor for `carry_out_sweep`: on the cluster at `address`, or on a local Ray of this machine's resources.

    `work`: what a worker does for its cells (tests pretend), by default their runs.
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
            yield from _carry_out(ray, orders, say, work or carry_out_on_worker)

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
    """A Ray of this machine's resources under guard: Ray's own agents would outlive a driver that is killed.

    Ray gives its first node 30 s to come up, which a busy machine does not always: it is tried `ATTEMPTS` times.
    """
    with contextlib.ExitStack() as stack:
        for attempt in range(1, ATTEMPTS + 1):
            started = contextlib.ExitStack()
            try:
                address = started.enter_context(_one_local_ray())
            except StepFailed:
                if attempt == ATTEMPTS:
                    raise
                continue
            stack.push(started)
            yield address
            break


@contextlib.contextmanager
def _one_local_ray() -> Iterator[str]:
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


@dataclass
class Sent:
    """Cells that a worker has: what it was asked last, and what came back of the folder that is on its way."""

    orders: list[Order]
    worker: Any
    left: list[CellRecord] = field(default_factory=list)  # told, their folders not here yet
    arriving: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def take(self, answer: list[Values] | bytes) -> CellRecord | None:
        """Keep an answer; gives the record of a cell whose folder has come whole."""
        if isinstance(answer, list):
            self.left = [CellRecord.model_validate(values) for values in answer]
        elif answer:
            self.arriving.write(answer)
        else:
            record = self.left.pop(0)
            order = next(order for order in self.orders if order.cell.name == record.cell)
            self.arriving.seek(0)
            unpack(self.arriving, cell_folder(order.folder, record.cell))
            self.arriving.seek(0)
            self.arriving.truncate()
            self.orders.remove(order)
            return record
        return None

    def ask(self) -> Any:
        """What is asked next, as Ray's reference of the answer."""
        return self.worker.chunk.remote(self.left[0].cell)


def _carry_out(ray: Any, orders: list[Order], say: Say, work: Work) -> Iterator[CellRecord]:
    cluster, losses = _Cluster(ray, work), Counter[str]()
    under_way: dict[Any, Sent] = {}
    for order in orders:
        say(f"{order.cell.name}: {changes_in_words(order.cell.changes)}")
    for group in cluster.groups(orders):
        under_way |= cluster.send(group)
    while under_way:
        ready, _ = ray.wait(list(under_way), num_returns=1, timeout=POLL_S)
        for reference in ready:
            sent = under_way.pop(reference)
            try:
                record = sent.take(ray.get(reference))
            except ray.exceptions.RayError as error:
                # What the worker raised, else what became of it.
                cause = str(getattr(error, "cause", None) or error).strip().splitlines()[0][:300]
                again, lost = _after_loss(sent, losses, cause, say)
                yield from lost
                for group in again:
                    under_way |= cluster.send(group)
                continue
            if record is not None:
                yield record
            if sent.orders:
                under_way[sent.ask()] = sent
            else:
                ray.kill(sent.worker)


def _after_loss(sent: Sent, losses: Counter[str], cause: str, say: Say) -> tuple[list[list[Order]], list[CellRecord]]:
    """What of a lost worker's cells is sent again, by worker, and what is given up.

    A cell that kills its worker would take its neighbours along: the last attempt of each is its own.
    """
    again, lost = [], []
    for order in sent.orders:
        name = order.cell.name
        losses[name] += 1
        if losses[name] < ATTEMPTS:
            say(f"{name}: its worker was lost ({cause}): sent again")
            again.append(replace(order, attempt=order.attempt + 1))
        else:
            reason = f"its worker was lost {ATTEMPTS} times: {cause}"
            lost.append(CellRecord(cell=name, status=LOST, reason=reason, attempts=order.attempt, host="", total_s=0.0))
    alone = any(losses[order.cell.name] == ATTEMPTS - 1 for order in again)
    groups = [[order] for order in again] if alone else [again]
    return [group for group in groups if group], lost


@dataclass
class _Cluster:
    """Where cells go, and what they ask for there."""

    ray: Any
    work: Work

    def groups(self, orders: list[Order]) -> list[list[Order]]:
        """The cells of each worker: those of one start of the engines, spread over the workers that can be."""
        if not orders:
            return []
        cells = [(order.cell.name, _params_of(order)) for order in orders]
        if not is_joint(orders[0].folder):
            return [[order] for order in orders]
        by_name = {order.cell.name: order for order in orders}
        names = cells_of_one_start(cells, self._workers([params for _, params in cells]))
        return [[by_name[name] for name in group] for group in names]

    def _workers(self, cells: Sequence[Params]) -> int:
        """How many workers there can be at once."""
        if cells[0].device == "cuda":
            devices = max(len(split_list(params.devices)) for params in cells)
            return int(self.ray.cluster_resources().get("GPU", 0) // devices)
        return sum(1 for node in self.ray.nodes() if node["Alive"])

    def send(self, orders: list[Order]) -> dict[Any, Sent]:
        """Start a worker for cells; gives Ray's reference of its records."""
        ray, first = self.ray, _params_of(orders[0])
        wanted = resources_of(first.device, split_list(first.devices), ray.cluster_resources())
        worker = ray.remote(CellsOnWorker).options(max_restarts=0, **wanted).remote(self.work)
        cells = [
            {"cell": order.cell.name, "values": _params_of(order).model_dump(), "attempt": order.attempt}
            for order in orders
        ]
        return {worker.carry_out.remote(cells, is_joint(orders[0].folder)): Sent(orders, worker)}


def _params_of(order: Order) -> Params:
    base, _ = read_plan(order.folder)
    return cell_params(base, order.cell, order.folder)


def resources_of(device: str, devices: Sequence[str], offered: Mapping[str, float]) -> dict[str, Any]:
    """What a worker asks of Ray, in Ray's own words; raises InputError when the cluster could never give it."""
    if device == "cuda":
        needed, there = len(devices), offered.get("GPU", 0)
        if there < needed:
            raise InputError(f"--ray: a cell needs {needed} GPUs (parameter 'devices'), the cluster has {there:.0f}")
        return {"num_gpus": needed, "num_cpus": 0}
    return {"num_cpus": min(1.0, offered.get("CPU", 1.0)), "scheduling_strategy": "SPREAD"}
