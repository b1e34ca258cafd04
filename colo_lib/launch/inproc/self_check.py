"""Tries on a GPU host all that is CUDA's of this package's embedder in another process's thread, without vLLM.

    python -m colo_lib.launch.inproc.self_check [--model FOLDER] [--batch 32] [--tokens 512] [--sizes 0,96] [--out FILE]

Needs torch and transformers, nothing else. A chain of matrix-vector products as a CUDA graph stands in for decode, in
the main thread. Prints a JSON line a finding, and ends with 1 when one of the `check`s does not hold:

- `granted`: how many SMs the driver gives for how many asked;
- `lanes`: the timed product on each size, against its share of the SMs; whether passes are CUDA graphs;
- `vectors`: largest difference to an eager pass with a mask; milliseconds of a pass, eager with mask and on each lane;
- `kept`: rates of both at once over rates alone, for each size, gen's priority high and normal;
- `hosted`: the thread through its socket, with each policy, as the launcher orders it about;
- `idle`: decode's rate with the thread loaded and idle over its rate before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from colo_lib.launch.embed_worker import build_model, pool
from colo_lib.launch.inproc.engine_steps import StepsSeen
from colo_lib.launch.inproc.extension import cuda_mark
from colo_lib.launch.inproc.host import EmbedHost
from colo_lib.launch.inproc.lanes import all_sms, green_stream, high_priority_streams, make_lanes
from colo_lib.launch.inproc.names import files_of

MODELS = Path(__file__).parents[2] / "models"
WINDOW_S, WARM_S = 2.0, 0.5
SCALING = (0.7, 1.6)
PREFILL_EVERY = 50  # steps of the stand-in: one in so many holds prompt tokens


class Findings:
    """What was found, told at once and kept; `failed` names the checks that do not hold."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def tell(self, what: str, **more: Any) -> None:
        """One line."""
        self.lines.append({"finding": what, **more})
        print(json.dumps(self.lines[-1]), flush=True)

    def check(self, what: str, holds: bool, **more: Any) -> None:
        """A finding that must hold."""
        if not holds:
            self.failed.append(what)
        self.tell(what, holds=bool(holds), **more)


class Decode:
    """Stands in for decode: a step is a chain of matrix-vector products in one CUDA graph, bound by memory."""

    def __init__(self, high: bool, layers: int = 80, side: int = 8192) -> None:
        import torch

        self.torch = torch
        with high_priority_streams() if high else contextlib.nullcontext():
            self.stream, capture = torch.cuda.Stream(), torch.cuda.Stream()
        self.weights = [torch.randn(side, side, device="cuda", dtype=torch.bfloat16) / side**0.5 for _ in range(layers)]
        self.state = torch.randn(1, side, device="cuda", dtype=torch.bfloat16)
        with torch.cuda.stream(capture):
            self.chain()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=capture):
            self.out = self.chain()
        self.seen = StepsSeen(cuda_mark)

    def chain(self) -> Any:
        """All layers of one step."""
        state = self.state
        for weight in self.weights:
            state = state @ weight
        return state

    def execute_model(self, scheduled: Any) -> Any:
        """One step, waited for as an engine waits for its tokens."""
        self.graph.replay()
        self.torch.cuda.current_stream().synchronize()
        return scheduled

    def rate(self, seconds: float) -> float:
        """Steps a second of a loop that lasts so long, in this thread; one step in PREFILL_EVERY is called prefill."""
        number, began_s = 0, time.monotonic()
        with self.torch.cuda.stream(self.stream):
            while (taken_s := time.monotonic() - began_s) < seconds:
                self.execute_model(scheduled(number))
                number += 1
        return number / taken_s


def scheduled(number: int) -> Any:
    """A scheduler's output as the worker sees it: one decoding request, now and then another's prompt."""
    fresh = number % PREFILL_EVERY == 0
    counts = {"a": 1} | ({f"b{number}": 64} if fresh else {})
    return SimpleNamespace(
        total_num_scheduled_tokens=sum(counts.values()),
        num_scheduled_tokens=counts,
        scheduled_new_reqs=[SimpleNamespace(req_id=f"b{number}")] if fresh else [],
        scheduled_cached_reqs=SimpleNamespace(req_ids=["a"]),
        scheduled_spec_decode_tokens={},
    )


def say_granted(found: Findings) -> None:
    """What the driver makes of sizes: its granularity."""
    total = all_sms()
    asked = [size for size in (1, 8, 12, 16, 20, 32, 60, 64, 96, 100, total - 8, total - 4) if 0 < size < total]
    given = {}
    for size in asked:
        try:
            _, facts, _ = green_stream(size)
            given[size] = [facts["held_sms"], facts["backend"]]
        except RuntimeError as error:
            given[size] = [None, str(error)]
    found.check("granted", any(given[size][0] for size in given), total=total, asked_given=list(given.items()))


def try_lanes(found: Findings, job: dict[str, Any], sizes: list[int]) -> dict[str, float]:
    """Lanes of a model of our own: their product, their vectors, their times; passes a second alone by size."""
    import torch

    model = build_model(job)
    mask = torch.ones(job["batch_size"], job["sequence_tokens"], dtype=torch.long, device="cuda")
    ids = torch.randint(0, model.config.vocab_size, mask.shape)

    def embed(inputs: Any) -> Any:
        with torch.inference_mode():
            return pool(model(input_ids=inputs).last_hidden_state, mask[: len(inputs)], job["pooling"])

    def eager() -> Any:
        with torch.inference_mode():
            return pool(model(input_ids=ids.to("cuda"), attention_mask=mask).last_hidden_state, mask, "mean").cpu()

    lanes = make_lanes(sizes, embed, "cuda", 0)
    expected, rates = eager(), {}
    found.tell("eager", pass_ms=timed_ms(eager))
    for size, lane in lanes.items():
        vectors = lane.run(ids)
        told = lane.told()
        demanded, ratio = told["all_sms"] / told["held_sms"], told["held_ms"] / told["free_ms"]
        found.check(
            "lane", SCALING[0] * demanded <= ratio <= SCALING[1] * demanded, demanded=demanded, ratio=ratio, **told
        )
        found.check("graph", told["graphs"], size=size, why=told["why_eager"])
        off = float((vectors - expected).abs().max())
        pass_ms = timed_ms(lambda lane=lane: lane.run(ids))  # type: ignore[misc]
        rates[str(size)] = 1e3 / pass_ms
        found.check(
            "vectors", off < 0.02, size=size, largest_difference=off, pass_ms=pass_ms, on_host=not vectors.is_cuda
        )
    return rates


def timed_ms(run: Callable[[], Any], rounds: int = 10) -> float:
    """Mean time of a call, ms, after three to warm up."""
    for _ in range(3):
        run()
    began_s = time.monotonic()
    for _ in range(rounds):
        run()
    return (time.monotonic() - began_s) / rounds * 1e3


def order(path: Path, do: str, **more: Any) -> dict[str, Any]:
    """One order to the thread, one answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(130)
        connection.connect(str(path))
        with connection.makefile("rw") as stream:
            stream.write(json.dumps({"do": do, **more}) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
            return answer


def try_host(found: Findings, job: dict[str, Any], sizes: list[int], priority: str) -> None:
    """The thread beside decode: idle, then at work on each size, then by each policy."""
    import torch

    decode = Decode(priority == "high")
    decode.rate(WARM_S)
    alone = decode.rate(WINDOW_S)
    with tempfile.TemporaryDirectory(prefix="colo-check-") as folder:
        decode.seen.around(decode)
        host = EmbedHost(
            folder, 0, decode.seen, SimpleNamespace(device=torch.device("cuda", torch.cuda.current_device()))
        )
        host.start()
        files = files_of(folder, 0)
        found.tell("asleep", priority=priority, decode_alone_per_s=alone, kept=decode.rate(WINDOW_S) / alone)
        for size in sizes:
            give(files, job | {"sizes": [size], "gen_priority": priority})
            found.tell("idle", priority=priority, size=size, kept=decode.rate(WINDOW_S) / alone)
            beside(found, decode, files, folder, alone, priority, "fixed", 0.0)
            order(files["socket"], "quit")
            while files["socket"].exists():
                time.sleep(0.05)
        give(files, job | {"sizes": sizes, "gen_priority": priority})
        for policy in ("phase", "slo"):
            beside(found, decode, files, folder, alone, priority, policy, 1.5e3 / alone)
        threads = [thread.name for thread in threading.enumerate()]
        host.end()
        found.check("ended", not host.thread.is_alive() and not files["socket"].exists(), threads=threads)


def give(files: dict[str, Path], job: dict[str, Any]) -> None:
    """A job for the thread, until it answers; raises RuntimeError with what it says of a failure."""
    draft = files["job"].with_suffix(".draft")
    draft.write_text(json.dumps(job))
    draft.rename(files["job"])
    began_s = time.monotonic()
    while time.monotonic() - began_s < 120:
        if files["failed"].exists():
            raise RuntimeError(files["failed"].read_text())
        with contextlib.suppress(OSError, ValueError):
            order(files["socket"], "status")
            return
        time.sleep(0.1)
    raise RuntimeError("the thread does not answer")


def beside(
    found: Findings, decode: Decode, files: dict[str, Path], folder: str, alone: float, priority: str, policy: str,
    slo_gap_ms: float,
) -> None:  # fmt: skip
    """Embed alone for a window, then both; what each keeps."""
    orders = {"policy": policy, "slo_gap_ms": slo_gap_ms}
    counts = []
    for both in (False, True):
        order(files["socket"], "start", **orders)
        (decode.rate if both else time.sleep)(WARM_S)
        before = order(files["socket"], "status")
        began_s = time.monotonic()
        rate = 0.0
        if both:
            rate = decode.rate(3 * WINDOW_S if policy == "slo" else WINDOW_S)
        else:
            time.sleep(WINDOW_S)
        after = order(files["socket"], "status")
        counts.append((after["batches"] - before["batches"]) / (time.monotonic() - began_s))
        answer = order(files["socket"], "stop", to=f"{folder}/rows")
        if answer["error"]:
            raise RuntimeError(answer["error"])
    hosted = answer["hosted"]
    told = {name: hosted[name] for name in ("size", "passes", "phase_waits", "phase_waited_s", "gaps", "late_gaps")}
    found.tell(
        "kept", priority=priority, policy=policy, slo_gap_ms=slo_gap_ms, gen=rate / alone,
        embed=counts[1] / counts[0] if counts[0] else None, embed_alone_per_s=counts[0], memory=answer["memory_gib"],
        lanes=[[lane["wanted"], lane["held_sms"], lane.get("graphs")] for lane in hosted["lanes"]], **told,
    )  # fmt: skip


def main() -> int:
    """Try all, tell all; 1 when something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODELS / "e5-large-v2"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--sizes", default="0,96,64,32")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    import torch
    import transformers

    found, sizes = Findings(), [int(size) for size in options.sizes.split(",")]
    job = {
        "model": options.model, "weights": "dummy", "dtype": "bfloat16", "torch_device": "cuda", "threads": 0,
        "batch_size": options.batch, "sequence_tokens": options.tokens, "pooling": "mean", "seed": 1,
    }  # fmt: skip
    torch.cuda.init()
    found.tell(
        "machine", gpu=torch.cuda.get_device_name(), torch=torch.__version__, transformers=transformers.__version__,
        cuda=torch.version.cuda, priorities=torch.cuda.Stream.priority_range(), python=sys.version.split()[0],
    )  # fmt: skip
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("granted", lambda: say_granted(found)),
        ("lanes", lambda: try_lanes(found, job, sizes)),
        ("hosted high", lambda: try_host(found, job, sizes, "high")),
        ("hosted normal", lambda: try_host(found, job, sizes, "normal")),
    ]
    for name, part in parts:
        began_s = time.monotonic()
        try:
            part()
        except Exception as error:  # one part that fails must not hide what the others find
            import traceback

            traceback.print_exc()
            found.check(name, False, error=f"{type(error).__name__}: {error}")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        found.tell("took", part=name, seconds=time.monotonic() - began_s)
    found.tell("end", failed=found.failed)
    if options.out:
        Path(options.out).write_text("".join(json.dumps(line) + "\n" for line in found.lines))
    return int(bool(found.failed))


if __name__ == "__main__":
    sys.exit(main())
