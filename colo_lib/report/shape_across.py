"""Frames of the notebooks that look across runs (52-54), shaped for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from colo_lib.analyse.capacity import Unit
from colo_lib.analyse.estimate import Estimate
from colo_lib.analyse.loss import Loss, sentence, waterfall
from colo_lib.analyse.published import SHARED_METRICS, STEPS, UNTOLD
from colo_lib.analyse.steps_table import number, with_interval
from colo_lib.parse.run_folder import Run

NONE = "—"


def losses(found: Mapping[str, Loss], estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """A row a step and part; the step's whole loss with its interval over blocks stands first."""
    rows = []
    for step, loss in found.items():
        whole = estimates.get(step)
        told = number(float(loss.total_ns) / 1e3)
        told = with_interval(whole.mean, whole.low, whole.high, whole.starts) if whole else told
        rows.append((step, "whole loss per token", told, "100%"))
        rows += [
            (step, row.label, number(row.us), f"{row.share:.0%}" if row.share == row.share else NONE)
            for row in waterfall(loss).itertuples()
        ]
    return pd.DataFrame(rows, columns=["Step", "Part", "us per token [95 % interval]", "Share"])


def by_mechanism(found: Mapping[str, Loss], trials: pd.DataFrame) -> dict[str, Loss]:
    """The losses under titles that name the mechanism: 'step2 (mps)'."""
    names = dict(zip(trials["step"], trials["mechanism"], strict=True))
    return {f"{step} ({names.get(step, 'mechanism not recorded')})": loss for step, loss in found.items()}


def categories(frame: pd.DataFrame) -> pd.DataFrame:
    """`loss_inputs.category_rows` as shown: us per token; without clocks the whole change is one column."""
    rows = [
        (row.step, row.category, number(row.alone_us), number(row.shared_us), number(row.clock_us),
         number(row.contention_us))
        for row in frame.itertuples()
        if max(abs(row.alone_us), abs(row.shared_us)) > 0
    ]  # fmt: skip
    columns = ["Step", "Category", "Alone (us/token)", "Shared (us/token)", "Clock (us)", "Contention (us)"]
    return pd.DataFrame(rows, columns=columns)


def loss_words(found: Mapping[str, Loss]) -> str:
    """The waterfalls in words."""
    return " ".join(sentence(loss, name) for name, loss in found.items()) or "No shared step with its baseline."


def explanations(frame: pd.DataFrame) -> pd.DataFrame:
    """`published_loss.explanations` as shown."""
    return frame.set_axis(["Run", "Where", "It says", "Its own figures say"], axis=1)


def beside(points: pd.DataFrame) -> pd.DataFrame:
    """Runs side by side: a row a metric and step, a column a run."""
    runs = list(dict.fromkeys(points["run"]))
    cells = {(row.metric, row.step, row.run): _cell(row) for row in points.itertuples()}
    rows = []
    for metric, (label, unit) in SHARED_METRICS.items():
        for step in STEPS:
            values = [cells.get((metric, step, run), NONE) for run in runs]
            if any(value != NONE for value in values):
                rows.append((f"{label}{f' ({unit})' if unit else ''}, {step}", *values))
    return pd.DataFrame(rows, columns=["Metric and step", *runs])


def kept_words(points: pd.DataFrame) -> str:
    """Kept fractions of every run in words."""
    names = {"gen_kept": "gen", "embed_kept": "embed"}
    shown = points[points["metric"].isin(names)]
    told = [f"{row.run} {row.step} {names[row.metric]} {_cell(row)}" for row in shown.itertuples()]
    return "Kept fractions by run: " + ("; ".join(told) or "none") + "."


def mechanisms(
    conditions: Mapping[str, Mapping[str, Any]], run_id: str, trials: pd.DataFrame
) -> dict[tuple[str, str], str]:
    """(run, step) -> mechanism, of the published runs and of one's own."""
    told = {
        (run, step): name for run, facts in conditions.items() for step, name in facts.get("mechanisms", {}).items()
    }
    own = zip(trials["step"], trials["mechanism"], strict=True)
    return told | {(run_id, step): str(name) for step, name in own if step in STEPS}


def _cell(row: Any) -> str:
    return number(row.mean) if not row.high > row.low else with_interval(row.mean, row.low, row.high, row.starts)


def recomputed(changes: pd.DataFrame, identities: pd.DataFrame) -> pd.DataFrame:
    """Every printed figure that follows from others, with what they give."""
    rows = [
        (row.run, f"{row.where}: {row.metric}", row.printed, _range(row.low, row.high), _agreement(row.agrees))
        for row in changes.itertuples()
    ]
    rows += [
        (row.run, row.what, number(row.printed), number(row.recomputed), _agreement(row.agrees))
        for row in identities.itertuples()
    ]
    return pd.DataFrame(rows, columns=["Run", "What", "Printed", "Recomputed", "To its rounding"])


def _range(low: float, high: float) -> str:
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _agreement(agrees: bool) -> str:
    return "agrees" if agrees else "DIFFERS"


def unlike_sentence(differences: pd.DataFrame, runs: list[str]) -> str:
    """In what each published run is known to differ from this one, and how much it did not tell."""
    told = []
    for run in runs:
        rows = [row for _, row in differences.iterrows() if run in str(row["differs from"]).split(", ")]
        silent = [row for row in rows if UNTOLD in (row[run], row["this run"])]
        unlike = ", ".join(str(row["condition"]) for row in rows if UNTOLD not in (row[run], row["this run"]))
        told.append(f"{run} differs in {unlike or 'nothing that was told'}; {len(silent)} conditions were not told")
    return "Not alike, so not to be compared as if they were. " + ". ".join(told) + "."


def layouts(frame: pd.DataFrame) -> pd.DataFrame:
    """`capacity.plan` as shown."""
    rows = [
        (
            f"{row.layout}{' (PREDICTION)' if row.predicted else ''}: {row.title}",
            f"{row.gpus:.0f} [{row.gpus_best:.0f}, {row.gpus_worst:.0f}]" if row.gpus == row.gpus else NONE,
            f"{row.shared} shared, {row.gen_only} gen, {row.embed_only} embed",
            number(row.power_w),
            row.breaks or ("not measured" if row.predicted else "keeps them"),
        )
        for row in frame.itertuples()
    ]
    columns = ["Layout", "GPUs needed [range]", "Units at the mean", "Power under load (W)", "Bounds (SLOs)"]
    return pd.DataFrame(rows, columns=columns)


def units(found: Sequence[Unit], costs: pd.DataFrame) -> pd.DataFrame:
    """What each unit gives, with intervals, and its energy per token and per sequence."""
    cost = costs.set_index("unit")
    rows = [
        (
            f"{unit.step}{' (PREDICTION)' if unit.predicted else ''}",
            str(unit.gpus),
            with_interval(unit.gen.mean, unit.gen.low, unit.gen.high, unit.gen.starts) if unit.gen.mean else NONE,
            with_interval(unit.embed.mean, unit.embed.low, unit.embed.high, unit.embed.starts)
            if unit.embed.mean
            else NONE,
            number(unit.power_w),
            number(float(cost.loc[unit.step, "j_per_token"])),
            number(float(cost.loc[unit.step, "j_per_sequence"])),
        )
        for unit in found
    ]
    columns = ["Unit", "GPUs", "gen, tokens/s", "embed, sequences/s", "Power (W)", "J per token", "J per sequence"]
    return pd.DataFrame(rows, columns=columns)


def labelled(run: Run, sentence: str) -> str:
    """The sentence under the label that its data ask for."""
    if run.simulated:
        return f"SIMULATED, no device took part: {sentence}"
    return f"Cores stand in for GPUs: {sentence}" if run.stand_in else sentence


def listed(sentences: Sequence[str]) -> pd.DataFrame:
    """Sentences as a numbered table."""
    return pd.DataFrame([(str(number), text) for number, text in enumerate(sentences, 1)], columns=["", "Assumption"])
