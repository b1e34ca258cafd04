"""The load on `gen`: a closed loop at a set concurrency, in a process of its own, a time for every token.

    python -m colo_lib.launch.gen_client '{"socket": …, "port": …, "concurrency": …, …}'

The API key comes in `COLO_GEN_KEY`. Orders, answers and times are those of `embed_worker`:
start, status, stop (`to` is the folder that receives gen.parquet and requests.parquet), quit; and `gaps` (`since`: how
many the asker has seen): the inter-token gaps that came after those, for whoever paces the other workload.
A request that fails is recorded with its error and never tried again: a retry would hide a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import aiohttp

from colo_lib.frames import write_frame
from colo_lib.launch.rpc import ClientJob, Gaps

PAUSE_AFTER_ERROR_S = 0.2
RESERVED_TOKEN_IDS = 8


@dataclass
class Request:
    """A row of the frame `requests`."""

    request_id: int
    prompt_tokens: int
    submitted_ns: int
    output_tokens: int = 0
    first_token_ns: int | None = None
    done_ns: int | None = None
    error: str | None = None


class Load:
    """Closed loop of streaming completions; every slot has one request in flight."""

    def __init__(self, job: ClientJob, key: str) -> None:
        self.job = job
        self.headers = {"Authorization": f"Bearer {key}"}
        self.url = f"http://127.0.0.1:{job.port}/v1/completions"
        self.tokens: list[tuple[int, int, int]] = []
        self.requests: list[Request] = []
        self.gaps_ms: list[float] = []
        self.streaming: dict[int, int] = {}  # request -> when its last token came
        self.slots: list[asyncio.Task[None]] = []
        self.last_error: str | None = None

    def prompt(self, request_id: int) -> list[int]:
        """Random token ids, different for every request, the same in every run with this seed."""
        draw = random.Random(self.job.seed * 1_000_003 + request_id)
        return [draw.randrange(RESERVED_TOKEN_IDS, self.job.vocab_size) for _ in range(self.job.prompt_tokens)]

    def body(self, request_id: int) -> dict[str, Any]:
        """One request: token ids in, token ids out, exactly `output_tokens` of them."""
        return {
            "model": self.job.model,
            "prompt": self.prompt(request_id),
            "max_tokens": self.job.output_tokens,
            "ignore_eos": True,
            "detokenize": False,
            "stream": True,
            "return_token_ids": True,
            "temperature": 0.0,
        }

    async def send_request(self, session: aiohttp.ClientSession) -> None:
        """Send one request and note the arrival of every token; errors go into its row."""
        request_id = len(self.requests)
        body = self.body(request_id)
        row = Request(request_id, self.job.prompt_tokens, submitted_ns=time.monotonic_ns())
        self.requests.append(row)
        try:
            async with session.post(self.url, json=body, headers=self.headers) as response:
                if response.status != 200:
                    raise OSError(f"HTTP {response.status}: {(await response.text())[:300]}")
                await self.read_stream(response, row)
            if row.output_tokens != self.job.output_tokens:
                raise OSError(f"stream ended after {row.output_tokens} of {self.job.output_tokens} tokens")
            row.done_ns = time.monotonic_ns()
            self.streaming.pop(request_id, None)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            row.error = self.last_error = f"{type(error).__name__}: {error}"
            self.streaming.pop(request_id, None)
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def read_stream(self, response: aiohttp.ClientResponse, row: Request) -> None:
        """Server-sent events to token rows; the time is taken before the line is parsed."""
        async for line in response.content:
            now = time.monotonic_ns()
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise OSError(str(event["error"])[:300])
            for choice in event.get("choices", []):
                for _ in choice.get("token_ids") or []:
                    if row.first_token_ns is None:
                        row.first_token_ns = now
                    else:
                        self.gaps_ms.append((now - self.streaming[row.request_id]) / 1e6)
                    self.streaming[row.request_id] = now
                    self.tokens.append((row.request_id, row.output_tokens, now))
                    row.output_tokens += 1

    async def slot(self, session: aiohttp.ClientSession) -> None:
        """One request after the other, for ever."""
        while True:
            await self.send_request(session)

    async def start(self) -> None:
        """Begin the load with empty records."""
        self.tokens, self.requests, self.last_error = [], [], None
        self.gaps_ms, self.streaming = [], {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        self.slots = [asyncio.create_task(self.slot(self.session)) for _ in range(self.job.concurrency)]

    async def stop(self, folder: str) -> None:
        """End the load (requests in flight are dropped: their tokens stay) and write the frames."""
        for task in self.slots:
            task.cancel()
        await asyncio.gather(*self.slots, return_exceptions=True)
        if self.slots:
            await self.session.close()
        self.slots = []
        columns = zip(*self.tokens, strict=True) if self.tokens else ((), (), ())
        names = ("request_id", "sequence_number", "arrival_ns")
        write_frame(Path(folder), "gen", dict(zip(names, map(list, columns), strict=True)))
        kept = [field.name for field in fields(Request)]
        write_frame(Path(folder), "requests", {name: [getattr(row, name) for row in self.requests] for name in kept})

    def status(self) -> dict[str, Any]:
        """How far the load is."""
        last = self.tokens[-1][2] if self.tokens else None
        failed = sum(row.error is not None for row in self.requests)
        return {"tokens": len(self.tokens), "last_ns": last, "failed_requests": failed, "error": self.last_error}

    def gaps(self, since: int) -> Gaps:
        """The gaps after the first `since`, ms, and for how long the slowest stream has waited for its next token."""
        now = time.monotonic_ns()
        open_ms = max(((now - last) / 1e6 for last in self.streaming.values()), default=0.0)
        return Gaps(len(self.gaps_ms), self.gaps_ms[since:], open_ms)


async def serve(load: Load, path: str) -> None:
    """Answer orders on a Unix socket until told to quit."""
    over = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            order = json.loads(line)
            if order["do"] == "start":
                await load.start()
            elif order["do"] == "stop":
                await load.stop(order["to"])
            elif order["do"] == "quit":
                over.set()
            reply = asdict(load.gaps(order["since"])) if order["do"] == "gaps" else load.status()
            writer.write((json.dumps(reply) + "\n").encode())
            with contextlib.suppress(ConnectionError):  # who asked gave up
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(converse, path):
        await over.wait()


def main() -> None:
    """Serve orders; runs ahead of the engines where the system lets it, so that arrivals are timed when they come."""
    with contextlib.suppress(PermissionError):
        os.nice(-5)
    job = ClientJob(**json.loads(sys.argv[1]))
    asyncio.run(serve(Load(job, os.environ["COLO_GEN_KEY"]), job.socket))


if __name__ == "__main__":
    main()
