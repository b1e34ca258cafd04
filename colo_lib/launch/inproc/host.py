"""The thread of vLLM's worker that hosts the embedder: `embed_worker`'s loop, socket, orders and rows, beside gen.

It sleeps until its job lies in the launcher's private folder, which is when the server is healthy: CUDA work of another
thread would break the capture of gen's graphs. `quit` ends the job; another may follow. What goes wrong with a job is
said in FILE.failed beside it, and the engine goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
import time
import traceback
from typing import Any

from colo_lib.launch.embed_worker import GIB, Worker, pool
from colo_lib.launch.inproc.engine_steps import StepsSeen
from colo_lib.launch.inproc.lanes import make_lanes
from colo_lib.launch.inproc.names import THREAD_NAME, files_of
from colo_lib.launch.inproc.policy import FIXED, make_policy

JOB_POLL_S, PHASE_POLL_S = 0.1, 0.0005
END_S = 5.0


def name_thread(name: str) -> None:
    """By this name /proc and debuggers know the calling thread (prctl PR_SET_NAME)."""
    ctypes.CDLL(None).prctl(15, ctypes.c_char_p(name.encode()), 0, 0, 0)


class HostedWorker(Worker):
    """`embed_worker.Worker` on lanes of the device that it shares with the engine around it."""

    def __init__(self, job: dict[str, Any], seen: StepsSeen, over: threading.Event) -> None:
        import torch

        self.seen, self.engine_over = seen, over
        self.loaded_from = self.allocated(torch, job)
        # Drawing the weights must not move the engine's random numbers.
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if job["torch_device"] == "cuda" else []):
            super().__init__(job)
        self.loaded = self.allocated(torch, job)
        if hasattr(self.model.config, "use_cache"):
            self.model.config.use_cache = False
        self.ones = self.mask.to(job["torch_device"])
        self.lanes = make_lanes(job["sizes"], self.vectors, job["torch_device"], job["threads"])
        self.policy = make_policy(FIXED, job["sizes"], 0.0)
        self.passes = dict.fromkeys(job["sizes"], 0)
        self.waits, self.waited_s, self.gaps_seen, self.late = 0, 0.0, 0, 0
        self.tid, self.most = threading.get_native_id(), 0

    @staticmethod
    def allocated(torch: Any, job: dict[str, Any]) -> int:
        """Bytes of the device that this process's tensors have."""
        return int(torch.cuda.memory_allocated()) if job["torch_device"] == "cuda" else 0

    def vectors(self, ids: Any) -> Any:
        """(sequences, tokens) ids to (sequences, width) unit vectors, both on the device.

        All sequences are full: without a mask the attention kernel is the fast one, captured or not.
        """
        with self.torch.inference_mode():
            states = self.model(input_ids=ids).last_hidden_state
            return pool(states, self.ones[: len(ids)], self.job["pooling"])

    def warm(self) -> None:
        """One batch on every lane: what it captures, and what it needs of memory, is there before the first order."""
        if self.job["torch_device"] == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        for lane in self.lanes.values():
            lane.run(self.inputs[0])
            lane.may_capture = False
        if self.job["torch_device"] == "cuda":
            self.most = int(self.torch.cuda.max_memory_allocated()) - self.loaded_from

    def forward(self, inputs: Any) -> Any:
        """As of `Worker`, on the lane that the policy chose; which it chooses for the next pass."""
        size = self.policy.size
        vectors = self.lanes[size].run(inputs)
        self.passes[size] += 1
        gaps_ms = self.seen.take_gaps()
        self.policy.passed(gaps_ms)
        self.gaps_seen += len(gaps_ms)
        self.late += sum(gap_ms > self.slo_gap_ms for gap_ms in gaps_ms) if self.slo_gap_ms else 0
        return vectors

    slo_gap_ms = 0.0

    def wait_turn(self) -> None:
        """Until the policy lets the next pass begin; an order to stop ends the wait."""
        began_s = time.monotonic()
        while not self.policy.may_begin(self.seen.prefill_now()):
            if not self.going.is_set() or self.engine_over.is_set():
                break
            time.sleep(PHASE_POLL_S)
        else:
            if (waited_s := time.monotonic() - began_s) < PHASE_POLL_S:
                return
            self.waits, self.waited_s = self.waits + 1, self.waited_s + waited_s

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """As of `Worker`; `start` may say `policy` and `slo_gap_ms`."""
        if order.get("do") == "start":
            self.slo_gap_ms = float(order.get("slo_gap_ms", 0.0))
            try:
                self.policy = make_policy(order.get("policy", FIXED), self.job["sizes"], self.slo_gap_ms)
            except ValueError as error:
                return {"error": str(error)}
            self.passes = dict.fromkeys(self.job["sizes"], 0)
            self.waits, self.waited_s, self.gaps_seen, self.late = 0, 0.0, 0, 0
            self.seen.take_gaps()
        return super().answer(order)

    def memory_gib(self) -> dict[str, float]:
        """As of `Worker`, of what came with the embedder: torch counts the whole process."""
        if self.job["torch_device"] != "cuda":
            return {}
        weights, most = self.loaded - self.loaded_from, max(self.most, self.loaded - self.loaded_from)
        return {"weights": weights / GIB, "peak": most / GIB, "reserved": most / GIB}

    def facts(self) -> dict[str, Any]:
        """As of `Worker`, and where it lives, what it holds, and what its policy did since `start`."""
        lanes = [lane.told() for lane in self.lanes.values()]
        done = {"policy": self.policy.name, "size": self.policy.size, "passes": list(self.passes.items())}
        waited = {"phase_waits": self.waits, "phase_waited_s": self.waited_s}
        engine = {"steps": self.seen.steps, "prefill_steps": self.seen.prefill_steps}
        engine |= {"gaps": self.gaps_seen, "late_gaps": self.late}
        where = {"tid": self.tid, "rank": self.job["rank"], "gen_priority": self.job["gen_priority"]}
        return super().facts() | {"hosted": where | {"lanes": lanes} | done | waited | engine}


class EmbedHost:
    """The thread, from the worker's making to its end. `device_index`: asked when there is a job."""

    def __init__(self, folder: str, rank: int, seen: StepsSeen, worker: Any) -> None:
        self.files, self.rank, self.seen, self.worker = files_of(folder, rank), rank, seen, worker
        self.over = threading.Event()
        self.current: HostedWorker | None = None
        self.thread = threading.Thread(target=self.run, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Sleep until there is a job."""
        self.thread.start()

    def end(self) -> None:
        """The worker ends: no further pass begins, and the one under way is waited for."""
        self.over.set()
        if self.current is not None:
            self.current.going.clear()
            self.current.over.set()
            self.current.rest_over.set()
        self.thread.join(END_S)

    def run(self) -> None:
        """One job after the other."""
        name_thread(THREAD_NAME)
        while not self.over.wait(JOB_POLL_S):
            with contextlib.suppress(FileNotFoundError):
                job = json.loads(self.files["job"].read_text())
                self.files["job"].unlink()
                self.carry_out(job)

    def carry_out(self, job: dict[str, Any]) -> None:
        """Load, capture, serve orders until told to quit; leave nothing behind."""
        try:
            if job["torch_device"] == "cuda":
                import torch

                torch.cuda.set_device(getattr(self.worker, "device", None) or 0)
            self.current = HostedWorker(job | {"rank": self.rank}, self.seen, self.over)
            self.current.warm()
            self.serve(self.current)
        except BaseException as error:  # whatever it is, the engine goes on, and the owner is told
            traceback.print_exc()
            said = self.files["failed"].with_suffix(".draft")
            said.write_text(f"{type(error).__name__}: {error}")
            said.rename(self.files["failed"])
        finally:
            self.current = None
            self.files["socket"].unlink(missing_ok=True)
            gc.collect()
            if job["torch_device"] == "cuda":
                import torch

                torch.cuda.empty_cache()

    def serve(self, worker: HostedWorker) -> None:
        """The loop in this thread, its commands in another, as in a process of its own."""
        server = threading.Thread(target=worker.serve, args=(str(self.files["socket"]),), daemon=True)
        server.start()
        print(f"embed: ready in pid {os.getpid()}, thread {worker.tid}", worker.facts(), flush=True)
        worker.loop()
        server.join(END_S)
