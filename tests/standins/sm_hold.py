"""Stands in for the timing of a matrix product under a hold: it is slowed as the SMs demand, or as scenario.json says.

`"hold"`: {BACKEND: {"error": WHY}} or {BACKEND: {"factor": F}}, F times what the share of the SMs demands; the backend
of a partition of the daemon's own is `mps-static`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SMS, SMS_A_CHUNK, FREE_MS = 132, 8, 0.2


def main() -> int:
    spec = json.loads(sys.argv[1])
    try:
        plan = json.loads(Path(__file__).with_name("scenario.json").read_text())
    except (OSError, ValueError):
        plan = {}
    partition = os.environ.get("CUDA_MPS_SM_PARTITION")
    told = plan.get("hold", {}).get("mps-static" if partition else spec["backend"], {})
    if "error" in told:
        print(json.dumps(told))
        return 1
    factor = told.get("factor", 1.0)
    if partition:
        sms = int(partition.rpartition("x")[2]) * SMS_A_CHUNK
        # The larger partition is the one that the other is compared with.
        slowed = FREE_MS * SMS / sms * (factor if sms < SMS / 2 else 1.0)
        print(json.dumps({"visible_sms": sms, "held_sms": None, "free_ms": slowed, "held_ms": slowed}))
        return 0
    held = -(-spec["sms"] // 8) * 8
    answer = {"visible_sms": SMS, "held_sms": held, "free_ms": FREE_MS, "held_ms": FREE_MS * SMS / held * factor}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
