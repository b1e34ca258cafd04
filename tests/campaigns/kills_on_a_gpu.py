"""Kill each process of a run on a GPU while both workloads are under load, once, and look at what is said and left.

    python -m tests.campaigns.kills_on_a_gpu params/h200.yaml --set devices=1 --json kills.json

Each case is a `colo run` of its own with one long window, that of nsys with a capture. The moment is a few seconds into
the trial; the victim gets SIGKILL. What must hold: the launcher ends by itself within its deadlines and says which
process died, no process of ours lives, nothing of ours stays in /dev/shm or (after what the next start removes) below
/tmp, and the GPU's memory comes back. Standard library and the package alone, so that it runs where pytest is not.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from colo_lib.launch.rpc import remove_stale
from tests.campaigns.random_kills import Run, traces_left
from tests.processes import MARK, token_carriers, wait_until

# victim -> (steps, words of its command line, further parameters)
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "MPS server": ("step2", "nvidia-cuda-mps-server", ()),
    "LLM's engine core": ("step2", "VLLM::EngineCore", ()),
    "embedder": ("step2", "embed_worker.py", ()),
    "nsys": ("step1", "nsys", ("capture_s=4.0", "window_s=4.0")),
    "launcher": ("step2", "", ()),
}
AFTER_S = 4.0  # into the trial: warm-up over, both at work
COMES_S, ENDS_S, ORPHANS_S, MEMORY_S = 300.0, 240.0, 60.0, 20.0


def memory_used_mib(device: str) -> float:
    """Of the GPU with this index, by nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", device]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def victims(run: Run, words: str) -> list[int]:
    """Pids of the processes to kill."""
    if not words:
        return [] if run.over() else [run.process.pid]
    return [pid for pid, line in token_carriers().items() if words in line and "guardian.py" not in line]


def carry_out(name: str, params: str, sets: list[str], device: str) -> dict[str, Any]:
    """One case; what was seen."""
    steps, words, more = CASES[name]
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ[MARK] = secrets.token_hex(8)
    segments, began_s, before_mib = set(os.listdir("/dev/shm")), time.time(), memory_used_mib(device)
    options = ["window_s=30.0", f"steps={steps}", "blocks=1", "starts=1", f"runs_dir={folder}/runs", *more, *sets]
    run = Run(folder, [str(Path(params).resolve()), *(word for one in options for word in ("--set", one))],
              os.environ[MARK])  # fmt: skip
    try:
        partials = "runs/*/steps/*/*.partial"
        if words == "nsys":
            wait_until(lambda: run.over() or victims(run, words), COMES_S)
        else:
            wait_until(lambda: run.over() or any(folder.glob(partials)), COMES_S)
        time.sleep(AFTER_S)
        found = {pid: token_carriers().get(pid, "the launcher")[:160] for pid in victims(run, words)}
        struck_s = time.monotonic()
        for pid in list(found)[:1]:
            os.kill(pid, signal.SIGKILL)
        try:
            code: int | None = run.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            code = None
        ended_s = time.monotonic() - struck_s
        wait_until(lambda: not token_carriers(), ORPHANS_S)
        clean_s = time.monotonic() - struck_s
        remove_stale()  # what the next start does first: a launcher that was killed leaves its folder to it
        left = traces_left(segments, began_s)
        wait_until(lambda: memory_used_mib(device) <= before_mib + 64, MEMORY_S)
        trials = [json.loads(file.read_text()) for file in folder.glob("runs/*/steps/*/*/trial.json")]
        return {
            "victim": name, "found": found, "exit_code": code, "ended_s": round(ended_s, 1),
            "clean_s": round(clean_s, 1), "orphans": token_carriers(), "left": left,
            "memory_mib": [before_mib, memory_used_mib(device)],
            "trials": [(trial["step"], trial["status"], trial.get("reason")) for trial in trials],
            "said": run.told().splitlines()[-14:],
        }  # fmt: skip
    finally:
        for pid in token_carriers():
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    """Carry out the cases and tell each; 1 when something was left or the launcher hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("params")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--device", default="0", help="index of the GPU whose memory is looked at (default: 0)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=list(CASES))
    options = parser.parse_args()
    told, wrong = [], 0
    for name in options.only or CASES:
        case = carry_out(name, options.params, options.set, options.device)
        told.append(case)
        bad = not case["found"] or case["exit_code"] is None or case["orphans"] or case["left"]
        wrong += bool(bad)
        print(f"{name}: {'WRONG' if bad else 'as it should be'}: {json.dumps(case, indent=1)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(told, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
