"""Frames of one run shaped for reading: formatted cells, short headings, words that stand for a picture.

And the runs that there are to read, each with the line that a reader pastes into a notebook's parameters cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from colo_lib import paths
from colo_lib.analysis.bound import Use
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.statistics import number, with_interval
from colo_lib.analysis.steps_table import step_columns
from colo_lib.analysis.trace.token_time import StepCollectives
from colo_lib.analysis.two_devices import CHAIN
from colo_lib.data.run import find_runs, open_run
from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.records import Manifest
from colo_lib.report import notebook_output
from colo_lib.report.notebook_output import NOTEBOOK
from colo_lib.steps import KEPT_AGAINST_OTHERS, STEPS, WORKLOADS, capital, names_in, part_in_words

NONE = "—"
MOST_RUNS = 8  # newest runs that are judged; each costs a second or two
RUN_COLUMNS = ["To read it, set", "Hypothesis", "Device", "Models", "Trials that count", "Recorded"]


def clauses(frame: pd.DataFrame) -> pd.DataFrame:
    """The verdict's clauses (`verdict.COLUMNS`) as shown."""
    rows = []
    for row in frame.itertuples():
        figure = with_interval(row.mean, row.low, row.high, row.starts) if row.mean == row.mean else NONE
        rows.append((row.clause, figure, number(row.threshold), _size(row), row.status, row.missing or NONE))
    columns = ["Clause", "Figure [95 % interval]", "Threshold", "Blocks / starts", "Status", "What is missing"]
    return pd.DataFrame(rows, columns=columns)


def _size(row: Any) -> str:
    """Blocks, and the starts of the engines that they ran on: what an interval rests on."""
    return f"{row.blocks:.0f} / {row.starts:.0f}" if row.blocks else NONE


def paying(frame: pd.DataFrame) -> pd.DataFrame:
    """`verdict.pays` as shown."""
    names = names_in(frame)
    rows = [
        (
            capital(names[row.step]),
            with_interval(row.mean, row.low, row.high, row.starts),
            _size(row),
            row.answer,
        )
        for row in frame.itertuples()
    ]
    columns = ["Step", "Work per device [95 % interval]", "Blocks / starts", "Against dedicated (1)"]
    return pd.DataFrame(rows, columns=columns)


def uses(uses_alone: Sequence[Use]) -> pd.DataFrame:
    """`bound.uses_alone` as shown: a row a resource, and what its line is worth."""
    rows = [(capital(use.name), f"{use.gen:.0%}", f"{use.embed:.0%}", use.kind) for use in uses_alone]
    return pd.DataFrame(rows, columns=["Resource", "LLM alone takes", "Embedder alone takes", "Worth"])


def at_best(frame: pd.DataFrame) -> pd.DataFrame:
    """`bound.against_best` as shown: a row a shared step."""
    names = names_in(frame[frame["step"] != ""])
    rows = []
    for row in frame.itertuples():
        measured = row.reached == row.reached
        rows.append((
            capital(names.get(row.step, "not measured yet")),
            number(row.sure),
            f"{number(row.best)} ({row.binds or 'nothing used up'})",
            f"{number(row.guess)} ({row.guess_binds or 'nothing used up'})",
            with_interval(row.reached, row.low, row.high, row.starts) if measured else NONE,
            f"{row.over:+.0%} / {row.guess_over:+.0%}" if measured else NONE,
            f"{row.filled:.0%}" if measured else NONE,
        ))  # fmt: skip
    columns = ["Step", "At most, by DRAM and tensor cores", "At best, with power (used up)",
               "Guess, with SMs (used up)", "Reached [95 % interval]", "Best / guess over reached",
               "Fullest resource there"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """`thresholds.against_bounds` as shown: a row a bound; a step's column has the worst and the share within."""
    cells = [
        f"{number(row.worst)}{' OVER' if row.worst > row.bound else ''} ({row.within:.0%} within)"
        for row in frame.itertuples()
    ]
    shown = frame.assign(cell=cells, row=[f"{row.what}, bound {number(row.bound)} ms" for row in frame.itertuples()])
    return step_columns(shown, "row", "cell", "Worst (ms)")


def not_counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that are kept and shown, and counted in no estimate."""
    out, names = trials[trials["status"] != "done"], names_in(trials)
    rows = [
        (
            f"{names[row.step]}, trial {row.trial}",
            str(row.block),
            str(row.status),
            str(row.reason or "no reason recorded"),
            number(row.gen_tokens_per_s),
            number(row.embed_sequences_per_s),
        )
        for row in out.itertuples()
    ]
    columns = ["Trial", "Block", "Status", "Reason", "LLM, tokens/s", "Embedder, sequences/s"]
    return pd.DataFrame(rows, columns=columns)


def telemetry(summary: pd.DataFrame) -> pd.DataFrame:
    """`telemetry_summary` as shown: a row an entity and metric, a column a step."""
    shown = summary.assign(
        row=[
            f"{row.scope} {WORKLOADS.get(row.name, row.name)}, {row.label} ({row.unit})" for row in summary.itertuples()
        ],
        text=[f"{number(row.mean)} ({number(row.low)}–{number(row.high)})" for row in summary.itertuples()],
    )
    return step_columns(shown, "row", "text", "Mean (5th–95th percentile)")


def work(steps: pd.DataFrame) -> pd.DataFrame:
    """`work.by_step` as shown: what rates demand of the tensor cores, and what those did."""
    names = names_in(steps)
    rows = [
        (
            names[row.step], row.device, row.trials, number(row.gen_tflops), number(row.embed_tflops),
            f"{row.demanded:.2%}", f"{row.measured:.2%}", number(row.ratio),
            f"{row.said} ({row.unbacked} of {row.judged} trials)" if row.unbacked else row.said,
        )
        for row in steps.itertuples()
    ]  # fmt: skip
    columns = ["Step", "GPU", "Trials", "LLM (TFLOP/s)", "Embedder (TFLOP/s)", "Demanded of the tensor cores",
               "Active", "Least active / demanded", "Says"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def pacing(summary: pd.DataFrame) -> pd.DataFrame:
    """`pacing_summary` as shown."""
    names = names_in(summary)
    rows = [
        (names[row.step], row.trial, row.gaps, f"{row.late_fraction:.2%}", f"{row.duty:.0%}", f"{row.embed_duty:.0%}")
        for row in summary.itertuples()
    ]
    return pd.DataFrame(rows, columns=["Step", "Trial", "Gaps", "Late", "Duty asked (mean)", "Duty worked (mean)"])


def memory(budget: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """The budget and the most that was used, GiB, as shown."""
    rows = [
        (f"budget, device {row.device}: {part_in_words(row.part)}", number(row.gib), number(row.available_gib))
        for row in budget.itertuples()
    ]
    names = names_in(measured)
    for row in measured.itertuples():
        rows += [
            (f"{names[row.step]}: most used by the {WORKLOADS[name]}", number(value), number(row.free_gib))
            for name, value in (("gen", row.gen_gib), ("embed", row.embed_gib))
            if value == value
        ]
    return pd.DataFrame(rows, columns=["What", "GiB", "Available, or left free (GiB)"])


def memory_parts(parts: pd.DataFrame) -> pd.DataFrame:
    """`telemetry.parts_frame` as shown: a row a part, a column a step."""
    if parts.empty:
        return pd.DataFrame([["no engine told its parts (cores stand in, or an earlier version)"]], columns=["Part"])
    shown = parts.assign(row=[f"{WORKLOADS[row.workload]}: {row.part}" for row in parts.itertuples()])
    shown["cell"] = [number(gib) for gib in shown["gib"]]
    return step_columns(shown, "row", "cell", "Part (GiB a process)")


def null_sentence(null: dict[str, float], step: str = "the LLM alone") -> str:
    """The null in words: a step against itself."""
    blocks = f"{null['odd']:.0f} odd and {null['even']:.0f} even blocks"
    spread = f"; between blocks it spreads by {null['spread']:.1%}" if null["spread"] == null["spread"] else ""
    if null["low"] == null["low"]:
        holds = "holds 1, as it must" if null["low"] <= 1 <= null["high"] else "DOES NOT HOLD 1: the run drifted"
        interval = f"95 % interval {number(null['low'])} to {number(null['high'])}, which {holds}"
    else:
        interval = "no interval: it needs two odd and two even blocks"
    sentence = f"{capital(step)} against itself ({blocks}): {number(null['ratio'])} ({interval}){spread}."
    least = null.get("smallest_detectable", float("nan"))
    return sentence + (
        f" The smallest difference that these blocks show 4 times in 5: {least:.1%}." if least == least else ""
    )


def time_sentence(manifest: Manifest) -> str:
    """How much of a run's time was measurement; `manifest` is the run's."""
    measured_s, total_s = manifest.measured_s, manifest.total_s
    if not measured_s or not total_s:
        return "How much of the run's time was measurement is not recorded."
    return f"Measured {measured_s:.0f} s in windows of {total_s:.0f} s in all: {measured_s / total_s:.0%} of the time."


def kept_words(kept: pd.DataFrame) -> str:
    """The kept fractions in words, for readers who do not see the picture."""
    shown = kept[kept["step"].isin(KEPT_AGAINST_OTHERS) & (kept["quantity"] != "aggregate")]
    names = names_in(shown)
    words = [
        f"{names[row.step]}, {quantity_in_words(row.quantity)} {with_interval(row.mean, row.low, row.high, row.starts)}"
        for row in shown.itertuples()
    ]
    return "Kept fractions by step with 95 % intervals: " + ("; ".join(words) or "none measured") + "."


def latency_words(latencies: pd.DataFrame) -> str:
    """The latencies in words."""
    kinds, names = {"gap": "inter-token gap", "batch": "embedding batch"}, names_in(latencies)
    words = [
        f"{names[row.step]}, {kinds[row.kind]} p50 {number(row.p50_ms)}, p99 {number(row.p99_ms)} ms of {row.count:,}"
        for row in latencies.itertuples()
        if row.kind in kinds
    ]
    return "Distributions of latency by step: " + ("; ".join(words) or "none measured") + "."


def quantity_in_words(quantity: str) -> str:
    """'the LLM', 'aggregate per device': a quantity of `statistics.block_ratios` for people."""
    return f"the {WORKLOADS[quantity]}" if quantity in WORKLOADS else quantity.replace("_", " ")


def kept(frame: pd.DataFrame) -> pd.DataFrame:
    """`statistics.kept_fractions` as shown, with what the run could have detected; config A is the baseline."""
    names = names_in(frame)
    rows = [
        (
            f"{capital(names[row.step])}: {quantity_in_words(row.quantity)}",
            with_interval(row.mean, row.low, row.high, row.starts),
            _size(row),
            number(row.smallest_detectable),
        )
        for row in frame[frame["step"].isin(KEPT_AGAINST_OTHERS)].itertuples()
    ]
    seen = "Smallest shift seen in 80 % of such runs"
    columns = ["Step and quantity", "Kept [95 % interval]", "Blocks / starts", seen]
    return pd.DataFrame(rows, columns=columns)


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
    "idle_ms": "Nothing of the LLM runs (ms)",
}  # fmt: skip


def chain(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a ratio of `two_devices.CHAIN`, a column a concurrency: mean [95 % interval]."""
    rows = []
    for what, (step, baseline) in CHAIN.items():
        row: dict[str, str] = {
            "What": what[0].upper() + what[1:],
            "Ratio of the LLM's tokens/s": f"{STEPS[step].name} / {STEPS[baseline].name}",
        }
        for concurrency, table in tables.items():
            mine = table[table["what"] == what]
            cell = NONE if mine.empty else with_interval(*mine[["ratio", "low", "high", "starts"]].iloc[0])
            row[_requests(concurrency)] = cell
        rows.append(row)
    return pd.DataFrame(rows)


def rates(trials: Mapping[int, pd.DataFrame], steps: list[str]) -> pd.DataFrame:
    """A row a step and concurrency: gen's tokens/s, gaps, embed's sequences/s, means over the trials that count."""
    columns = {
        "gen_tokens_per_s": "LLM, tokens/s", "gap_p50_ms": "gap p50 (ms)", "gap_p99_ms": "gap p99 (ms)",
        "embed_sequences_per_s": "embedder, sequences/s",
    }  # fmt: skip
    rows = []
    for concurrency, counted in trials.items():
        means, names = counted.groupby("step")[list(columns)].mean(), names_in(counted)
        rows += [
            {"Step": names[step], "In flight": str(concurrency)}
            | {title: number(means.loc[step, name]) for name, title in columns.items()}
            for step in steps
            if step in means.index
        ]
    return pd.DataFrame(rows)


def activity(table: pd.DataFrame) -> pd.DataFrame:
    """`two_devices.activity` with its units in the heads."""
    shown = table[["step", "device"]].rename(columns={"step": "Step", "device": "GPU"}).astype(str)
    shown["Step"] = shown["Step"].map(names_in(table))
    for name, title in ACTIVITY.items():
        shown[title] = [number(value) for value in table[name]]
    return shown


def meetings(met: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """A row a captured step: collectives, exchange, and how far apart the ranks arrive."""
    rows = []
    for step, times in met.items():
        share = times["rank0_waits"]
        row = {"Step": STEPS[step].name} | {title: number(times[name]) for name, title in MEETINGS.items()}
        rows.append(row | {"Rank 0 is there first": NONE if share != share else f"{share:.0%}"})
    return pd.DataFrame(rows)


def token_times(captured: Mapping[str, StepCollectives], counted: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a captured step and rank: the parts of a token's time, beside 1 / the rate of the step's trials."""
    rows = []
    for step, collectives in captured.items():
        trials = counted[collectives.concurrency]
        trials_ms = 1e3 / trials.loc[trials["step"] == step, "gen_tokens_per_s"].mean()
        for rank in collectives.ranks:
            row = {"Step": STEPS[step].name, "GPU": f"{rank['device']:g}", "A token in trials (ms)": f"{trials_ms:.2f}"}
            rows.append(row | {title: f"{rank[name]:.2f}" for name, title in TOKEN.items()})
    return pd.DataFrame(rows, columns=["Step", "GPU", "A token in trials (ms)", *TOKEN.values()])


def prediction(table: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured rates of config B, and the error of the prediction."""
    units = {"gen": "tokens/s", "embed": "sequences/s"}
    rows: list[dict[str, Any]] = [
        {
            "Workload": f"{WORKLOADS[row.workload]}, {units[row.workload]}",
            "Predicted from one GPU": with_interval(row.predicted, row.low, row.high, row.starts),
            "Measured on two": with_interval(row.measured, row.measured_low, row.measured_high, row.measured_starts),
            "Measured / predicted - 1": f"{row.error:+.0%}",
        }
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def show_runs(params: Params) -> None:
    """Display the finished runs of `params.runs_dir` and the recorded ones; nothing where `params.run` names one."""
    if not params.run:
        caption = f"Finished runs, newest first (the newest {MOST_RUNS} of each place): paste a line and run all again."
        runs = runs_table(paths.from_checkout(params.runs_dir), paths.RECORDED)
        notebook_output.show_table(runs, "runs", caption, section=NOTEBOOK)


def runs_table(*places: Path) -> pd.DataFrame:
    """A row a finished run of each place, newest first: how to name it, its verdict, and what it ran on."""
    rows = [_run_row(folder) for place in places for folder in find_runs(place)[:MOST_RUNS]]
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def _run_row(folder: Path) -> tuple[str, ...]:
    """One run; one that cannot be read stands there with the reason, and stops nothing."""
    shown = folder.relative_to(paths.REPOSITORY) if folder.is_relative_to(paths.REPOSITORY) else folder
    line = f'run = "{shown.as_posix()}"'
    try:
        run = open_run(folder)
        status = RunAnalysis(run).verdict.status
    except InputError as error:
        return (line, f"unreadable: {error}", *["—"] * 4)
    label = " (SIMULATED)" if run.simulated else " (cores stand in)" if run.stand_in else ""
    counted = int((run.trials["status"] == "done").sum())
    return (
        line,
        status,
        f"{run.manifest.machine.device_name}{label}",
        " + ".join(str(run.manifest.model_of(name).name) for name in ("gen", "embed")),
        f"{counted} of {len(run.trials)}",
        run.manifest.created_utc or "not recorded",
    )
