"""`embed`: a transformer in a process of its own that embeds batches for as long as it is told to.

Run as a file by the interpreter that has torch and transformers; needs nothing else of this package:

    python embed_worker.py '{"socket": …, "config": …, …}'

It loads the model, opens a Unix socket and answers one JSON line with one JSON line:
`{"do": "start", "pause_s": 0}`, `{"do": "status"}`, `{"do": "stop", "to": FILE}` (FILE receives int64 rows of
started_ns, done_ns, sequences, tokens), `{"do": "quit"}`. Times are CLOCK_MONOTONIC.
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


class Worker:
    """The embedding loop in the main thread, its commands in another."""

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
        self.idle.set()
        self.pause_s = 0.0
        self.error: str | None = None

    def embed_once(self, number: int) -> Any:
        """One batch: host ids in, unit vectors back on the host, so that a batch is done when it says so."""
        with self.torch.inference_mode():
            device = self.job["torch_device"]
            ids = self.inputs[number % INPUT_VARIANTS].to(device, non_blocking=True)
            mask = self.mask.to(device)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return pool(states, mask, self.job["pooling"]).cpu()

    def loop(self) -> None:
        """Embed while told to go; a row a batch."""
        number, tokens = 0, self.job["batch_size"] * self.job["sequence_tokens"]
        while not self.over.is_set():
            if not self.going.wait(0.05):
                self.idle.set()
                continue
            self.idle.clear()
            try:
                started = time.monotonic_ns()
                self.embed_once(number)
                self.rows.extend((started, time.monotonic_ns(), self.job["batch_size"], tokens))
            except Exception as error:  # Told to the owner, who ends the trial.
                self.error = f"{type(error).__name__}: {error}"
                self.going.clear()
            number += 1
            if self.pause_s:
                time.sleep(self.pause_s)

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        do = order.get("do")
        if do == "start":
            self.rows, self.error, self.pause_s = array.array("q"), None, float(order.get("pause_s", 0.0))
            self.going.set()
        elif do == "stop":
            self.going.clear()
            self.idle.wait(120)
            with open(order["to"], "wb") as file:
                file.write(self.rows.tobytes())
        elif do == "quit":
            self.over.set()
        elif do != "status":
            return {"error": f"unknown order {do!r}"}
        done = len(self.rows) // 4
        last = self.rows[4 * done - 3] if done else None
        return {"batches": done, "last_done_ns": last, "error": self.error, "pid": os.getpid()} | self.facts()

    def facts(self) -> dict[str, Any]:
        """What ran where: versions, parameter count, vector width."""
        import transformers

        count = sum(parameter.numel() for parameter in self.model.parameters())
        return {"torch": self.torch.__version__, "transformers": transformers.__version__, "parameters": count}

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
    found = importlib.util.spec_from_file_location("sm_hold", job["hold"]["module"])
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    context: contextlib.AbstractContextManager[Any] = module.hold(job["hold"])
    return context


def main() -> None:
    """Load, warm once, then serve orders beside the loop."""
    worker = Worker(json.loads(sys.argv[1]))
    with held(worker.job):
        worker.embed_once(0)
        server = threading.Thread(target=worker.serve, args=(worker.job["socket"],), daemon=True)
        server.start()
        print("embed: ready", worker.facts(), flush=True)
        worker.loop()
    server.join(2)


if __name__ == "__main__":
    main()
