"""A foreign embedding server, in a process or a thread: OpenAI's `/v1/embeddings`, well or badly behaved.

python -m tests.launch.foreign_server BEHAVIOUR PORT
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 128  # of tests/models/nano-embed
ANSWER_S = 0.02
KEY = "secret-of-the-url"


class ForeignServer(ThreadingHTTPServer):
    """Embeds unless `behaviour` says otherwise; keeps what it was asked, and how many requests it had at once."""

    daemon_threads = True

    def __init__(self, behaviour: str = "works", port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.behaviour, self.models = behaviour, ["nano-embed"]
        self.asked: list[dict[str, Any]] = []
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class Answer(BaseHTTPRequestHandler):
    server: ForeignServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.server.behaviour == "lists nothing":
            self._send(404, {"error": "no such page"})
        else:
            self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(ANSWER_S)
        with self.server.lock:
            self.server.at_once -= 1
        self._answer(body, self.server.behaviour)

    def _answer(self, body: dict[str, Any], behaviour: str) -> None:
        statuses = {"busy": 503, "refuses": 400, "wants a key": 401, "breaks": 500}
        if behaviour == "wants a key" and self.headers.get("Authorization") == f"Bearer {KEY}":
            behaviour = "works"
        if behaviour in statuses:
            self._send(statuses[behaviour], {"error": "as it is told to"})
        elif behaviour == "floats" and body["encoding_format"] != "float":
            self._send(422, {"error": "encoding_format is float"})
        elif behaviour == "hangs up":
            self.close_connection = True
            self.connection.close()
        elif behaviour == "is a shop":
            self._send(200, {"welcome": "buy"})
        else:
            self._send(200, self._vectors(body, behaviour))

    def _vectors(self, body: dict[str, Any], behaviour: str) -> dict[str, Any]:
        vector = np.full(WIDTH * 2 if behaviour == "is wide" else WIDTH, 0.1, dtype="<f4")
        if behaviour == "is not finite":
            vector[3] = np.nan
        sent = vector.tolist() if body["encoding_format"] == "float" else base64.b64encode(vector.tobytes()).decode()
        count = 1 if behaviour == "sends one" else len(body["input"])
        tokens = sum(map(len, body["input"]))
        usage = {"prompt_tokens": tokens // 2 if behaviour == "cuts" else tokens}
        return {"data": [{"index": number, "embedding": sent} for number in range(count)], "usage": usage}

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


if __name__ == "__main__":
    ForeignServer(sys.argv[1], int(sys.argv[2])).serve_forever()
