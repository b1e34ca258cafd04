"""Frames that look across runs, sweeps and published figures, shaped for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from colo_lib.analysis import operating_point, two_devices
from colo_lib.analysis.capacity import PREDICTED, Unit
from colo_lib.analysis.loss import Loss, loss_sentence, waterfall
from colo_lib.analysis.published import LATER_METRICS, LATER_STEPS, SHARED_METRICS, STEPS, UNTOLD
from colo_lib.analysis.statistics import Estimate, number, with_interval, within_starts
from colo_lib.analysis.sweep import SweepMeasures
from colo_lib.analysis.sweep_analysis import SweepAnalysis
from colo_lib.analysis.trace.mps_price import NAME_CHARACTERS, Price
from colo_lib.data.run import Run
from colo_lib.data.sweep import Sweep
from colo_lib.params import Params
from colo_lib.select import alike
from colo_lib.steps import STEPS as STEPS_BY_ID
from colo_lib.steps import mechanism_in_words, names_in, names_of, wanted_in_words

NONE = "—"


def losses(losses_by_step: Mapping[str, Loss], estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """A row a step and part; the step's whole loss with its interval over blocks stands first."""
    rows, names = [], loss_names(losses_by_step)
    for step, loss in losses_by_step.items():
        whole = estimates.get(step)
        text = number(float(loss.total_ns) / 1e3)
        text = with_interval(whole.mean, whole.low, whole.high, whole.starts) if whole else text
        rows.append((names[step], "whole loss per token", text, "100%"))
        rows += [
            (names[step], row.label, number(row.us), f"{row.share:.0%}" if row.share == row.share else NONE)
            for row in waterfall(loss).itertuples()
        ]
    return pd.DataFrame(rows, columns=["Step", "Part", "us per token [95 % interval]", "Share"])


def by_mechanism(losses_by_step: Mapping[str, Loss], trials: pd.DataFrame) -> dict[str, Loss]:
    """The losses under what the steps are called on the run's devices."""
    names = names_in(trials) | {key: key for key in losses_by_step if key not in STEPS_BY_ID}
    return {names[step]: loss for step, loss in losses_by_step.items()}


def by_run(losses_by_run: Mapping[tuple[str, str], Loss]) -> dict[str, Loss]:
    """Losses of published runs, by run and step, under 'run1, both under MPS'."""
    return {f"{run}, {STEPS_BY_ID[step].name}": loss for (run, step), loss in losses_by_run.items()}


def loss_names(losses_by_key: Mapping[str, Loss]) -> dict[str, str]:
    """A loss's key -> its name: a step's for a step, else as it stands."""
    known = names_of((key, loss.shared.mechanism) for key, loss in losses_by_key.items() if key in STEPS_BY_ID)
    return {key: known.get(key, key) for key in losses_by_key}


def categories(frame: pd.DataFrame) -> pd.DataFrame:
    """`loss_inputs.category_rows` as shown: us per token; without clocks the whole change is one column."""
    rows = [
        (STEPS_BY_ID[row.step].name, row.category, number(row.alone_us), number(row.shared_us), number(row.clock_us),
         number(row.contention_us))
        for row in frame.itertuples()
        if max(abs(row.alone_us), abs(row.shared_us)) > 0
    ]  # fmt: skip
    columns = ["Step", "Category", "Alone (us/token)", "Shared (us/token)", "Clock (us)", "Contention (us)"]
    return pd.DataFrame(rows, columns=columns)


def loss_words(losses_by_key: Mapping[str, Loss]) -> str:
    """The waterfalls in words."""
    names = loss_names(losses_by_key)
    return (
        " ".join(loss_sentence(loss, names[name]) for name, loss in losses_by_key.items())
        or "No shared step with its baseline."
    )


def explanations(frame: pd.DataFrame) -> pd.DataFrame:
    """`published_loss.explanations` as shown."""
    return frame.set_axis(["Run", "Where", "It says", "Its own figures say"], axis=1)


def runs_beside(
    points: pd.DataFrame, metrics: Mapping[str, tuple[str, str]] = SHARED_METRICS, steps: Sequence[str] = STEPS
) -> pd.DataFrame:
    """Runs side by side: a row a metric and step, a column a run."""
    runs = list(dict.fromkeys(points["run"]))
    cells = {(row.metric, row.step, row.run): _cell(row) for row in points.itertuples()}
    rows = []
    for metric, (label, unit) in metrics.items():
        for step in steps:
            values = [cells.get((metric, step, run), NONE) for run in runs]
            if any(value != NONE for value in values):
                rows.append((f"{label}{f' ({unit})' if unit else ''}, {STEPS_BY_ID[step].name}", *values))
    return pd.DataFrame(rows, columns=["Metric and step", *runs])


def later_beside(points: pd.DataFrame) -> pd.DataFrame:
    """`published.later_points` as shown."""
    return runs_beside(points, LATER_METRICS, LATER_STEPS)


def later_sentence(points: pd.DataFrame, run_id: str) -> str:
    """What the later runs say of the LLM beside the embedder, and that they are leads."""
    kept = points[(points["metric"] == "gen_kept") & (points["run"] != run_id)].set_index("step")
    words = []
    for step in ("step2", "step3"):
        mine = kept.loc[kept.index == step]
        words.append(f"{STEPS_BY_ID[step].name} {mine['low'].min():.2f} to {mine['high'].max():.2f}")
    head = "Published afterwards, at 512 and 1,024 requests in flight: the LLM is said to keep"
    return f"{head} {', '.join(words)}. These are leads and no proof: see what stands against them."


def alone_by_load(frame: pd.DataFrame) -> pd.DataFrame:
    """`published.alone_by_load` as shown."""
    heads = {name: f"{LATER_METRICS[name][0]} ({LATER_METRICS[name][1]})" for name in frame.columns[2:]}
    shown = {heads[name]: [number(value) for value in frame[name].astype("float64")] for name in heads}
    return pd.DataFrame({"Run": frame["run"], "In flight": [f"{many:,}" for many in frame["in_flight"]], **shown})


def caveats(conditions: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What each later run is, from which commit, and what stands against its figures."""
    rows = [(run, facts["title"], facts["commit"], " ".join(facts["caveats"])) for run, facts in conditions.items()]
    return pd.DataFrame(rows, columns=["Run", "What", "Commit", "What stands against it"])


def kept_words(points: pd.DataFrame) -> str:
    """Kept fractions of every run in words."""
    names = {"gen_kept": "the LLM", "embed_kept": "the embedder"}
    shown = points[points["metric"].isin(names)]
    words = [f"{row.run}, {STEPS_BY_ID[row.step].name}: {names[row.metric]} {_cell(row)}" for row in shown.itertuples()]
    return "Kept fractions by run: " + ("; ".join(words) or "none") + "."


def mechanisms(
    conditions: Mapping[str, Mapping[str, Any]], run_id: str, trials: pd.DataFrame
) -> dict[tuple[str, str], str]:
    """(run, step) -> mechanism, of the published runs and of one's own."""
    published = {
        (run, step): name for run, facts in conditions.items() for step, name in facts.get("mechanisms", {}).items()
    }
    measured = zip(trials["step"], trials["mechanism"], strict=True)
    return published | {(run_id, step): str(name) for step, name in measured if step in STEPS}


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
    sentences = []
    for run in runs:
        rows = [row for _, row in differences.iterrows() if run in str(row["differs from"]).split(", ")]
        silent = [row for row in rows if UNTOLD in (row[run], row["this run"])]
        unlike = ", ".join(str(row["condition"]) for row in rows if UNTOLD not in (row[run], row["this run"]))
        sentences.append(
            f"{run} differs in {unlike or 'nothing that was told'}; {len(silent)} conditions were not told"
        )
    return "Not alike, so not to be compared as if they were. " + ". ".join(sentences) + "."


def layouts(frame: pd.DataFrame) -> pd.DataFrame:
    """`capacity.plan` as shown."""
    rows = [
        (
            f"{row.title}{' (PREDICTION)' if row.predicted else ''}",
            f"{row.gpus:.0f} [{row.gpus_best:.0f}, {row.gpus_worst:.0f}]" if row.gpus == row.gpus else NONE,
            f"{row.shared} shared, {row.gen_only} for the LLM, {row.embed_only} for the embedder",
            number(row.power_w),
            row.breaks or ("not measured" if row.predicted else "keeps them"),
        )
        for row in frame.itertuples()
    ]
    columns = ["Layout", "GPUs needed [range]", "Units at the mean", "Power under load (W)", "Bounds (SLOs)"]
    return pd.DataFrame(rows, columns=columns)


def units(layout_units: Sequence[Unit], costs: pd.DataFrame) -> pd.DataFrame:
    """What each unit gives, with intervals, and its energy per token and per sequence."""
    cost = costs.set_index("unit")
    rows = [
        (
            f"{unit.in_words()}{' (PREDICTION)' if unit.predicted else ''}",
            str(unit.gpus),
            with_interval(unit.gen.mean, unit.gen.low, unit.gen.high, unit.gen.starts) if unit.gen.mean else NONE,
            with_interval(unit.embed.mean, unit.embed.low, unit.embed.high, unit.embed.starts)
            if unit.embed.mean
            else NONE,
            number(unit.power_w),
            number(float(cost.loc[unit.step, "j_per_token"])),
            number(float(cost.loc[unit.step, "j_per_sequence"])),
        )
        for unit in layout_units
    ]
    columns = ["Unit", "GPUs", "LLM, tokens/s", "embedder, sequences/s", "Power (W)", "J per token", "J per sequence"]
    return pd.DataFrame(rows, columns=columns)


def under_run_label(run: Run, sentence: str) -> str:
    """The sentence under the label that its data ask for."""
    if run.simulated:
        return f"SIMULATED, no device took part: {sentence}"
    return f"Cores stand in for GPUs: {sentence}" if run.stand_in else sentence


def listed(sentences: Sequence[str]) -> pd.DataFrame:
    """Sentences as a numbered table."""
    return pd.DataFrame([(str(number), text) for number, text in enumerate(sentences, 1)], columns=["", "Assumption"])


MEASURES = {
    "gen_tokens_per_s": "LLM, tokens/s", "embed_sequences_per_s": "embedder, sequences/s", "gen_kept": "LLM kept",
    "embed_kept": "embedder kept", "aggregate": "aggregate",
}  # fmt: skip


def cells(measures: SweepMeasures) -> pd.DataFrame:
    """A row a cell and step: what the cell varied, its status, and the step's `MEASURES` [95 % interval]."""
    texts = {
        (row.cell, row.step, row.measure): with_interval(row.mean, row.low, row.high, row.starts)
        for row in measures.values.itertuples()
        if row.mean == row.mean
    }
    rows, names = [], names_in(measures.values)
    steps = {str(cell): [step for step in STEPS_BY_ID if step in set(mine["step"])]
             for cell, mine in measures.values.groupby("cell")}  # fmt: skip
    for cell in measures.cells.itertuples():
        status = f"{cell.counted} of {cell.trials} trials count" if cell.status == "done" else cell.status
        status += f": {cell.reason}" if isinstance(cell.reason, str) else ""
        place = (*(str(getattr(cell, name)) for name in measures.names), status)
        for step in steps.get(cell.cell, []):
            rows.append((*place, names[step], *(texts.get((cell.cell, step, name), NONE) for name in MEASURES)))
        if cell.cell not in steps:
            rows.append((*place, NONE, *(NONE for _ in MEASURES)))
    return pd.DataFrame(rows, columns=[*measures.names, "Status", "Step", *MEASURES.values()])


def demands(table: pd.DataFrame) -> pd.DataFrame:
    """`analysis.demand.demands` for reading: a row a step and demand."""
    names = names_in(table)

    def shown(row: Any, name: str) -> str:
        mean, low, high = (getattr(row, f"{name}_{what}") for what in ("mean", "low", "high"))
        return with_interval(mean, low, high, row.starts) if mean == mean else NONE

    heads = {"gen": "LLM kept", "gap": "p99 gap / alone", "met": "Share within the SLO", "latency": "p99 latency (ms)"}
    rows = [
        {
            "Demand (sequences/s)": number(row.rate), "Step": names[row.step],
            **{head: shown(row, name) for name, head in heads.items()},
            "Nearly free": "surely" if row.free else "by the means" if row.holds else "no",
        }
        for row in table.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Demand (sequences/s)", "Step", *heads.values(), "Nearly free"])


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """`operating_point.settings` for reading: a row a numbered setting."""
    return pd.DataFrame(
        {
            "No.": frame["number"].astype(str),
            "Embedder": frame["setting"],
            "Mechanism": [mechanism_in_words(name) for name in frame["mechanism"]],
            "In flight": frame["concurrency"].astype(str),
            "LLM kept": [operating_point.kept_in_words(row, "gen") for _, row in frame.iterrows()],
            "embedder kept": [operating_point.kept_in_words(row, "embed") for _, row in frame.iterrows()],
            "aggregate": [operating_point.kept_in_words(row, "aggregate") for _, row in frame.iterrows()],
            "p99 gap grows by": [_growth(row) for row in frame.itertuples()],
            "LLM kept, embedder idle": [_idle(row) for row in frame.itertuples()],
            "SM clock (MHz)": [number(value) for value in frame["sm_clock_mhz"].astype("float64")],
            "Power (W)": [number(value) for value in frame["power_w"].astype("float64")],
            "DRAM in use (%)": [number(value) for value in frame["dram_active"].astype("float64")],
        }
    )


def _growth(row: Any) -> str:
    if row.gap_growth != row.gap_growth:
        return NONE
    if row.gap_low != row.gap_low:
        return f"{row.gap_growth:.0%} (no interval)"
    return f"{row.gap_growth:.0%} [{row.gap_low:.0%}, {row.gap_high:.0%}{within_starts(row.starts)}]"


def _idle(row: Any) -> str:
    known = row.idle_neighbour is not None and row.idle_neighbour == row.idle_neighbour
    return with_interval(row.idle_neighbour, row.idle_low, row.idle_high, row.starts) if known else NONE


def states(sweep: Sweep) -> pd.DataFrame:
    """A row a cell: what it varies, and what became of it."""
    rows = []
    for cell in sweep.cells:
        counted = "" if cell.run is None else f": {int((cell.run.trials['status'] == 'done').sum())} trials count"
        why = f": {cell.reason}" if cell.reason and cell.run is None else ""
        changes = {name: str(cell.changes[name]) for name in sweep.names}
        rows.append({"Cell": cell.name, **changes, "Status": f"{cell.status}{counted}{why}"})
    return pd.DataFrame(rows)


def under_sweep_label(sweep: Sweep, sentence: str) -> str:
    """The sentence under the label that its data ask for."""
    if sweep.simulated:
        return f"SIMULATED, no device took part: {sentence}"
    return f"Cores stand in for GPUs: {sentence}" if sweep.stand_in else sentence


NEEDED = ("step1", "step2", "step4")


@dataclass(frozen=True)
class Beside:
    """`two_devices.prediction`, and which runs were compared, with what differs between their loads."""

    table: pd.DataFrame
    caption: str


def prediction_beside(params: Params, analysis: SweepAnalysis) -> Beside:
    """The prediction from the newest run of one such GPU with the pair's models and concurrency; empty without one."""
    pair = analysis.first.run
    single = alike(params, pair, NEEDED)
    table = analysis.prediction(single)
    if single is None:
        return Beside(
            table, f"No run of one such GPU with these models and concurrency has {wanted_in_words(*NEEDED)}."
        )
    caption = f"'{STEPS_BY_ID[PREDICTED].name}' predicted from {single.run_id}, and measured."
    if others := two_devices.other_loads(single.params.model_dump(), pair.params.model_dump()):
        caption += f" The loads differ, so that this compares more than the layout: {'; '.join(others)}."
    return Beside(table, caption)


KERNELS_SHOWN = 12


def mps_price(price: Price) -> pd.DataFrame:
    """The kernels at which the price of being an MPS client and its prediction are largest, us a decode step first."""
    table = price.table.assign(each=price.table["client_us"] - price.table["alone_us"])
    a_step = table["count"] / price.steps
    largest = (a_step * table[["each", "predicted_us"]].max(axis=1)).nlargest(KERNELS_SHOWN).index
    rows = [
        (str(row["name"])[:NAME_CHARACTERS], row["category"], f"{row['blocks']:,}", number(row["count"] / price.steps),
         number(row["alone_us"]), number(row["predicted_us"]), number(row["each"]),
         number(row["count"] / price.steps * row["each"]))
        for row in table.loc[largest].to_dict("records")
    ]  # fmt: skip
    columns = ["Kernel", "Category", "Blocks", "A step", "Alone (us)", "Predicted price of each (us)",
               "Measured price of each (us)", "Measured (us a step)"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
