"""How a load client is told what to do: JSON lines on a Unix socket, an answer each, until it is told to quit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

# An order in, its answer out; `quit` does not reach it.
Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def serve_orders(answer: Answer, path: str) -> None:
    """Answer orders on the socket at `path` until told to quit."""
    over = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            order = json.loads(line)
            if order["do"] == "quit":
                over.set()
            reply = {} if over.is_set() else await answer(order)
            writer.write((json.dumps(reply) + "\n").encode())
            with contextlib.suppress(ConnectionError):  # who asked gave up
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(converse, path):
        await over.wait()


def run_ahead() -> None:
    """Run ahead of the engines where the system lets it, so that arrivals are timed when they come; open many files."""
    with contextlib.suppress(PermissionError):
        os.nice(-5 if os.nice(0) >= 0 else 0)
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_reading() -> list[int]:
    """[monotonic ns, CPU time of this process ns]: two of them tell what share of a core it used."""
    return [time.monotonic_ns(), time.process_time_ns()]


async def until(due_ns: int) -> None:
    """Sleep until a monotonic time; one that has passed is no reason to rest."""
    while (left_ns := due_ns - time.monotonic_ns()) > 0:
        await asyncio.sleep(left_ns / 1e9)
