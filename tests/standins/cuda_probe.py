"""Stands in for the first CUDA client: what it gets is what scenario.json beside it says, or a GPU under MPS's limit.

`"probe"`: {"error": CODE, "name": NAME}, "hangs", or "says nothing"; `"gpus"`: how many it sees.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SMS = 132


def main() -> int:
    try:
        plan = json.loads(Path(__file__).with_name("scenario.json").read_text())
    except (OSError, ValueError):
        plan = {}
    told = plan.get("probe")
    if told == "hangs":
        time.sleep(3600)
    if told == "says nothing":
        print("Segmentation fault")
        return 139
    if isinstance(told, dict):
        print(json.dumps({"at": "cuInit"} | told))
        return 1
    percentage = int(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100"))
    gpu = {"name": "NVIDIA Stand-in", "sms": SMS * percentage // 100 // 2 * 2}
    seen = plan.get("gpus", len(os.environ.get("COLO_SEES", "0").split(",")))
    print(json.dumps({"gpus": [gpu] * seen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
