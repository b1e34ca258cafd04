"""Where a token's time goes in every captured step of some runs, for reading."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from colo_lib.analyse.chosen import gen_times
from colo_lib.params import Params
from colo_lib.parse.captures import captured_steps, read_capture, read_step_launches
from colo_lib.parse.run_folder import Run

PARTS = {
    "window_ns": "In the capture (ms)", "busy_ns": "Its kernels run (ms)", "switched_out_ns": "Switched out (ms)",
    "waiting_ns": "Waiting for the device (ms)", "host_ns": "Host (ms)", "unattributed_ns": "Launch unknown (ms)",
}  # fmt: skip
COLUMNS = ["Cell", "Step", "In flight", "Tokens seen", "A token in trials (ms)", *PARTS.values()]


def of_runs(runs: Mapping[str, Run], params: Params) -> pd.DataFrame:
    """A row a captured step that ran gen on one device: `chosen.gen_times` beside 1 / the rate of the step's trials.

    `runs`: name -> run; `params`: the notebook's, which may name the processes.
    """
    rows = []
    for name, run in runs.items():
        for step in captured_steps(run.folder):
            one, many = read_capture(run.folder, step), run.params.gen_concurrency
            launches = read_step_launches(one.files, one.capture)
            times = gen_times(one.capture, one.facts, one.window_s, launches, params, many)
            counted = run.trials[(run.trials["step"] == step) & (run.trials["status"] == "done")]
            if times is not None:
                rate = counted["recorded_gen_tokens_per_s"].mean()
                told = {"Cell": name, "Step": step, "In flight": str(many), "Tokens seen": f"{times['tokens']:.1f}"}
                told["A token in trials (ms)"] = f"{1e3 / rate:.2f}"
                rows.append(told | {title: f"{times[part] / 1e6:.2f}" for part, title in PARTS.items()})
    return pd.DataFrame(rows, columns=COLUMNS)
