"""The load on `gen`: requests in a process of its own, a time for every token.

    python -m colo_lib.launch.gen_client '{"socket": …, "port": …, "concurrency": …, …}'

A closed loop (`concurrency` slots, each with one request in flight) or requests that are due at a rate, however many
are in flight then. Where one process would not keep up, several share the load (`gen_team`): this one has
every `processes`-th slot or request.

The API key comes in `COLO_GEN_KEY`. Orders, answers and times are those of `embed_worker`: start (`arrivals`, `rate`,
`draw`: when requests are due, from `began_ns` on), status, stop (`to` is the folder that receives gen.parquet and
requests.parquet), quit; and `gaps` (`since`: how many the asker has seen): the inter-token gaps that came after those,
for whoever paces the other workload.
A request that fails is recorded with its error and never tried again: a retry would hide a failure.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from colo_lib.child_environment import spare_pandas
from colo_lib.frames import write_frame
from colo_lib.launch.arrivals import CLOSED, due_times
from colo_lib.launch.client_orders import cpu_reading, run_ahead, serve_orders, until
from colo_lib.launch.rpc import ClientJob, Gaps

PAUSE_AFTER_ERROR_S = 0.2
RESERVED_TOKEN_IDS = 8
LEAST_FIRST_TOKENS = 2  # a request of one token has no gap


@dataclass
class Request:
    """A row of the frame `requests`. Under a demand `submitted_ns` is when it was due."""

    request_id: int
    prompt_tokens: int
    submitted_ns: int
    output_tokens: int = 0
    first_token_ns: int | None = None
    done_ns: int | None = None
    error: str | None = None


class Load:
    """Streaming completions, in slots that never rest or at the times at which they are due."""

    def __init__(self, job: ClientJob, key: str) -> None:
        self.job = job
        self.headers = {"Authorization": f"Bearer {key}"}
        self.url = f"http://127.0.0.1:{job.port}/v1/completions"
        self.tasks: set[asyncio.Task[None]] = set()
        self.session: aiohttp.ClientSession | None = None
        self.forget()

    def forget(self) -> None:
        """Empty records."""
        self.request_ids, self.numbers, self.arrivals_ns = array.array("q"), array.array("q"), array.array("q")
        self.requests: list[Request] = []
        self.gaps_ms = array.array("d")
        self.streaming: dict[int, int] = {}  # request -> when its last token came
        self.silent_slots: set[int] = set()
        self.unanswered: dict[int, int] = {}  # request that was due -> when, until its first token came
        self.most_lag_ns = self.failed = 0
        self.last_error: str | None = None

    def prompt(self, request_id: int) -> list[int]:
        """Random token ids, different for every request, the same in every run with this seed."""
        draw = np.random.default_rng((self.job.seed, request_id))
        ids: list[int] = draw.integers(RESERVED_TOKEN_IDS, self.job.vocab_size, self.job.prompt_tokens).tolist()
        return ids

    def first_tokens(self, slot: int) -> int:
        """How long a slot's first output is: a random part of a whole one, or requests would end all at once."""
        if not self.job.stagger:
            return self.job.output_tokens
        draw = random.Random(f"{self.job.seed}/first/{slot}")
        return draw.randint(min(LEAST_FIRST_TOKENS, self.job.output_tokens), self.job.output_tokens)

    def body(self, request_id: int, output_tokens: int) -> dict[str, Any]:
        """One request: token ids in, token ids out, exactly `output_tokens` of them."""
        return {
            "model": self.job.model,
            "prompt": self.prompt(request_id),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "detokenize": False,
            "stream": True,
            "return_token_ids": True,
            "temperature": 0.0,
        }

    def body_bytes(self, request_id: int, output_tokens: int) -> bytes:
        """The body as it is sent."""
        return json.dumps(self.body(request_id, output_tokens)).encode()

    async def send_request(self, row: Request, body: bytes, output_tokens: int, slot: int | None = None) -> None:
        """Send one request and note the arrival of every token in its row, or the error."""
        request_id = row.request_id
        self.requests.append(row)
        headers = self.headers | {"Content-Type": "application/json"}
        assert self.session is not None
        try:
            async with self.session.post(self.url, data=body, headers=headers) as response:
                if response.status != 200:
                    raise OSError(f"HTTP {response.status}: {(await response.text())[:300]}")
                await self.read_stream(response, row, slot)
            if row.output_tokens != output_tokens:
                raise OSError(f"stream ended after {row.output_tokens} of {output_tokens} tokens")
            row.done_ns = time.monotonic_ns()
        except (OSError, aiohttp.ClientError, ValueError) as error:
            row.error = self.last_error = f"{type(error).__name__}: {error}"
            self.failed += 1
        finally:
            self.streaming.pop(request_id, None)
            self.unanswered.pop(request_id, None)
        if row.error:
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def read_stream(self, response: aiohttp.ClientResponse, row: Request, slot: int | None) -> None:
        """Server-sent events to token rows; what came together came at one time, taken before it is parsed."""
        rest = b""
        async for part in response.content.iter_any():
            now = time.monotonic_ns()
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    self.note(json.loads(line[6:]), row, now)
            if slot in self.silent_slots and row.output_tokens:
                self.silent_slots.remove(slot)

    def note(self, event: dict[str, Any], row: Request, now: int) -> None:
        """The tokens of one event; raises OSError for one that tells an error."""
        if "error" in event:
            raise OSError(str(event["error"])[:300])
        for choice in event.get("choices", []):
            for _ in choice.get("token_ids") or []:
                if row.first_token_ns is None:
                    row.first_token_ns = now
                    self.unanswered.pop(row.request_id, None)
                else:
                    self.gaps_ms.append((now - self.streaming[row.request_id]) / 1e6)
                self.streaming[row.request_id] = now
                self.request_ids.append(row.request_id)
                self.numbers.append(row.output_tokens)
                self.arrivals_ns.append(now)
                row.output_tokens += 1

    async def slot(self, number: int) -> None:
        """One request after the other, for ever."""
        output_tokens = self.first_tokens(number)
        while True:
            request_id = self.next_id()
            body = self.body_bytes(request_id, output_tokens)
            row = Request(request_id, self.job.prompt_tokens, time.monotonic_ns())
            await self.send_request(row, body, output_tokens, number)
            output_tokens = self.job.output_tokens

    def next_id(self) -> int:
        """A number that no other request of this load has, of any process."""
        return self.job.process + self.job.processes * len(self.requests)

    async def arrive(self, due: Iterator[float], began_ns: int) -> None:
        """Send this process's share of the requests, each when it is due; none waits for another."""
        job = self.job
        for number, due_s in enumerate(due):
            if number % job.processes == job.process:
                body, due_ns = self.body_bytes(number, job.output_tokens), began_ns + int(due_s * 1e9)
                await until(due_ns)
                self.most_lag_ns = max(self.most_lag_ns, time.monotonic_ns() - due_ns)
                self.unanswered[number] = due_ns
                self.begin(self.send_request(Request(number, job.prompt_tokens, due_ns), body, job.output_tokens))

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a coroutine run until it ends or the load does."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def start(self, order: dict[str, Any]) -> None:
        """Begin the load with empty records."""
        self.forget()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        if order.get("arrivals", CLOSED) != CLOSED:
            due = due_times(order["arrivals"], order["rate"], order["draw"])
            self.begin(self.arrive(due, order.get("began_ns") or time.monotonic_ns()))
            return
        self.silent_slots = set(range(self.job.process, self.job.concurrency, self.job.processes))
        for number in sorted(self.silent_slots):
            self.begin(self.slot(number))

    async def stop(self, folder: str) -> None:
        """End the load (requests in flight are dropped: their tokens stay) and write the frames."""
        while self.tasks:
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
        columns = (self.request_ids, self.numbers, self.arrivals_ns)
        names = ("request_id", "sequence_number", "arrival_ns")
        write_frame(Path(folder), "gen", dict(zip(names, columns, strict=True)))
        rows = sorted(self.requests, key=lambda row: row.submitted_ns)
        kept = [field.name for field in fields(Request)]
        write_frame(Path(folder), "requests", {name: [getattr(row, name) for row in rows] for name in kept})

    def status(self) -> dict[str, Any]:
        """How far the load is. `silent`: slots that have had no token yet; `cpu`: a reading a process; `oldest_due_ns`:
        of the requests that were due and have had no token yet."""
        last = self.arrivals_ns[-1] if self.arrivals_ns else None
        return {
            "tokens": len(self.arrivals_ns), "last_ns": last, "failed_requests": self.failed, "error": self.last_error,
            "silent": len(self.silent_slots), "cpu": [cpu_reading()], "lag_ms": self.most_lag_ns / 1e6,
            "oldest_due_ns": min(self.unanswered.values(), default=None),
        }  # fmt: skip

    def gaps(self, since: int) -> Gaps:
        """The gaps after the first `since`, ms, and for how long the slowest stream has waited for its next token."""
        now = time.monotonic_ns()
        open_ms = max(((now - last) / 1e6 for last in self.streaming.values()), default=0.0)
        return Gaps(len(self.gaps_ms), self.gaps_ms[since:].tolist(), open_ms)

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        if order["do"] == "start":
            await self.start(order)
        elif order["do"] == "stop":
            await self.stop(order["to"])
        elif order["do"] == "gaps":
            return asdict(self.gaps(order["since"]))
        return self.status()


def main() -> None:
    """Serve orders."""
    spare_pandas()
    run_ahead()
    job = ClientJob(**json.loads(sys.argv[1]))
    load = Load(job, os.environ["COLO_GEN_KEY"])
    asyncio.run(serve_orders(load.answer, job.socket))


if __name__ == "__main__":
    main()
