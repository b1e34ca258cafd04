"""Starts the engines and keeps them until it is told to end: below `nsys launch`, all that one session can hold.

    python -m colo_lib.nsys.engine_host '{"out": FILE, "spec": {…}, "gen": true, "embed": true, …}'

FILE receives the handles of the running engines, or what went wrong. What `nsys launch` put into our environment, the
injection, is handed on to the engines, whose environments are allow-lists that would drop it. With `launches` we run
below nothing, and each engine below an `nsys launch` of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from colo_lib.child_environment import INJECTION
from colo_lib.errors import ColoError
from colo_lib.json_records import write_json
from colo_lib.launch.child import NOTES, ProfilerLaunch
from colo_lib.launch.engines import Engines
from colo_lib.launch.exec_under_profiler import LEFT_BEHIND
from colo_lib.nsys.session import JOB, HostReply


def hand_on_injection(known: list[str], originals: dict[str, str | None]) -> list[str]:
    """Move what nsys added to our environment aside, for the engines alone: a daemon of MPS must not be traced.

    `known` names what the launcher gave, `originals` the values that nsys wrote over. Returns the files that the
    injection made outside any folder of ours, and never removes.
    """
    changed = [name for name, value in originals.items() if os.environ.get(name) != value and name != "TMPDIR"]
    added = {name: os.environ[name] for name in [*os.environ] if name not in known or name in changed}
    # vLLM's engine core, forked without exec, would not be traced.
    os.environ[INJECTION] = json.dumps(added | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    for name in added:
        del os.environ[name]
    # TMPDIR among them: nsys keeps its own files in our private folder, the engines theirs where they always do.
    for name, value in originals.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    return sorted({value for value in added.values() if value.startswith(LEFT_BEHIND)})


def end(*_: Any) -> None:
    """SIGTERM: leave through every `finally`."""
    raise SystemExit(0)


def main() -> None:
    """Start, publish, wait, end."""
    job = JOB.validate_json(sys.argv[1])
    signal.signal(signal.SIGTERM, end)
    left_behind = hand_on_injection(job.known, job.originals)
    profilers = {
        engine: ProfilerLaunch(tuple(words), {"TMPDIR": str(job.runtime)}, job.runtime / NOTES.format(engine))
        for engine, words in job.launches.items()
    }
    engines = Engines(job.spec, job.runtime, job.logs, profilers, job.needed_gib)
    try:
        handles = engines.start(job.gen, job.embed, lambda text: print(text, flush=True))
        write_json(job.out, HostReply(left_behind, handles).plain())
        signal.pause()
    except ColoError as error:
        write_json(job.out, HostReply(left_behind, error=str(error)).plain())
        sys.exit(error.exit_code)
    finally:
        engines.stop()


if __name__ == "__main__":
    main()
