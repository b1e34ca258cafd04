"""The owner's side of an embedding server: vLLM's own, started for this run, or one that already runs somewhere.

Both are asked the same first question before they count as ready, one sequence of the length that the load will send:
whether they serve the model that was asked for, with vectors of its width.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from colo_lib.errors import InputError, StepFailed
from colo_lib.launch.child import ProfilerLaunch
from colo_lib.launch.embed_answer import EmbedAnswerWrong, check_answer, http_sentence, request_body
from colo_lib.launch.specs import EmbedServerSpec, EmbedSpec
from colo_lib.launch.vllm_server import VllmServer, free_port, run_key, server_environment

SERVED_NAME = "embed"
KEY_NAME = "COLO_EMBED_KEY"
FIRST_ANSWER_S = 60.0
LIST_S = 10.0
ENCODINGS = ("base64", "float")
# vLLM refuses to start where less than this share of the GPU is free; what it takes is the bytes that it is given.
LEAST_MEMORY_SHARE = 0.01
# Ids are sent, and vectors come back: of a tokenizer vLLM's front end for pooling only wants that there is one.
WORDS = 1000
UNKNOWN, PADDING = "[UNK]", "[PAD]"


@dataclass(frozen=True)
class EmbedServerHandle:
    """How to reach an embedding server from any process of this run; `key` never enters the run folder.

    `pid` is None for a server at a URL whose process is not on this machine, or not to be seen from here.
    """

    url: str
    key: str = field(repr=False)
    model: str
    encoding: str
    width: int
    pid: int | None
    log: str
    """Empty where the server is not ours."""


def embed_command(spec: EmbedSpec, port: int, tokenizer: Path) -> list[str]:
    """The command line of vLLM's server for embeddings."""
    server = spec.server
    assert server is not None
    words = [str(spec.python), "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", spec.model, "--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--runner", "pooling", "--convert", "embed"]
    words += ["--pooler-config", json.dumps({"pooling_type": spec.pooling.upper()})]
    words += ["--dtype", spec.dtype, "--max-model-len", str(spec.sequence_tokens)]
    words += ["--max-num-seqs", str(server.max_num_seqs)]
    # A cached prefix would turn a repeated input into no work at all.
    words += ["--no-enable-prefix-caching", "--seed", str(spec.seed), "--disable-uvicorn-access-log"]
    if spec.dummy:
        words += ["--load-format", "dummy", "--tokenizer", str(tokenizer)]
    if server.enforce_eager:
        words += ["--enforce-eager"]
    if spec.device == "cuda":
        words += ["--gpu-memory-utilization", str(LEAST_MEMORY_SHARE)]
        if server.kv_cache_gib:
            words += ["--kv-cache-memory-bytes", str(int(server.kv_cache_gib * 2**30))]
    return words


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of a thousand words in `folder`, for models whose weights are random; nothing is read with it."""
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, PADDING, *map(str, range(WORDS))])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN, "pad_token": PADDING}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | dict.fromkeys(("normalizer", "post_processor"))))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


class EmbedServer(VllmServer):
    """embed's vLLM server, on `devices` of the placement."""

    def __init__(
        self,
        spec: EmbedSpec,
        devices: tuple[str, ...],
        log: Path,
        runtime: Path,
        shared: Mapping[str, str] = MappingProxyType({}),
        profiler: ProfilerLaunch | None = None,
    ) -> None:
        assert spec.server is not None
        self.spec, self.log, key, port = spec, log, run_key(), free_port()
        words = embed_command(spec, port, write_tokenizer(runtime / "tokenizer"))
        env = server_environment(spec, devices, 1, spec.server.kv_cache_gib, key, shared)
        super().__init__("embed", spec, devices, words, env, log, shared, profiler)
        self.url, self.key = f"http://127.0.0.1:{port}", key

    def works(self) -> bool:
        """A sequence embedded; raises StepFailed for vectors that are not the model's."""
        assert self.spec.server is not None
        with suppress(OSError):
            if exchange(self.url, "/health", self.key, None, 1.0)[0] == 200:
                return self._embeds()
        return False

    def _embeds(self) -> bool:
        try:
            first_answer(self.spec, self.url, SERVED_NAME, self.key)
            return True
        except EmbedAnswerWrong as error:
            raise StepFailed(f"embed: {error}; its last lines:\n{self.child.tail()}") from None

    @property
    def handle(self) -> EmbedServerHandle:
        """How it is reached."""
        assert self.spec.server is not None
        return EmbedServerHandle(
            url=self.url, key=self.key, model=SERVED_NAME, encoding=ENCODINGS[0], width=self.spec.server.width,
            pid=self.engine_pid(), log=str(self.log),
        )  # fmt: skip


class EmbedUrl:
    """A server that already runs at a URL: looked at, never started and never ended."""

    def __init__(self, spec: EmbedSpec) -> None:
        assert spec.server is not None
        self.spec, self.server = spec, spec.server
        self.answered: EmbedServerHandle | None = None

    def wait_ready(self, _: Callable[[str], None] = lambda _: None) -> float:
        """Ask it once; seconds it took. Raises StepFailed for a server that is not what was asked for."""
        start = time.monotonic()
        try:
            self.answered = look_at_url(self.spec)
        except InputError as error:
            raise StepFailed(str(error)) from None
        return time.monotonic() - start

    @property
    def handle(self) -> EmbedServerHandle:
        """How it is reached; after `wait_ready`."""
        assert self.answered is not None
        return self.answered

    def stop(self) -> None:
        """It is not ours to end."""


def look_at_url(spec: EmbedSpec) -> EmbedServerHandle:
    """The server at the spec's URL, which embeds as it should.

    Raises InputError, with the remedy, for one that is unreachable, answers with an error, or serves something else.
    """
    server, key = spec.server, os.environ.get(KEY_NAME, "")
    assert server is not None
    where = f"parameter 'embed_url' = {server.url!r}"
    try:
        model = served_model(server, key)
        encoding = first_answer(spec, server.url, model, key)
    except EmbedAnswerWrong as error:
        raise InputError(f"{where}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{where}: no embedding server answers there ({reason}): start it, or give the address of one that runs"
        ) from None
    return EmbedServerHandle(
        url=server.url, key=key, model=model, encoding=encoding, width=server.width, pid=local_pid(server.url), log=""
    )


def served_model(server: EmbedServerSpec, key: str) -> str:
    """By which of the wanted names the server calls its model; raises EmbedAnswerWrong where it serves none of them.

    A server that lists no models is taken at its word: its vectors are looked at all the same.
    """
    status, content = exchange(server.url, "/v1/models", key, None, LIST_S)
    if status in (401, 403):
        raise EmbedAnswerWrong(http_sentence(status, content))
    listed: list[dict[str, Any]] = []
    with suppress(ValueError, TypeError, AttributeError):
        listed = [row for row in json.loads(content).get("data", []) if isinstance(row, dict)] if status == 200 else []
    if not listed:
        return server.names[0]
    for row in listed:
        if {str(row.get("id")), str(row.get("root"))} & set(server.names):
            return str(row["id"])
    names = ", ".join(str(row.get("id")) for row in listed[:5])
    raise EmbedAnswerWrong(
        f"the embedding server serves {names}, and none of {', '.join(server.names)}: name the model that it serves in "
        "embed_model, and what it calls that in embed_url_model"
    )


def first_answer(spec: EmbedSpec, url: str, model: str, key: str) -> str:
    """How the server sends vectors, shown by one sequence; raises EmbedAnswerWrong as `check_answer` does, OSError."""
    assert spec.server is not None
    inputs = [[5 + number % 100 for number in range(spec.sequence_tokens)]]
    status, content = 0, b""
    for encoding in ENCODINGS:
        status, content = exchange(url, "/v1/embeddings", key, request_body(model, inputs, encoding), FIRST_ANSWER_S)
        if status == 200:
            check_answer(content, 1, spec.server.width, spec.sequence_tokens)
            return encoding
        if status not in (400, 422):
            break
    raise EmbedAnswerWrong(http_sentence(status, content))


def exchange(url: str, path: str, key: str, body: object, timeout_s: float) -> tuple[int, bytes]:
    """One HTTP exchange, no proxy asked: (status, body). Raises OSError or ValueError when it cannot be had."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


def local_pid(url: str) -> int | None:
    """The process that listens at a URL of this machine; None where it is another's, or not to be seen.

    Of several that share the port, as a server's workers do, the one that started the others.
    """
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not parts.hostname or not _here(parts.hostname, port):
        return None
    listening = set[int]()
    with suppress(psutil.Error, OSError):
        sockets = psutil.net_connections(kind="tcp")
        listening = {
            row.pid for row in sockets if row.status == psutil.CONN_LISTEN and row.laddr[1:] == (port,) and row.pid
        }
    with suppress(psutil.Error):
        for pid in sorted(listening):
            if not listening & {parent.pid for parent in psutil.Process(pid).parents()}:
                return pid
    return None


def _here(host: str, port: int) -> bool:
    """Whether a host's name is one of this machine's addresses."""
    mine = {address.address for rows in psutil.net_if_addrs().values() for address in rows}
    with suppress(OSError):
        return any(str(row[4][0]) in mine for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return False
