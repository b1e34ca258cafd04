"""The load on an embedding server: a closed loop or requests that are due, in a process of its own, a row a request.

    python -m colo_lib.launch.embed_client '{"socket": …, "url": …, "concurrency": …, …}'

The API key comes in `COLO_EMBED_KEY`. Orders, answers, rows and times are those of `embed_worker`: start, status, stop
(`to` is the file that receives the rows), quit. Under a demand a row starts when its request was due.

A request holds `batch_size` sequences of `sequence_tokens` token ids
that no other request of the run repeats. The first answer that is not what was asked for ends the load: its sentence
is the load's `error`, and the owner fails the trial with it.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from colo_lib.launch.arrivals import CLOSED, due_times
from colo_lib.launch.client_orders import run_ahead, serve_orders, until
from colo_lib.launch.embed_answer import EmbedAnswerWrong, check_answer, http_sentence, request_body
from colo_lib.launch.gen_client import RESERVED_TOKEN_IDS

# Requests in flight at the end are waited for: the part of them inside the window counts.
DRAIN_S = 100.0


@dataclass(frozen=True)
class EmbedClientJob:
    """What the client is started with, as JSON: where the server is, how many requests at once, of which shape."""

    socket: str
    url: str
    """Of the server, without `/v1/embeddings`."""
    model: str
    """As the server calls it."""
    encoding: str
    """How the server sends vectors: `base64` or `float`."""
    width: int
    """Numbers a vector."""
    concurrency: int
    batch_size: int
    sequence_tokens: int
    vocab_size: int
    seed: int
    load: int
    """Names this load among the run's: no two of them have an input in common."""


class EmbedLoad:
    """Embedding requests, in slots that never rest or at the times at which they are due."""

    def __init__(self, job: EmbedClientJob, key: str) -> None:
        self.job = job
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.rows, self.sent, self.most_lag_ns = array.array("q"), 0, 0
        self.undone: dict[int, int] = {}  # request that was due -> when
        self.arriving = False
        self.slots: set[asyncio.Task[None]] = set()
        self.going = False
        self.error: str | None = None

    def inputs(self, number: int) -> list[list[int]]:
        """Token ids of the `number`-th request: (batch_size, sequence_tokens), the same in every run with this seed.

        All different within a sequence where the vocabulary has as many.
        """
        job, draw = self.job, np.random.default_rng((self.job.seed, self.job.load, number))
        if job.sequence_tokens <= job.vocab_size - RESERVED_TOKEN_IDS:
            ids = [
                draw.choice(job.vocab_size - RESERVED_TOKEN_IDS, job.sequence_tokens, replace=False)
                for _ in range(job.batch_size)
            ]
            return [(row + RESERVED_TOKEN_IDS).tolist() for row in ids]
        shape = (job.batch_size, job.sequence_tokens)
        longer: list[list[int]] = draw.integers(RESERVED_TOKEN_IDS, job.vocab_size, shape).tolist()
        return longer

    def next_body(self) -> tuple[int, bytes]:
        """Number and body of the next request."""
        number = self.sent
        self.sent += 1
        return number, json.dumps(request_body(self.job.model, self.inputs(number), self.job.encoding)).encode()

    async def send_request(self, session: aiohttp.ClientSession, body: bytes, started_ns: int) -> None:
        """One request and its row; raises EmbedAnswerWrong for an answer that is not what was asked for."""
        job, headers = self.job, self.headers | {"Content-Type": "application/json"}
        async with session.post(f"{job.url}/v1/embeddings", data=body, headers=headers) as response:
            content = await response.read()
            done_ns = time.monotonic_ns()
            if response.status != 200:
                raise EmbedAnswerWrong(http_sentence(response.status, content))
        check_answer(content, job.batch_size, job.width, job.batch_size * job.sequence_tokens)
        self.rows.extend((started_ns, done_ns, job.batch_size, job.batch_size * job.sequence_tokens))

    async def slot(self, session: aiohttp.ClientSession) -> None:
        """One request after the other, until told to end or one fails."""
        while self.going:
            _, body = self.next_body()
            await self.attempt(session, body, time.monotonic_ns())

    async def attempt(self, session: aiohttp.ClientSession, body: bytes, started_ns: int) -> None:
        """One request, or the end of the load with the reason why it failed."""
        try:
            await self.send_request(session, body, started_ns)
        except EmbedAnswerWrong as error:
            self.fail(str(error))
        except (OSError, aiohttp.ClientError) as error:
            self.fail(f"the embedding server is not to be reached ({type(error).__name__}: {error}): see its log")

    async def arrive(self, session: aiohttp.ClientSession, due: Iterator[float], began_ns: int) -> None:
        """Send requests when they are due, none waiting for another, until told to end or one fails."""
        for due_s in due:
            (number, body), due_ns = self.next_body(), began_ns + int(due_s * 1e9)
            await until(due_ns)
            if not self.going:
                break
            self.most_lag_ns = max(self.most_lag_ns, time.monotonic_ns() - due_ns)
            self.undone[number] = due_ns
            task = asyncio.create_task(self.one_due(session, number, body, due_ns))
            self.slots.add(task)
            task.add_done_callback(self.slots.discard)

    async def one_due(self, session: aiohttp.ClientSession, number: int, body: bytes, due_ns: int) -> None:
        """A request that was due, done or failed."""
        await self.attempt(session, body, due_ns)
        self.undone.pop(number, None)

    def fail(self, sentence: str) -> None:
        """Keep the first failure, and send nothing more."""
        self.error, self.going = self.error or sentence, False

    async def start(self, order: dict[str, Any]) -> None:
        """Begin the load with empty records."""
        self.rows, self.error, self.going = array.array("q"), None, True
        self.undone, self.most_lag_ns = {}, 0
        self.arriving = order.get("arrivals", CLOSED) != CLOSED
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        if self.arriving:
            due = due_times(order["arrivals"], order["rate"], order["draw"])
            self.slots = {asyncio.create_task(self.arrive(self.session, due, time.monotonic_ns()))}
            return
        self.slots = {asyncio.create_task(self.slot(self.session)) for _ in range(self.job.concurrency)}

    async def stop(self, to: str) -> None:
        """End the load when what is in flight has come back, and write the rows.

        Requests that were due are not waited for: who measures has waited for those that count.
        """
        self.going = False
        if self.slots:
            _, late = await asyncio.wait(self.slots, timeout=0.0 if self.arriving else DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self.slots, return_exceptions=True)
            await self.session.close()
        self.slots = set()
        Path(to).write_bytes(self.rows.tobytes())

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        if order["do"] == "start":
            await self.start(order)
        elif order["do"] == "stop":
            await self.stop(order["to"])
            return self.status() | {"undone_due_ns": sorted(self.undone.values())}
        return self.status()

    def status(self) -> dict[str, Any]:
        """How far the load is, as `embed_worker` tells it."""
        done = len(self.rows) // 4
        last_ns = self.rows[4 * done - 3] if done else None
        return {
            "batches": done, "last_done_ns": last_ns, "error": self.error, "pid": os.getpid(),
            "lag_ms": self.most_lag_ns / 1e6, "oldest_due_ns": min(self.undone.values(), default=None),
        }  # fmt: skip


def main() -> None:
    """Serve orders."""
    run_ahead()
    job = EmbedClientJob(**json.loads(sys.argv[1]))
    load = EmbedLoad(job, os.environ.get("COLO_EMBED_KEY", ""))
    asyncio.run(serve_orders(load.answer, job.socket))


if __name__ == "__main__":
    main()
