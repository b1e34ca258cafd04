"""Engines without a model: what the launcher starts, asks and kills, in a second instead of in half a minute.

`make(folder)` gives an interpreter for `gen_python`. Under it vLLM's server becomes a small HTTP server with an engine
core of its own (a process that outlives a killed server, as vLLM's does, holds a segment of shared memory and leaves a
file in the temporary folder), and the embedding worker keeps its protocol and sleeps where the model would compute.

    python engines.py gen --port N …        python engines.py core PYTHON        python engines.py embed JOB
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

TOKEN_S, BATCH_S = 0.01, 0.02
START_S = 1.0
WORKER = Path(__file__).parents[2] / "colo_lib" / "launch" / "embed_worker.py"
INTERPRETER = """#!{python} -IS
import os, sys
words = sys.argv[1:]
if "vllm.entrypoints.openai.api_server" in words:
    words = [{here!r}, "gen", *words[2:]]
elif words and words[0].endswith("embed_worker.py"):
    words = [{here!r}, "embed", words[1]]
os.execv({python!r}, [{python!r}, *words])
"""


def make(folder: Path) -> Path:
    """Write the interpreter into `folder`; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "python"
    file.write_text(INTERPRETER.format(python=sys.executable, here=str(Path(__file__).resolve())))
    file.chmod(0o755)
    return file


class Server:
    """The part of vLLM's OpenAI server that the launcher and its client use."""

    def __init__(self) -> None:
        self.tokens = self.gaps = 0

    async def health(self, _: Any) -> Any:
        """Ready as soon as it listens."""
        from aiohttp import web

        return web.Response()

    async def metrics(self, _: Any) -> Any:
        """vLLM's counters."""
        from aiohttp import web

        told = {
            "generation_tokens_total": self.tokens,
            "inter_token_latency_seconds_sum": self.gaps * TOKEN_S,
            "inter_token_latency_seconds_count": self.gaps,
            "prompt_tokens_cached_total": 0,
        }
        return web.Response(text="".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in told.items()))

    async def completions(self, request: Any) -> Any:
        """A token every `TOKEN_S`, streamed if asked for."""
        from aiohttp import web

        body = await request.json()
        if not body.get("stream"):
            self.tokens += body["max_tokens"]
            return web.json_response({"choices": [{"token_ids": [1] * body["max_tokens"]}]})
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(body["max_tokens"]):
            await asyncio.sleep(TOKEN_S)
            self.tokens, self.gaps = self.tokens + 1, self.gaps + (number > 0)
            await response.write(b'data: {"choices": [{"token_ids": [1]}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response


def serve_gen(words: list[str]) -> None:
    """Start the core, listen, and end when the core does."""
    from aiohttp import web

    named = ["VLLM::EngineCore", __file__, "core", sys.executable]
    core = subprocess.Popen(named, executable=sys.executable, stdout=subprocess.PIPE)
    assert core.stdout is not None
    core.stdout.readline()
    signal.signal(signal.SIGTERM, lambda *_: (core.terminate(), sys.exit(0)))
    threading.Thread(target=lambda: (core.wait(), os._exit(1)), daemon=True).start()
    server, app = Server(), web.Application()
    app.router.add_get("/health", server.health)
    app.router.add_get("/metrics", server.metrics)
    app.router.add_post("/v1/completions", server.completions)
    web.run_app(app, host="127.0.0.1", port=int(words[words.index("--port") + 1]), print=None)


def serve_core(python: str) -> None:
    """Hold shared memory and a file until told to end: a killed parent is not noticed."""
    multiprocessing.set_executable(python)  # of the process that tracks the segment: our own name is none
    segment = shared_memory.SharedMemory(create=True, size=4096)
    Path(tempfile.gettempdir(), f"rendezvous-{os.getpid()}").touch()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    time.sleep(START_S)
    print("ready", flush=True)
    over.wait()
    segment.close()
    segment.unlink()


class Batch:
    """Stands for a tensor of (sequences, tokens) ids."""

    def __init__(self, sequences: int, tokens: int) -> None:
        self.sequences, self.tokens = sequences, tokens

    def __len__(self) -> int:
        return self.sequences

    def numel(self) -> int:
        """Ids in it."""
        return self.sequences * self.tokens

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` sequences."""
        return [Batch(min(size, self.sequences - at), self.tokens) for at in range(0, self.sequences, size)]


def serve_embed(job: dict[str, Any]) -> None:
    """The worker's own loop and orders around a model that only takes time."""
    found = importlib.util.spec_from_file_location("embed_worker", WORKER)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    class Worker(module.Worker):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.job = job
            self.inputs = [Batch(job["batch_size"], job["sequence_tokens"])] * module.INPUT_VARIANTS
            self.rows = module.array.array("q")
            self.going, self.idle, self.over, self.rest_over = (threading.Event() for _ in range(4))
            self.idle.set()
            self.pacing, self.error = module.Pacing(), None

        def forward(self, inputs: Any) -> None:
            time.sleep(BATCH_S * len(inputs) / job["batch_size"])

        def facts(self) -> dict[str, Any]:
            return {"torch": "none", "transformers": "none", "parameters": 0}

    time.sleep(START_S)
    worker = Worker()
    threading.Thread(target=worker.serve, args=(job["socket"],), daemon=True).start()
    worker.loop()


if __name__ == "__main__":
    if sys.argv[1] == "gen":
        serve_gen(sys.argv[2:])
    elif sys.argv[1] == "core":
        serve_core(sys.argv[2])
    else:
        serve_embed(json.loads(sys.argv[2]))
