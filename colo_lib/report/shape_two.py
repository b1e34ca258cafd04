"""What two devices were used for, shaped for reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from colo_lib.analyse.steps_table import number, with_interval
from colo_lib.analyse.two_devices import CHAIN
from colo_lib.report.meetings import StepMeetings

NONE = "—"
ACTIVITY = {
    "sm_active": "SMs active (%)", "dram_active": "DRAM in use (%)", "tensor_active": "Tensor cores (%)",
    "nvlink_gib_s": "NVLink (GiB/s)", "power_w": "Power (W)",
}  # fmt: skip
MEETINGS = {
    "tokens": "Tokens seen", "collectives_per_token": "Collectives a token", "exchange_p50_us": "Exchange, p50 (us)",
    "exchange_us_per_token": "Exchange (us a token)", "skew_p50_us": "Apart, p50 (us)",
    "skew_p99_us": "Apart, p99 (us)", "wait_us_per_token": "Waiting (us a token)",
}  # fmt: skip


TOKEN = {
    "token_ms": "In the capture (ms)", "own_ms": "Its own kernels (ms)",
    "waiting_ms": "Waiting for the other rank (ms)",
    "exchange_ms": "Rest of the collectives (ms)",
    "idle_ms": "Nothing of gen runs (ms)",
}  # fmt: skip


def chain(found: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a ratio of `two_devices.CHAIN`, a column a concurrency: mean [95 % interval]."""
    rows = []
    for what, (step, baseline) in CHAIN.items():
        row: dict[str, str] = {"What": what[0].upper() + what[1:], "Ratio of gen's tokens/s": f"{step} / {baseline}"}
        for concurrency, table in found.items():
            mine = table[table["what"] == what]
            told = NONE if mine.empty else with_interval(*mine[["ratio", "low", "high", "starts"]].iloc[0])
            row[_requests(concurrency)] = told
        rows.append(row)
    return pd.DataFrame(rows)


def rates(found: Mapping[int, pd.DataFrame], steps: list[str]) -> pd.DataFrame:
    """A row a step and concurrency: gen's tokens/s, gaps, embed's sequences/s, means over the trials that count."""
    columns = {
        "gen_tokens_per_s": "gen, tokens/s", "gap_p50_ms": "gap p50 (ms)", "gap_p99_ms": "gap p99 (ms)",
        "embed_sequences_per_s": "embed, sequences/s",
    }  # fmt: skip
    rows = []
    for concurrency, counted in found.items():
        means = counted.groupby("step")[list(columns)].mean()
        rows += [
            {"Step": step, "In flight": str(concurrency)}
            | {title: number(means.loc[step, name]) for name, title in columns.items()}
            for step in steps
            if step in means.index
        ]
    return pd.DataFrame(rows)


def activity(table: pd.DataFrame) -> pd.DataFrame:
    """`two_devices.activity` with its units in the heads."""
    shown = table[["step", "device"]].rename(columns={"step": "Step", "device": "GPU"}).astype(str)
    for name, title in ACTIVITY.items():
        shown[title] = [number(value) for value in table[name]]
    return shown


def meetings(met: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """A row a captured step: collectives, exchange, and how far apart the ranks arrive."""
    rows = []
    for step, told in met.items():
        share = told["rank0_waits"]
        row = {"Step": step} | {title: number(told[name]) for name, title in MEETINGS.items()}
        rows.append(row | {"Rank 0 is there first": NONE if share != share else f"{share:.0%}"})
    return pd.DataFrame(rows)


def token_times(captured: Mapping[str, StepMeetings], counted: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a captured step and rank: the parts of a token's time, beside 1 / the rate of the step's trials."""
    rows = []
    for step, one in captured.items():
        own = counted[one.concurrency]
        trials_ms = 1e3 / own.loc[own["step"] == step, "gen_tokens_per_s"].mean()
        for rank in one.ranks:
            row = {"Step": step, "GPU": f"{rank['device']:g}", "A token in trials (ms)": f"{trials_ms:.2f}"}
            rows.append(row | {title: f"{rank[name]:.2f}" for name, title in TOKEN.items()})
    return pd.DataFrame(rows, columns=["Step", "GPU", "A token in trials (ms)", *TOKEN.values()])


def prediction(table: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured rates of config B, and the error of the prediction."""
    units = {"gen": "tokens/s", "embed": "sequences/s"}
    rows: list[dict[str, Any]] = [
        {
            "Workload": f"{row.workload}, {units[row.workload]}",
            "Predicted from one GPU": with_interval(row.predicted, row.low, row.high, row.starts),
            "Measured on two": with_interval(row.measured, row.measured_low, row.measured_high, row.measured_starts),
            "Measured / predicted - 1": f"{row.error:+.0%}",
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
