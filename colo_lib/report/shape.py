"""Frames shaped for reading: formatted cells, short headings, and the words that stand for a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from colo_lib.analyse.steps_table import number, with_interval
from colo_lib.schema import STEP_TITLES

NONE = "—"


def clauses(frame: pd.DataFrame) -> pd.DataFrame:
    """The verdict's clauses (`analyse.verdict.COLUMNS`) as shown."""
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
    """`analyse.findings.pays` as shown."""
    rows = [
        (
            f"{row.step}: {STEP_TITLES[row.step]}",
            with_interval(row.mean, row.low, row.high, row.starts),
            _size(row),
            row.answer,
        )
        for row in frame.itertuples()
    ]
    columns = ["Step", "Work per device [95 % interval]", "Blocks / starts", "Against dedicated (1)"]
    return pd.DataFrame(rows, columns=columns)


def bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """`analyse.findings.against_bounds` as shown: a row a bound; a step's column has the worst and the share within."""
    cells = [
        f"{number(row.worst)}{' OVER' if row.worst > row.bound else ''} ({row.within:.0%} within)"
        for row in frame.itertuples()
    ]
    shown = frame.assign(cell=cells, row=[f"{row.what}, bound {number(row.bound)} ms" for row in frame.itertuples()])
    return _by_step(shown, "row", "cell", "Worst (ms)")


def not_counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that are kept and shown, and counted in no estimate."""
    out = trials[trials["status"] != "done"]
    rows = [
        (
            f"{row.step}, trial {row.trial}",
            str(row.block),
            str(row.status),
            str(row.reason or "no reason recorded"),
            number(row.gen_tokens_per_s),
            number(row.embed_sequences_per_s),
        )
        for row in out.itertuples()
    ]
    columns = ["Trial", "Block", "Status", "Reason", "Gen tokens/s", "Embed sequences/s"]
    return pd.DataFrame(rows, columns=columns)


def telemetry(summary: pd.DataFrame) -> pd.DataFrame:
    """`analyse.telemetry.summary` as shown: a row an entity and metric, a column a step."""
    shown = summary.assign(
        row=[f"{row.scope} {row.name}, {row.label} ({row.unit})" for row in summary.itertuples()],
        text=[f"{number(row.mean)} ({number(row.low)}–{number(row.high)})" for row in summary.itertuples()],
    )
    return _by_step(shown, "row", "text", "Mean (5th–95th percentile)")


def pacing(summary: pd.DataFrame) -> pd.DataFrame:
    """`analyse.pacing.summary` as shown."""
    rows = [
        (row.step, row.trial, row.gaps, f"{row.late_fraction:.2%}", f"{row.duty:.0%}", f"{row.embed_duty:.0%}")
        for row in summary.itertuples()
    ]
    return pd.DataFrame(rows, columns=["Step", "Trial", "Gaps", "Late", "Duty asked (mean)", "Duty worked (mean)"])


def memory(budget: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """The budget and the most that was used, GiB, as shown."""
    rows = [
        (f"budget, device {row.device}: {row.part}", number(row.gib), number(row.available_gib))
        for row in budget.itertuples()
    ]
    for row in measured.itertuples():
        rows += [
            (f"{row.step}: most used by {name}", number(value), number(row.free_gib))
            for name, value in (("gen", row.gen_gib), ("embed", row.embed_gib))
            if value == value
        ]
    return pd.DataFrame(rows, columns=["What", "GiB", "Available, or left free (GiB)"])


def memory_parts(parts: pd.DataFrame) -> pd.DataFrame:
    """`analyse.memory.parts_frame` as shown: a row a part, a column a step."""
    if parts.empty:
        return pd.DataFrame([["no engine told its parts (cores stand in, or an earlier version)"]], columns=["Part"])
    shown = parts.assign(row=[f"{row.workload}: {row.part}" for row in parts.itertuples()])
    shown["cell"] = [number(gib) for gib in shown["gib"]]
    return _by_step(shown, "row", "cell", "Part (GiB a process)")


def null_sentence(null: dict[str, float], step: str = "step 1") -> str:
    """The null in words: a step against itself."""
    blocks = f"{null['odd']:.0f} odd and {null['even']:.0f} even blocks"
    spread = f"; between blocks it spreads by {null['spread']:.1%}" if null["spread"] == null["spread"] else ""
    if null["low"] == null["low"]:
        holds = "holds 1, as it must" if null["low"] <= 1 <= null["high"] else "DOES NOT HOLD 1: the run drifted"
        interval = f"95 % interval {number(null['low'])} to {number(null['high'])}, which {holds}"
    else:
        interval = "no interval: it needs two odd and two even blocks"
    told = f"{step} against itself ({blocks}): {number(null['ratio'])} ({interval}){spread}."
    least = null.get("smallest_detectable", float("nan"))
    return told + (
        f" The smallest difference that these blocks show 4 times in 5: {least:.1%}." if least == least else ""
    )


def time_sentence(manifest: Mapping[str, Any]) -> str:
    """How much of a run's time was measurement; `manifest` is the run's."""
    measured_s, total_s = manifest.get("measured_s"), manifest.get("total_s")
    if not measured_s or not total_s:
        return "How much of the run's time was measurement is not recorded."
    return f"Measured {measured_s:.0f} s in windows of {total_s:.0f} s in all: {measured_s / total_s:.0%} of the time."


def kept_words(kept: pd.DataFrame) -> str:
    """The kept fractions in words, for readers who do not see the picture."""
    shown = kept[(kept["step"] != "configA") & (kept["quantity"] != "aggregate")]
    words = [
        f"{row.step} {row.quantity.replace('_', ' ')} {with_interval(row.mean, row.low, row.high, row.starts)}"
        for row in shown.itertuples()
    ]
    return "Kept fractions by step with 95 % intervals: " + ("; ".join(words) or "none measured") + "."


def latency_words(latencies: pd.DataFrame) -> str:
    """The latencies in words."""
    names = {"gap": "inter-token gap", "batch": "embed batch"}
    words = [
        f"{row.step} {names[row.kind]} p50 {number(row.p50_ms)}, p99 {number(row.p99_ms)} ms of {row.count:,}"
        for row in latencies.itertuples()
        if row.kind in names
    ]
    return "Distributions of latency by step: " + ("; ".join(words) or "none measured") + "."


def steps(table: pd.DataFrame) -> pd.DataFrame:
    """`analyse.steps_table.steps_table` as shown: a row a measure with its unit, a column a step."""
    shown = table.assign(label=[f"{row.row} ({row.unit})" if row.unit else row.row for row in table.itertuples()])
    return _by_step(shown, "label", "text", "Measure")


def _by_step(shown: pd.DataFrame, rows: str, cells: str, head: str) -> pd.DataFrame:
    steps = [step for step in STEP_TITLES if step in set(shown["step"])]
    order = list(dict.fromkeys(shown[rows]))
    table = shown.pivot_table(index=rows, columns="step", values=cells, aggfunc="first")
    table = table.reindex(index=order, columns=steps).fillna(NONE).rename_axis(None, axis=1).reset_index()
    return table.rename(columns={rows: head, **{step: f"{step}: {STEP_TITLES[step]}" for step in steps}})


def kept(frame: pd.DataFrame) -> pd.DataFrame:
    """`analyse.kept.kept_fractions` as shown, with what the run could have detected; config A is the baseline."""
    rows = [
        (
            f"{row.step} ({row.mechanism}): {row.quantity.replace('_', ' ')}",
            with_interval(row.mean, row.low, row.high, row.starts),
            _size(row),
            number(row.smallest_detectable),
        )
        for row in frame[frame["step"] != "configA"].itertuples()
    ]
    seen = "Smallest shift seen in 80 % of such runs"
    columns = ["Step and quantity", "Kept [95 % interval]", "Blocks / starts", seen]
    return pd.DataFrame(rows, columns=columns)
