"""In place of `colo_lib.nsys.engine_host`: no engines, one process that answers an embedding worker's orders at once.

With `launches` that process is started below nsys, by itself; `capture_host.py SOCKET` is it.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path

from colo_lib.child_environment import child_environment
from colo_lib.launch.child import NOTES, Child, ProfilerLaunch

ROWS = array.array("q")


class Orders(socketserver.StreamRequestHandler):
    """start, status and stop of `embed_worker`, a batch a millisecond."""

    def handle(self) -> None:
        for line in self.rfile:
            order = json.loads(line)
            if order["do"] == "stop":
                Path(order["to"]).write_bytes(ROWS.tobytes())
            now = time.monotonic_ns()
            ROWS.extend((now - 1_000_000, now, 8, 512))
            told = {"batches": len(ROWS) // 4, "last_done_ns": now, "error": None}
            self.wfile.write((json.dumps(told) + "\n").encode())


class Server(socketserver.ThreadingUnixStreamServer):
    """A thread a connection."""

    daemon_threads = True


def below(runtime: Path, words: list[str], path: str) -> tuple[Child, int]:
    """The engine's process below nsys, and its pid once it serves."""
    wrap = ProfilerLaunch(tuple(words), {"TMPDIR": str(runtime)}, runtime / NOTES.format("embed"))
    command, env = wrap.around([sys.executable, __file__, path], child_environment({}), {})
    child = Child("embed", command, runtime / "embed.log", env=env)
    while not Path(path).exists():
        if not child.running():
            raise RuntimeError(child.tail())
        time.sleep(0.02)
    return child, wrap.engine_pid()


def main() -> None:
    """Serve orders, publish the handles, wait."""
    job = json.loads(sys.argv[1])
    path = str(Path(job["runtime"]) / "embed0.sock")
    Path(path).unlink(missing_ok=True)
    pid, child = os.getpid(), None
    if words := job["launches"].get("embed"):
        child, pid = below(Path(job["runtime"]), words, path)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    else:
        threading.Thread(target=Server(path, Orders).serve_forever, daemon=True).start()
    embed = {"socket": path, "pid": pid, "log": os.devnull}
    handles = {"key": "stand-in", "owner_pid": os.getpid(), "gen": None, "embeds": [embed]}
    left = sorted(value for name, value in os.environ.items() if name == "QUADD_INJECTION_CONFIG")
    out = Path(job["out"])
    out.with_suffix(".new").write_text(json.dumps({"handles": handles, "left_behind": left}))
    out.with_suffix(".new").rename(out)
    try:
        signal.pause()
    finally:
        if child is not None:
            child.stop()


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        main()
    else:
        Server(sys.argv[1], Orders).serve_forever()
