"""Several runs or GPU types on one page: verdicts, kept fractions, clauses, steps, and what differs.

Several runs or GPU types side by side on one page: verdicts, kept fractions, clauses, steps, and what differs.

Computed from the run folders alone by the functions that each run's own notebooks call, so both tell the same numbers.

The page of `colo report RUN RUN …`: what `compare` found, as one self-contained file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from colo_lib import __version__
from colo_lib.analysis import drift, steps_table, telemetry, trial_metrics
from colo_lib.analysis.kept import block_ratios, kept_fractions, null_check
from colo_lib.analysis.published import own_points
from colo_lib.analysis.trace.overlap import verdict_overlap
from colo_lib.analysis.trace.processes import printable
from colo_lib.analysis.trace.window import view_of
from colo_lib.analysis.trial_metrics import Measured, measure_trials
from colo_lib.analysis.verdict import Verdict, against_bounds, disagreements, headline, judge, pays, starved, unsteady
from colo_lib.data.capture import find_capture
from colo_lib.data.run import Run, open_run
from colo_lib.errors import InputError
from colo_lib.params import names_touching
from colo_lib.report import page, provenance, run_tables
from colo_lib.report.blocks import definitions, details, figure, frame, heading, items, paragraph, section
from colo_lib.report.index import write_index
from colo_lib.report.page import write_page
from colo_lib.report.sections import SIDE_BY_SIDE
from colo_lib.steps import STEP_TITLES

LONGEST_LABEL = 48  # characters of a device's name that head a column


@dataclass(frozen=True)
class Compared:
    """A run as the page shows it. `label` is its letter and device; `points` has `published.POINT_COLUMNS`."""

    label: str
    run: Run
    verdict: Verdict
    sentence: str
    warnings: list[str]
    kept: pd.DataFrame
    table: pd.DataFrame
    points: pd.DataFrame


def compare(runs: Sequence[Run]) -> list[Compared]:
    """Analyse every run under a letter of its own. Raises InputError for a run given twice or too many of them."""
    ids = [run.run_id for run in runs]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise InputError(f"run {twice[0]} is given twice: name each run once, at the least two of them")
    if len(runs) > 26:
        raise InputError(f"{len(runs)} runs on one page: give at most 26")
    return [_compared(f"{chr(ord('A') + place)}: {_device(run)}", run) for place, run in enumerate(runs)]


def judged(run: Run) -> Verdict:
    """The verdict of a run by its own bounds."""
    return _judge(run, measure_trials(run.trials, run.frame, run.params))


def _judge(run: Run, measured: Measured) -> Verdict:
    return judge(measured.counted, run.params, run.stand_in, _overlap(run, measured))


def _device(run: Run) -> str:
    told = printable(str(run.manifest["machine"].get("device_name") or "device not recorded"))
    name = told.replace("NVIDIA ", "")[:LONGEST_LABEL]
    return f"{name} (SIMULATED)" if run.simulated else f"{name} (stand-in)" if run.stand_in else name


def _compared(label: str, run: Run) -> Compared:
    measured = measure_trials(run.trials, run.frame, run.params)
    ratios = block_ratios(measured.counted)
    kept = kept_fractions(ratios)
    samples = telemetry.telemetry_series(run.trials, run.frame)
    means = telemetry.telemetry_summary(samples)
    table = steps_table.steps_table(
        measured.trials, kept, trial_metrics.by_step(measured.samples), means
    )  # fmt: skip
    verdict = _judge(run, measured)
    found = drift.trends(measured.counted), drift.bad_blocks(ratios), drift.moved_clocks(samples)
    warnings = starved(against_bounds(measured.counted, run.params)) + unsteady(null_check(measured.counted))
    warnings += drift.apart(measured.counted) + drift.warnings(*found) + disagreements(measured.trials)
    points = own_points(label, table, kept, means)
    return Compared(label, run, verdict, headline(verdict, pays(kept)), warnings, kept, table, points)


def _overlap(run: Run, measured: Measured) -> dict[str, Any] | None:
    """What step 2's capture shows, as notebook 51 takes it; None where there is none."""
    step2 = find_capture(run.folder, "step2")
    if step2 is None:
        return None
    rate = measured.counted.loc[measured.counted["step"] == "step2", "gen_tokens_per_s"].mean()
    view = view_of(step2.capture, step2.facts, run.params, step2.window_s)
    return verdict_overlap(view, step2.facts, rate)


def _interval(row: Any) -> str:
    return steps_table.with_interval(row.mean, row.low, row.high, row.starts)


def picture(found: Sequence[Compared]) -> dict[str, Any]:
    """Kept fractions of both workloads, a row a run, as a figure part of `blocks.figure`."""
    from colo_lib.plot.decisions import kept_by_run

    points = pd.concat([item.points for item in found], ignore_index=True)
    mechanisms = {
        (item.label, str(row.step)): str(row.mechanism)
        for item in found
        for row in item.run.trials[["step", "mechanism"]].drop_duplicates().itertuples()
    }
    buffer = io.BytesIO()
    kept_by_run(points, mechanisms, reach="95 % interval").savefig(buffer, format="png", metadata={"Software": None})
    shown = points[points["metric"].isin(["gen_kept", "embed_kept"])]
    words = [
        f"{row.run}, {row.step}, {row.metric.removesuffix('_kept')} {_interval(row)}" for row in shown.itertuples()
    ]
    return {
        "name": "kept-by-run",
        "caption": "Rate in a shared step over the rate alone in the same run, with its 95 % interval.",
        "alt": "Kept fractions by run: " + ("; ".join(words) or "none measured") + ".",
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


def kept_rows(found: Sequence[Compared]) -> pd.DataFrame:
    """A row a shared step and quantity, a column a run."""
    cells = {
        (str(row.step), str(row.quantity), item.label): _interval(row)
        for item in found
        for row in item.kept[item.kept["step"] != "configA"].itertuples()
    }
    keys = [(step, name) for step in STEP_TITLES for name in ("gen", "embed", "aggregate_per_device")]
    rows = [
        (f"{step} ({STEP_TITLES[step]}): {name.replace('_', ' ')}",
         *(cells.get((step, name, item.label), "—") for item in found))
        for step, name in keys
        if any((step, name, item.label) in cells for item in found)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Step and quantity", *(item.label for item in found)])


def clause_rows(found: Sequence[Compared]) -> pd.DataFrame:
    """A row a clause, a column a run: status and figure; a bound that differs between runs makes a row of its own."""
    cells: dict[str, dict[str, str]] = {}
    for item in found:
        for row in item.verdict.clauses.itertuples():
            figure = _interval(row) if row.mean == row.mean else "no figure"
            cells.setdefault(str(row.clause), {})[item.label] = f"{row.status}: {figure}"
    rows = [(clause, *(told.get(item.label, "—") for item in found)) for clause, told in cells.items()]
    return pd.DataFrame(rows, columns=["Clause", *(item.label for item in found)])


def conditions(found: Sequence[Compared]) -> pd.DataFrame:
    """Device, driver, models, weights, versions and every parameter, a column a run; `alike` says if all agree."""
    told = [_conditions(item.run) for item in found]
    names = list(dict.fromkeys(name for each in told for name in each))
    rows = []
    for name in names:
        values = [each.get(name, "not told") for each in told]
        rows.append((name, *values, len(set(values)) == 1))
    return pd.DataFrame(rows, columns=["Condition", *(item.label for item in found), "alike"])


def _conditions(run: Run) -> dict[str, str]:
    machine, models = run.manifest["machine"], run.manifest["models"]
    facts: dict[str, Any] = {f"machine: {name}": machine.get(name)
                             for name in ("device_name", "device_count", "driver", "cuda", "power_limit_w",
                                          "cpu", "git_commit")}  # fmt: skip
    facts |= {f"version: {name}": value for name, value in (machine.get("versions") or {}).items()}
    facts |= {
        f"model of {workload}: {name}": (models.get(workload) or {}).get(name)
        for workload in ("gen", "embed")
        for name in ("name", "architecture", "parameters", "weights", "dtype")
    }
    mechanisms = dict(zip(run.trials["step"], run.trials["mechanism"], strict=True))
    facts |= {f"mechanism of {step}": mechanisms[step] for step in STEP_TITLES if step in mechanisms}
    skipped = names_touching("storing", "reading")
    facts |= {f"parameter: {name}": value for name, value in run.manifest["params"].items() if name not in skipped}
    return {name: "not told" if value is None else "none" if value == "" else str(value)
            for name, value in facts.items()}  # fmt: skip


NAME = "side-by-side.html"
LABELS = {
    "simulated": "simulated. No engine and no device took part: its numbers were planted.",
    "stand-in": "cores stand in for GPUs. Its numbers were measured on CPU cores and say nothing about any GPU.",
}


def make_side_by_side(folders: Sequence[Path], reports_dir: Path, output: Path | None = None) -> Path:
    """Write the page of two or more finished runs and give its path; `output` names another file for it.

    Raises InputError for a run that cannot be read, or that is given twice.
    """
    if len(folders) < 2:
        raise InputError("one run is no comparison: give two or more")
    found = compare([open_run(folder) for folder in folders])
    target = output or reports_dir / NAME
    write_page(target, render(found))
    if output is None:
        write_index(reports_dir)
    return target


def render(found: Sequence[Compared]) -> str:
    """The page as HTML."""
    names = ", ".join(item.run.run_id for item in found)
    bodies = {
        "kept": frame(kept_rows(found), "Kept fraction or work per device [95 % interval]."),
        "clauses": frame(clause_rows(found), "Each run is judged by the bounds of its own parameters."),
        "differs": _differs(found),
        "steps": "".join(_steps(item) for item in found),
        "runs": "".join(_run(item) for item in found),
    }
    sections = "\n".join(section(name, SIDE_BY_SIDE[name], body) for name, body in bodies.items())
    about = {
        "run_id": names,
        "device": "; ".join(item.label for item in found),
        "status": "side by side",
        "sentence": "; ".join(f"{item.label}: {item.verdict.status}" for item in found),
        "created_utc": max(str(item.run.manifest.get("created_utc", "")) for item in found),
    }
    footer = f"Made by colo {__version__} from runs {names}. Every interval is 95 %."
    skip = ("kept", "Skip to the kept fractions")
    return page.document(f"Co-location side by side: {names}", about, _first_screen(found), sections, footer, skip)


def _first_screen(found: Sequence[Compared]) -> str:
    verdicts = pd.DataFrame(
        [(item.label, item.verdict.status, _work(item), provenance.in_one_line(item.run)) for item in found],
        columns=["Run", "Hypothesis", "Step 2: devices' worth per device", "On what"],
    )
    labels = [f"{item.label}: {words}" for item in found if (words := LABELS.get(_kind(item)))]
    return "\n".join(
        [
            heading(1, f"{len(found)} runs side by side: {page.QUESTION[0].lower()}{page.QUESTION[1:]}"),
            f'<div class="banner" role="note">{items(labels)}</div>' if labels else "",
            frame(verdicts, "The verdict of each run on the hypothesis; dedicated devices do 1 each."),
            figure(picture(found)),
            paragraph("Runs that differ in more than the device compare more than devices: see what differs.", "note"),
            page.contents(SIDE_BY_SIDE),
        ]
    )


def _kind(item: Compared) -> str:
    return "simulated" if item.run.simulated else "stand-in" if item.run.stand_in else "measured"


def _work(item: Compared) -> str:
    rows = kept_rows([item])
    found = rows[rows["Step and quantity"].str.match(r"step2 .*: aggregate per device")]
    return "not measured" if found.empty else str(found.iloc[0][item.label])


def _differs(found: Sequence[Compared]) -> str:
    told = conditions(found)
    unlike, alike = (told[told["alike"] == value].drop(columns="alike") for value in (False, True))
    first = (
        frame(unlike, f"{len(unlike)} conditions differ between these runs.")
        if len(unlike)
        else paragraph("Nothing that was recorded differs.")
    )
    return first + details(
        f"{len(alike)} conditions that are alike", frame(alike, "Recorded, and the same in all."), False
    )


def _steps(item: Compared) -> str:
    caption = f"{item.label}: means over blocks [95 % interval]; latencies pooled over trials."
    return heading(3, item.label) + page.cautions(item.warnings) + frame(run_tables.steps(item.table), caption)


def _run(item: Compared) -> str:
    return (
        heading(3, item.label)
        + paragraph(item.sentence)
        + definitions(provenance.what_was_run(item.run))
        + paragraph(f"Its own page: colo report {item.run.run_id}", "note")
    )
