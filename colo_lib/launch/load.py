"""What is under load in a trial: the client that asks gen, the embedding processes, who takes turns, who paces.

`connect` makes all of it ready, `begin_load` gives it work, `wait_steady` and `watch_window` look how far it is,
`settle` and `collect_frames` end it and keep what it did.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from colo_lib.child_environment import package_environment
from colo_lib.errors import StepFailed
from colo_lib.frames import PACING, write_frame
from colo_lib.launch.child import Child, tail, wait_for
from colo_lib.launch.client_cpu import Reading, busiest
from colo_lib.launch.embed_client import EmbedClientJob
from colo_lib.launch.embed_over_http import KEY_NAME, EmbedServerHandle
from colo_lib.launch.embed_server import read_rows
from colo_lib.launch.engines import Handles
from colo_lib.launch.gen_load import ClientUse
from colo_lib.launch.gen_team import processes_for
from colo_lib.launch.pacing import PacerJob, shares, start_order
from colo_lib.launch.rpc import ClientJob, Handle, answers, call
from colo_lib.launch.specs import DemandSpec, LoadSpec, TrialSpec, WindowSpec
from colo_lib.launch.vllm_server import SERVED_NAME, ServerCounters, server_counters
from colo_lib.paths import PARTIAL

POLL_S = 0.05
WATCH_S = 0.5
CLIENT_TIMEOUT_S = 20.0
ANSWER_S = 2.0  # how long to wait for one answer before looking whether everybody is still there

Answer = TypeVar("Answer")
ALTERNATOR, PACER = "alternator", "pacer"
BEGIN_TIMEOUT_S = 20.0
ALTERNATE = Path(__file__).with_name("alternate.py")
ARRIVALS = Path(__file__).with_name("arrivals.py")


@dataclass(frozen=True)
class Delivered:
    """What a workload has delivered so far, tokens or batches, and when the last of it came."""

    events: int = 0
    last_ns: int | None = None
    silent: int = 0
    """Slots of gen's closed loop that have had no token yet."""
    oldest_due_ns: int | None = None
    """Of the requests that were due and are not done (of gen: have no token yet)."""


@dataclass
class Loads:
    """What is under load in this trial, and how to ask it how far it is."""

    client: Handle | None
    embeds: tuple[Handle, ...]
    mechanism: list[Child] = field(default_factory=list)  # processes without which the step is not what it says
    client_cpu: list[list[Reading]] = field(default_factory=list)
    """One reading a process of gen's load client, each time that it was asked."""
    lag_ms: float = 0.0
    """How late it sent what was due, at the most."""
    undone_due_ns: list[int] = field(default_factory=list)
    """When the embedder's requests were due that were never done."""

    def client_use(self, start_ns: int, end_ns: int) -> ClientUse:
        """How busy gen's load client was in [start, end)."""
        most = max((len(readings) for readings in self.client_cpu), default=1)
        # Of several the last reading is that of the process that asks the others.
        return ClientUse(most - (most > 1), busiest(self.client_cpu, start_ns, end_ns), self.lag_ms)

    def each(self) -> list[tuple[str, Handle]]:
        """(workload, handle) of every source of load."""
        return ([("gen", self.client)] if self.client else []) + [("embed", handle) for handle in self.embeds]

    def check_alive(self, handles: Handles) -> None:
        """Raises StepFailed, with the log's end, when an engine or a part of the mechanism has ended."""
        handles.check_alive()
        for child in self.mechanism:
            if not child.running():
                raise StepFailed(f"the {child.name} ended unasked; its last lines:\n{child.tail()}")

    def patiently(self, ask: Callable[[], Answer], handles: Handles, stall_timeout_s: float) -> Answer:
        """The answer to `ask`, asked again while that raises TimeoutError, for up to `stall_timeout_s`.

        Who is asked may have no turn: as long as everybody lives, that is no failure. Who holds it back and died
        is one, and is what has to be told. Raises StepFailed for that, OSError for an answer that never came.
        """
        deadline_s = time.monotonic() + stall_timeout_s
        while True:
            try:
                return ask()
            except TimeoutError:
                self.check_alive(handles)
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"silent for stall_timeout_s = {stall_timeout_s:g} s") from None

    def progress(self, handles: Handles, stall_timeout_s: float) -> dict[str, Delivered]:
        """How far each workload is.

        Raises StepFailed for one that reports an error, or does not answer.
        """
        delivered: dict[str, Delivered] = {}
        for name, handle in self.each():
            try:
                ask = partial(call, handle, "status", timeout_s=ANSWER_S)
                status = self.patiently(ask, handles, stall_timeout_s)
            except OSError as error:
                end = tail(Path(handle.log))
                raise StepFailed(f"{name} does not answer ({error}); its last lines:\n{end}") from None
            if status.get("error"):
                raise StepFailed(f"{name}: {status['error']}")
            events = status["tokens"] if name == "gen" else status["batches"]
            last_ns = status["last_ns"] if name == "gen" else status["last_done_ns"]
            before = delivered.get(name, Delivered())
            stamps = [stamp for stamp in (before.last_ns, last_ns) if stamp is not None]
            if name == "gen":
                self.client_cpu.append([(int(t_ns), int(cpu_ns)) for t_ns, cpu_ns in status.get("cpu", ())])
            self.lag_ms = max(self.lag_ms, status.get("lag_ms", 0.0))
            silent = before.silent + status.get("silent", 0)
            due = [at for at in (before.oldest_due_ns, status.get("oldest_due_ns")) if at is not None]
            delivered[name] = Delivered(
                before.events + events, max(stamps, default=None), silent, min(due, default=None)
            )
        return delivered


def start_client(load: LoadSpec, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Handle:
    """The load client of gen, ready for orders."""
    assert handles.gen is not None
    socket_path, log = runtime / "client.sock", folder / "logs" / "client.log"
    processes = processes_for(load.processes, load.concurrency)
    job = ClientJob(
        socket=str(socket_path),
        port=handles.gen.port,
        model=SERVED_NAME,
        concurrency=load.concurrency,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        vocab_size=load.vocab_size,
        seed=load.seed,
        stagger=load.stagger,
        processes=processes,
    )
    client = "gen_team" if processes > 1 else "gen_client"
    command = [sys.executable, "-m", f"colo_lib.launch.{client}", json.dumps(asdict(job))]
    child = Child("client", command, log, env=package_environment({"COLO_GEN_KEY": handles.gen.key}), grace_s=1.0)
    stack.callback(child.stop)
    handle = Handle(socket=str(socket_path), pid=child.pid, log=str(log))
    wait_for(lambda: answers(handle), child, CLIENT_TIMEOUT_S, "the load client")
    return handle


def start_embed_client(
    load: LoadSpec, server: EmbedServerHandle, number: int, runtime: Path, folder: Path, stack: ExitStack
) -> Handle:
    """The load client of the `number`-th embedding server, ready for the orders that an embedding process takes."""
    assert load.embed is not None
    socket_path, log = runtime / f"embed-client{number}.sock", folder / "logs" / f"embed-client-{number}.log"
    job = EmbedClientJob(
        socket=str(socket_path),
        url=server.url,
        model=server.model,
        encoding=server.encoding,
        width=server.width,
        seed=load.seed,
        # Told by step and trial, so that no cache of a server can know the inputs from an earlier one.
        load=zlib.crc32(f"{folder.parent.name}/{folder.name}/{number}".encode()),
        **asdict(load.embed),
    )
    command = [sys.executable, "-m", "colo_lib.launch.embed_client", json.dumps(asdict(job))]
    child = Child("embed client", command, log, env=package_environment({KEY_NAME: server.key}), grace_s=1.0)
    stack.callback(child.stop)
    handle = Handle(socket=str(socket_path), pid=child.pid, log=str(log))
    wait_for(lambda: answers(handle), child, CLIENT_TIMEOUT_S, "the embedder's load client")
    return handle


def wait_steady(window: WindowSpec, loads: Loads, handles: Handles) -> None:
    """Until every workload has delivered, gen in every slot, and the warm-up is over.

    Raises StepFailed for one that stays silent.
    """
    began_ns = time.monotonic_ns()
    while any(
        delivered.silent or not delivered.events
        for delivered in check_progress(window, loads, handles, began_ns).values()
    ):
        time.sleep(POLL_S)
    watch_window(window, loads, handles, time.monotonic_ns() + int(window.warmup_s * 1e9))


def watch_window(window: WindowSpec, loads: Loads, handles: Handles, until_ns: int) -> None:
    """Wait until a monotonic time; raises StepFailed as soon as an engine ends or a workload stalls."""
    began_ns = time.monotonic_ns()
    while (left_ns := until_ns - time.monotonic_ns()) > 0:
        time.sleep(min(WATCH_S, left_ns / 1e9))
        check_progress(window, loads, handles, began_ns)


def check_progress(window: WindowSpec, loads: Loads, handles: Handles, began_ns: int) -> dict[str, Delivered]:
    """How far each workload is.

    Raises StepFailed when an engine or a part of the mechanism has ended, or a workload has delivered
    nothing for `stall_timeout_s`, counted from `began_ns` at the earliest.
    """
    loads.check_alive(handles)
    progress = loads.progress(handles, window.stall_timeout_s)
    for name, delivered in progress.items():
        silent_s = (time.monotonic_ns() - max(delivered.last_ns or 0, began_ns)) / 1e9
        if silent_s > window.stall_timeout_s:
            raise StepFailed(f"{name} delivered nothing for stall_timeout_s = {window.stall_timeout_s:g} s")
    return progress


def finish_due(spec: TrialSpec, loads: Loads, handles: Handles, end_ns: int) -> None:
    """Keep up the load until what was due before `end_ns` is done, or nobody would wait for it any longer.

    Without a demand there is nothing to wait for. Raises StepFailed as `check_progress` does.
    """
    load, placement = spec.load, spec.placement
    demands = [load.gen_demand if placement.runs_gen else None, load.embed_demand if placement.runs_embed else None]
    patience_s = max((demand.patience_s for demand in demands if demand is not None), default=0.0)
    while time.monotonic_ns() < end_ns + int(patience_s * 1e9):
        progress = check_progress(spec.window, loads, handles, end_ns)
        if all(row.oldest_due_ns is None or row.oldest_due_ns >= end_ns for row in progress.values()):
            return
        time.sleep(POLL_S)


def due_order(demand: DemandSpec | None, load: LoadSpec, name: str, sharing: int, folder: Path) -> dict[str, Any]:
    """What a load is told of when its requests are due: nothing of a closed loop.

    `sharing`: how many such loads share the demand. The times are those of every step's trial of this number, so that
    steps differ in nothing but what they are about, and others in other trials.
    """
    if demand is None:
        return {}
    trial = folder.name.removesuffix(PARTIAL)
    return {
        "arrivals": demand.arrivals, "rate": demand.rate / sharing, "draw": f"{load.seed}/{name}/{trial}",
        "module": str(ARRIVALS),
    }  # fmt: skip


def read_counters(window: WindowSpec, loads: Loads, handles: Handles) -> ServerCounters | None:
    """vLLM's own account of gen, None when gen is not under load; raises StepFailed when it does not answer."""
    if loads.client is None or handles.gen is None:
        return None
    try:
        ask = partial(server_counters, handles.gen, timeout_s=ANSWER_S)
        return loads.patiently(ask, handles, window.stall_timeout_s)
    except OSError as error:
        end = tail(Path(handles.gen.log))
        raise StepFailed(f"gen's /metrics does not answer ({error}); its last lines:\n{end}") from None


def collect_frames(loads: Loads, runtime: Path, folder: Path) -> None:
    """Stop every load at once, for each finishes what it is at, and write the frames."""
    parts, each = [], loads.each()
    targets = [str(folder) if name == "gen" else str(runtime / f"rows{at}") for at, (name, _) in enumerate(each)]
    with ThreadPoolExecutor(max(1, len(each))) as pool:
        orders = [pool.submit(call, handle, "stop", to=to) for (_, handle), to in zip(each, targets, strict=True)]
    for (name, _), order, target in zip(each, orders, targets, strict=True):
        answer = order.result()
        if name == "embed":
            loads.undone_due_ns += answer.get("undone_due_ns", [])
            parts += read_rows(Path(target)).tolist()
    if loads.embeds:
        columns = zip(*sorted(parts, key=lambda row: row[1]), strict=True) if parts else ((), (), (), ())
        names = ("started_ns", "done_ns", "sequences", "tokens")
        write_frame(folder, "embed", dict(zip(names, map(list, columns), strict=True)))


def stop_quietly(handle: Handle, runtime: Path) -> None:
    with suppress(OSError, ValueError):
        call(handle, "stop", timeout_s=5.0, to=str(runtime / f"unread-{handle.pid}"))


def connect(spec: TrialSpec, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Loads:
    """Everything that will be under load, ready for orders and at rest; the stack ends what was started for it."""
    embeds = []
    for number in spec.placement.embeds_at_work:
        embed = handles.embeds[number]
        if isinstance(embed, EmbedServerHandle):
            embed = start_embed_client(spec.load, embed, number, runtime, folder, stack)
        embeds.append(embed)
    loads = Loads(None, tuple(embeds))
    if spec.placement.runs_gen:
        loads.client = start_client(spec.load, handles, runtime, folder, stack)
    return loads


def begin_load(spec: TrialSpec, handles: Handles, loads: Loads, runtime: Path, folder: Path, stack: ExitStack) -> None:
    """Give every workload its work; the stack takes it away again."""
    placement = spec.placement
    for number, (name, handle) in enumerate(loads.each()):
        order = asdict(start_order(spec.load.pacing, placement)) if name == "embed" else {}
        demand = spec.load.gen_demand if name == "gen" else spec.load.embed_demand
        sharing = 1 if name == "gen" else len(loads.embeds)
        order |= due_order(demand, spec.load, f"{name}{number}" if sharing > 1 else name, sharing, folder)
        try:
            call(handle, "start", **order)
        except OSError as error:
            loads.check_alive(handles)  # one that has ended is told by its name
            end = tail(Path(handle.log))
            raise StepFailed(f"{name} did not begin its work ({error}); its last lines:\n{end}") from None
        stack.callback(stop_quietly, handle, runtime)
    if placement.mechanism == "cpu-alternating":
        loads.mechanism.append(start_alternator(spec.load.slice_ms, handles, runtime, folder, stack))
    if spec.load.pacing.kind == "slo" and shares(placement):
        loads.mechanism.append(start_pacer(spec.load, loads, runtime, folder, stack))


def start_pacer(load: LoadSpec, loads: Loads, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that paces embed by gen's gaps."""
    assert loads.client is not None
    rows = runtime / "pacing.jsonl"
    job = PacerJob(
        client=loads.client, embeds=loads.embeds, slo_gap_ms=load.pacing.gen_gap_ms,
        concurrency=load.concurrency, out=str(rows),
    )  # fmt: skip
    command = [sys.executable, "-m", "colo_lib.launch.pacing", json.dumps(asdict(job))]
    child = Child(PACER, command, folder / "logs" / "pacer.log", env=package_environment({}), grace_s=1.0)
    stack.callback(child.stop)
    # The warm-up is for finding the duty: it begins when somebody looks for it.
    wait_for(rows.exists, child, CLIENT_TIMEOUT_S, "the pacer")
    return child


def settle(loads: Loads, runtime: Path, folder: Path) -> None:
    """End who takes turns and who paces, and keep their accounts; raises StepFailed for one that had died."""
    for child in loads.mechanism:
        if child.name == ALTERNATOR:
            end_alternator(child, runtime, folder)
        elif child.name == PACER:
            end_pacer(child, runtime, folder)


def end_pacer(child: Child, runtime: Path, folder: Path) -> None:
    """End the pacer; its rows go to pacing.parquet."""
    if not child.running():
        raise StepFailed(f"the pacer ended unasked; its last lines:\n{child.tail()}")
    child.stop()
    rows = [json.loads(line) for line in (runtime / "pacing.jsonl").read_text().splitlines() if line.endswith("}")]
    write_frame(folder, "pacing", {name: [row[name] for row in rows] for name in PACING} if rows else {})


def start_alternator(slice_ms: float, handles: Handles, runtime: Path, folder: Path, stack: ExitStack) -> Child:
    """The process that lets the two workloads take turns; it has begun. Raises StepFailed for one that does not."""
    groups = handles.pids()
    command = [sys.executable, "-I", str(ALTERNATE), "--slice-ms", str(slice_ms)]
    for name in ("gen", "embed"):
        command += [f"--{name}", ",".join(map(str, groups[name]))]
    command += ["--out", str(runtime / "slices.txt")]
    child = Child("alternator", command, folder / "logs" / "alternator.log", grace_s=20.0)
    # Whatever becomes of the alternator, nobody stays stopped.
    stack.callback(_continue_all, [group for part in groups.values() for group in part])
    stack.callback(child.stop)
    # A trial that began without it would be no trial of taking turns.
    wait_for((runtime / "slices.txt").exists, child, BEGIN_TIMEOUT_S, "the alternator")
    return child


def _continue_all(groups: list[int]) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGCONT)


def end_alternator(child: Child, runtime: Path, folder: Path) -> None:
    """Stop taking turns and keep who ran when, in slices.parquet; raises StepFailed when it had died."""
    if not child.running():
        raise StepFailed(f"the alternator ended unasked; its last lines:\n{child.tail()}")
    child.stop()
    rows = [line.split() for line in (runtime / "slices.txt").read_text().splitlines()]
    names, starts, ends = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"workload": list(names), "start_ns": [int(t) for t in starts], "end_ns": [int(t) for t in ends]}
    write_frame(folder, "slices", columns)
