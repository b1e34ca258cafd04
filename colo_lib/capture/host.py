"""Starts the engines below `nsys launch` and keeps them until it is told to end: what one session can hold.

    python -m colo_lib.capture.host '{"out": FILE, "params": {…}, "step": "step2", "gen": true, "embed": true, …}'

FILE receives the handles of the running engines, or what went wrong. What `nsys launch` put into our environment, the
injection, is handed on to the engines: their environments are allow-lists, which would drop it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colo_lib.capture.manifest import write_json
from colo_lib.errors import ColoError
from colo_lib.launch.engines import Engines
from colo_lib.launch.placement import place
from colo_lib.launch.process import PASSED_ON
from colo_lib.params import check

LEFT_BEHIND = "/tmp/injection_config_"


def hand_on_injection(known: list[str], temporary: str | None) -> None:
    """Have every child inherit what nsys added to the environment that the launcher gave it (`known` names)."""
    added = [name for name in os.environ if name not in known and name != PASSED_ON]
    # vLLM's engine core, forked without exec, would not be traced.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ[PASSED_ON] = ",".join([*added, "LD_PRELOAD", "LD_LIBRARY_PATH", "VLLM_WORKER_MULTIPROC_METHOD"])
    # nsys keeps its own files in our private folder; the engines keep theirs, and their caches, where they always do.
    os.environ.pop("TMPDIR", None)
    if temporary is not None:
        os.environ["TMPDIR"] = temporary


def left_behind() -> list[str]:
    """Files that the injection made outside any temporary folder of ours, and never removes."""
    return sorted({value for value in os.environ.values() if value.startswith(LEFT_BEHIND)})


def end(*_: Any) -> None:
    """SIGTERM: leave through every `finally`."""
    raise SystemExit(0)


def main() -> None:
    """Start, publish, wait, end."""
    job = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, end)
    hand_on_injection(job["known"], job["temporary"])
    params, out = check(job["params"], "capture"), Path(job["out"])
    engines = Engines(params, place(job["step"], params), Path(job["runtime"]), Path(job["logs"]))
    try:
        handles = engines.start(job["gen"], job["embed"], lambda text: print(text, flush=True))
        write_json(out, {"handles": asdict(handles), "left_behind": left_behind()})
        signal.pause()
    except ColoError as error:
        write_json(out, {"error": str(error), "left_behind": left_behind()})
        sys.exit(error.exit_code)
    finally:
        engines.stop()


if __name__ == "__main__":
    main()
