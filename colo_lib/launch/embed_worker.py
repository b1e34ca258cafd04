"""`embed`: a transformer in a process of its own that embeds batches for as long as it is told to.

Run as a file by the interpreter that has torch and transformers; needs nothing else of this package:

    python embed_worker.py '{"socket": …, "config": …, …}'

It loads the model, opens a Unix socket and answers one JSON line with one JSON line:
`{"do": "start", "duty": 1, "micro_batch_size": 0, "stall_s": 0}`, `{"do": "pace", "duty": 0.5}`, `{"do": "status"}`,
`{"do": "stop", "to": FILE}` (FILE receives int64 rows of started_ns, done_ns, sequences, tokens), `{"do": "quit"}`.
Times are CLOCK_MONOTONIC. A batch is embedded in forward passes of `micro_batch_size` sequences (0: in one); after each
the worker rests so that it works for `duty` of the time, though never so long that no batch is done within `stall_s`.
Where `start` has `arrivals` (with `module`: the file of arrivals.py, `rate`: batches a second, `draw`: the seed) a
batch begins when it is due and the one before it is done; its row starts when it was due.
"""

from __future__ import annotations

import array
import contextlib
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from typing import Any

INPUT_VARIANTS = 8
GIB = 2.0**30
GATE_POLL_S = 0.05
# Of the time that embed may go without a finished batch, how much is planned with: the rest is for what takes longer.
STALL_SHARE = 0.8


def build_model(job: dict[str, Any]) -> Any:
    """The model in eval mode on its device; dummy weights are drawn on the device, never downloaded."""
    import torch
    from transformers import AutoConfig, AutoModel

    dtype = getattr(torch, job["dtype"])
    if job["weights"] == "hub":
        model = AutoModel.from_pretrained(job["model"], dtype=dtype)
    else:
        config = AutoConfig.from_pretrained(job["model"])
        torch.manual_seed(job["seed"])
        with torch.device(job["torch_device"]):
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                model = AutoModel.from_config(config)
            finally:
                torch.set_default_dtype(before)
    return model.to(device=job["torch_device"], dtype=dtype).eval()


def pool(states: Any, mask: Any, how: str) -> Any:
    """(batch, tokens, width) states to (batch, width) unit vectors: mean over the mask, or the last token."""
    import torch

    if how == "last":
        rows = torch.arange(states.shape[0], device=states.device)
        vectors = states[rows, mask.sum(1) - 1]
    else:
        weights = mask.unsqueeze(-1).to(states.dtype)
        vectors = (states * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


class Pacing:
    """How long to rest after each forward pass: for a duty cycle, within what embed's own stall SLO leaves.

    `duty` is the share of the time that may be worked, (0, 1]; `stall_s` the longest time without a finished batch
    (0: no such bound).
    """

    def __init__(self, duty: float = 1.0, micro_batch_size: int = 0, stall_s: float = 0.0) -> None:
        self.duty, self.micro_batch_size, self.stall_s = float(duty), int(micro_batch_size), float(stall_s)
        self.last_done_s = time.monotonic()
        self.worked_s = self.rested_s = 0.0
        self.bounded = False  # the last rest was cut short by the stall bound

    def rest_s(self, busy_s: float, passes_left: int, now_s: float) -> float:
        """Seconds to rest after a pass that took `busy_s`, `passes_left` (>= 1) before the next batch is done.

        busy * (1 / duty - 1), but no more than an even part of the slack: what is left until embed's stall bound
        when the passes to come have taken their time. There are as many rests to come as passes.
        """
        rest_s, most_s = busy_s * (1.0 / self.duty - 1.0), float("inf")
        if self.stall_s:
            slack_s = self.last_done_s + STALL_SHARE * self.stall_s - now_s - passes_left * busy_s
            most_s = max(0.0, slack_s) / passes_left
        self.bounded, rest_s = most_s < rest_s, min(rest_s, most_s)
        self.worked_s, self.rested_s = busy_s, rest_s
        return rest_s

    def worked_share(self) -> float:
        """The duty of the last pass: above the one asked for where the stall bound cut its rest short."""
        whole_s = self.worked_s + self.rested_s
        return self.worked_s / whole_s if whole_s else 1.0


class Worker:
    """The embedding loop in the main thread, its commands in another."""

    # Where batches are due: the times to come, seconds from `began_ns` on, and that of the next batch.
    due: Any = None
    began_ns = 0
    due_ns: int | None = None

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        self.job, self.torch = job, torch
        if job["threads"]:
            torch.set_num_threads(job["threads"])
        self.model = build_model(job)
        vocabulary = self.model.config.vocab_size
        shape = (INPUT_VARIANTS, job["batch_size"], job["sequence_tokens"])
        self.inputs = torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(job["seed"]))
        self.mask = torch.ones(shape[1:], dtype=torch.long)
        self.rows = array.array("q")
        self.going, self.idle, self.over = threading.Event(), threading.Event(), threading.Event()
        self.rest_over = threading.Event()  # what is paced by has changed: look again
        self.idle.set()
        self.pacing = Pacing()
        self.error: str | None = None
        self.known: dict[str, Any] = {}

    def embed_batch(self, number: int, due_ns: int | None = None) -> None:
        """One batch, in forward passes of `micro_batch_size`, a rest after each; a row when its last pass is done.

        `due_ns`: since when it was wanted; None: since now.
        """
        batch = self.inputs[number % INPUT_VARIANTS]
        parts = batch.split(self.pacing.micro_batch_size or len(batch))
        started = due_ns or time.monotonic_ns()
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            self.wait_turn()
            began_s = time.monotonic()
            self.forward(part)
            busy_s = time.monotonic() - began_s
            if not left:
                self.rows.extend((started, time.monotonic_ns(), len(batch), batch.numel()))
                self.pacing.last_done_s = time.monotonic()
            self.rest(busy_s, left or len(parts))

    def forward(self, inputs: Any) -> Any:
        """(sequences, tokens) ids to (sequences, width) unit vectors, back on the host."""
        with self.torch.inference_mode():
            device = self.job["torch_device"]
            ids = inputs.to(device, non_blocking=True)
            mask = self.mask[: len(inputs)].to(device)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return pool(states, mask, self.job["pooling"]).cpu()

    def wait_turn(self) -> None:
        """Until the next pass may begin: at once, in a process of its own."""

    def rest(self, busy_s: float, passes_left: int) -> None:
        """Rest after a pass, by the duty as it is now, not as it was when the rest began; an order to stop ends it."""
        began_s = time.monotonic()
        while self.going.is_set():
            left_s = self.pacing.rest_s(busy_s, passes_left, began_s) - (time.monotonic() - began_s)
            if left_s <= 0:
                return
            if self.rest_over.wait(left_s):
                self.rest_over.clear()

    def loop(self) -> None:
        """Embed while told to go; a row a batch."""
        number = 0
        while not self.over.is_set():
            if not self.going.wait(0.05):
                self.idle.set()
                continue
            self.idle.clear()
            if self.due is not None and not self.wait_due():
                continue
            try:
                self.embed_batch(number, self.due_ns)
                self.next_due()
            except Exception as error:  # Told to the owner, who ends the trial.
                self.error = f"{type(error).__name__}: {error}"
                self.going.clear()
            number += 1

    def begin_arrivals(self, order: dict[str, Any]) -> None:
        """Take up the times at which batches are due, if the order has them."""
        self.due, self.due_ns, self.began_ns = None, None, time.monotonic_ns()
        if order.get("arrivals", "closed") != "closed":
            self.due = loaded(order["module"]).due_times(order["arrivals"], order["rate"], order["draw"])
            self.next_due()

    def next_due(self) -> None:
        """The next batch's time."""
        if self.due is not None:
            self.due_ns = self.began_ns + int(next(self.due) * 1e9)

    def wait_due(self) -> bool:
        """Until the next batch is due; False where the load ends before."""
        while self.going.is_set():
            left_s = ((self.due_ns or 0) - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                return True
            if self.rest_over.wait(left_s):
                self.rest_over.clear()
        return False

    def undone(self, until_ns: int) -> list[int]:
        """When the batches were due, ns, that were due by `until_ns` and have not been done."""
        late = []
        while self.due_ns is not None and self.due_ns <= until_ns:
            late.append(self.due_ns)
            self.next_due()
        return late

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        late: list[int] = []
        do = order.get("do")
        if do == "start":
            self.rows, self.error = array.array("q"), None
            self.pacing = Pacing(order.get("duty", 1.0), order.get("micro_batch_size", 0), order.get("stall_s", 0.0))
            self.begin_arrivals(order)
            self.going.set()
        elif do == "pace":
            self.pacing.duty = float(order["duty"])
            self.rest_over.set()
        elif do == "stop":
            until_ns = time.monotonic_ns()
            self.going.clear()
            self.rest_over.set()
            self.idle.wait(120)
            late = self.undone(until_ns)
            with open(order["to"], "wb") as file:
                file.write(self.rows.tobytes())
        elif do == "quit":
            self.over.set()
        elif do != "status":
            return {"error": f"unknown order {do!r}"}
        done = len(self.rows) // 4
        last = self.rows[4 * done - 3] if done else None
        paced = {"duty": self.pacing.worked_share(), "bounded": self.pacing.bounded}
        state: dict[str, Any] = {"batches": done, "last_done_ns": last, "error": self.error, "pid": os.getpid()}
        state |= {"oldest_due_ns": self.due_ns} | ({"undone_due_ns": late} if do == "stop" else {})
        return state | paced | {"memory_gib": self.memory_gib()} | self.facts()

    def memory_gib(self) -> dict[str, float]:
        """Device memory of the weights, the most in use so far, and what torch holds; empty without a device."""
        if self.job["torch_device"] != "cuda":
            return {}
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        held_bytes = {
            "weights": weights,
            "peak": self.torch.cuda.max_memory_allocated(),
            "reserved": self.torch.cuda.memory_reserved(),
        }
        return {name: held / GIB for name, held in held_bytes.items()}

    def facts(self) -> dict[str, Any]:
        """What ran where: versions, parameter count, vector width."""
        import transformers

        if not self.known:
            count = sum(parameter.numel() for parameter in self.model.parameters())
            versions = {"torch": self.torch.__version__, "transformers": transformers.__version__}
            self.known = versions | {"parameters": count}
        return self.known

    def serve(self, path: str) -> None:
        """Answer orders, one connection at a time, until told to quit."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(0.2)
            while not self.over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                # Who asked while this process was stopped, and gave up, is no reason to be deaf to the next.
                with contextlib.suppress(ConnectionError):
                    self.converse(connection)

    def converse(self, connection: socket.socket) -> None:
        """Answer one connection's orders, a line each; raises ConnectionError when the other side hung up."""
        with connection, connection.makefile("rw") as stream:
            connection.settimeout(None)
            for line in stream:
                stream.write(json.dumps(self.answer(json.loads(line))) + "\n")
                stream.flush()
                if self.over.is_set():
                    break


def held(job: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Where this thread's GPU work stays on its SMs, if the job's `hold` says so (`mechanisms/sm_hold.py`)."""
    if "hold" not in job:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = loaded(job["hold"]["module"]).hold(job["hold"])
    return context


def loaded(file: str) -> Any:
    """A module of this package, which the interpreter here does not have, from its file."""
    module_spec = importlib.util.spec_from_file_location(os.path.basename(file).removesuffix(".py"), file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def wait_for_turn(gate: str) -> None:
    """Import what takes long and touches no device, then wait for the file that says: the device is free to go to."""
    import torch
    from transformers import AutoConfig, AutoModel  # noqa: F401

    assert not torch.cuda.is_initialized()
    print("embed: waits for its turn", flush=True)
    while not os.path.exists(gate):
        time.sleep(GATE_POLL_S)


def main() -> None:
    """Load, warm once, then serve orders beside the loop."""
    job = json.loads(sys.argv[1])
    if "gate" in job:
        wait_for_turn(job["gate"])
    worker = Worker(job)
    with held(worker.job):
        worker.forward(worker.inputs[0])
        server = threading.Thread(target=worker.serve, args=(worker.job["socket"],), daemon=True)
        server.start()
        print("embed: ready", worker.facts(), flush=True)
        worker.loop()
    server.join(2)


if __name__ == "__main__":
    main()
