"""The load on an embedding server: a closed loop at a set concurrency, in a process of its own, a row a request.

    python -m colo_lib.launch.embed_client '{"socket": …, "url": …, "concurrency": …, …}'

The API key comes in `COLO_EMBED_KEY`. Orders, answers, rows and times are those of `embed_worker`: start, status, stop
(`to` is the file that receives the rows), quit. A request holds `batch_size` sequences of `sequence_tokens` token ids
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from colo_lib.launch.client_orders import run_ahead, serve_orders
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
    """Closed loop of embedding requests; every slot has one in flight."""

    def __init__(self, job: EmbedClientJob, key: str) -> None:
        self.job = job
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.rows, self.sent = array.array("q"), 0
        self.slots: list[asyncio.Task[None]] = []
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

    async def send_request(self, session: aiohttp.ClientSession) -> None:
        """One request and its row; raises EmbedAnswerWrong for an answer that is not what was asked for."""
        job, number = self.job, self.sent
        self.sent += 1
        body = request_body(job.model, self.inputs(number), job.encoding)
        started_ns = time.monotonic_ns()
        async with session.post(f"{job.url}/v1/embeddings", json=body, headers=self.headers) as response:
            content = await response.read()
            done_ns = time.monotonic_ns()
            if response.status != 200:
                raise EmbedAnswerWrong(http_sentence(response.status, content))
        check_answer(content, job.batch_size, job.width, job.batch_size * job.sequence_tokens)
        self.rows.extend((started_ns, done_ns, job.batch_size, job.batch_size * job.sequence_tokens))

    async def slot(self, session: aiohttp.ClientSession) -> None:
        """One request after the other, until told to end or one fails."""
        while self.going:
            try:
                await self.send_request(session)
            except EmbedAnswerWrong as error:
                self.fail(str(error))
            except (OSError, aiohttp.ClientError) as error:
                self.fail(f"the embedding server is not to be reached ({type(error).__name__}: {error}): see its log")

    def fail(self, sentence: str) -> None:
        """Keep the first failure, and send nothing more."""
        self.error, self.going = self.error or sentence, False

    async def start(self) -> None:
        """Begin the load with empty records."""
        self.rows, self.error, self.going = array.array("q"), None, True
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        self.slots = [asyncio.create_task(self.slot(self.session)) for _ in range(self.job.concurrency)]

    async def stop(self, to: str) -> None:
        """End the load when what is in flight has come back, and write the rows."""
        self.going = False
        if self.slots:
            _, late = await asyncio.wait(self.slots, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self.slots, return_exceptions=True)
            await self.session.close()
        self.slots = []
        Path(to).write_bytes(self.rows.tobytes())

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order."""
        if order["do"] == "start":
            await self.start()
        elif order["do"] == "stop":
            await self.stop(order["to"])
        return self.status()

    def status(self) -> dict[str, Any]:
        """How far the load is, as `embed_worker` tells it."""
        done = len(self.rows) // 4
        last_ns = self.rows[4 * done - 3] if done else None
        return {"batches": done, "last_done_ns": last_ns, "error": self.error, "pid": os.getpid()}


def main() -> None:
    """Serve orders."""
    run_ahead()
    job = EmbedClientJob(**json.loads(sys.argv[1]))
    load = EmbedLoad(job, os.environ.get("COLO_EMBED_KEY", ""))
    asyncio.run(serve_orders(load.answer, job.socket))


if __name__ == "__main__":
    main()
