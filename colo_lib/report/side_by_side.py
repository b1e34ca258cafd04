"""Several runs or GPU types side by side on one page: verdicts, kept fractions, clauses, steps, and what differs.

Each run's numbers are those of `RunAnalysis`, which its own notebooks show too. The page of `colo report RUN RUN …` is
one self-contained file.
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
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.statistics import with_interval
from colo_lib.analysis.trace.processes import printable
from colo_lib.data.run import Run, open_run
from colo_lib.errors import InputError
from colo_lib.params import names_touching
from colo_lib.report import page, provenance
from colo_lib.report.notebook_output import SIDE_BY_SIDE, table_part
from colo_lib.report.page import write_index, write_page
from colo_lib.report.run_tables import quantity_in_words
from colo_lib.steps import KEPT_AGAINST_OTHERS, STEPS, WORKLOADS, capital, mechanism_in_words, names_of

LONGEST_LABEL = 48  # characters of a device's name that head a column


@dataclass(frozen=True)
class Compared:
    """A run as the page shows it. `label` is its letter and device."""

    label: str
    analysis: RunAnalysis

    @property
    def run(self) -> Run:
        """The run."""
        return self.analysis.run


def compare(runs: Sequence[Run]) -> list[Compared]:
    """Analyse every run under a letter of its own. Raises InputError for a run given twice or too many of them."""
    ids = [run.run_id for run in runs]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise InputError(f"run {twice[0]} is given twice: name each run once, at the least two of them")
    if len(runs) > 26:
        raise InputError(f"{len(runs)} runs on one page: give at most 26")
    return [Compared(f"{chr(ord('A') + place)}: {_device(run)}", RunAnalysis(run)) for place, run in enumerate(runs)]


def _device(run: Run) -> str:
    device = printable(str(run.manifest.machine.device_name or "device not recorded"))
    name = device.replace("NVIDIA ", "")[:LONGEST_LABEL]
    return f"{name} (SIMULATED)" if run.simulated else f"{name} (stand-in)" if run.stand_in else name


def _interval(row: Any) -> str:
    return with_interval(row.mean, row.low, row.high, row.starts)


def picture(compared: Sequence[Compared]) -> dict[str, Any]:
    """Kept fractions of both workloads, a row a run, as a figure part of the templates."""
    from colo_lib.plot.decisions import kept_by_run

    points = pd.concat([item.analysis.points(item.label) for item in compared], ignore_index=True)
    mechanisms = {
        (item.label, str(step)): str(mechanism)
        for item in compared
        for step, mechanism in item.analysis.mechanisms.items()
    }
    buffer = io.BytesIO()
    kept_by_run(points, mechanisms, reach="95 % interval").savefig(buffer, format="png", metadata={"Software": None})
    shown = points[points["metric"].isin(["gen_kept", "embed_kept"])]
    names = names_of((row.step, mechanisms.get((row.run, row.step))) for row in shown.itertuples())
    said = {f"{name}_kept": quantity_in_words(name) for name in ("gen", "embed")}
    words = [f"{row.run}, {names[row.step]}, {said[row.metric]} {_interval(row)}" for row in shown.itertuples()]
    return {
        "name": "kept-by-run",
        "caption": "Rate in a shared step over the rate alone in the same run, with its 95 % interval.",
        "alt": "Kept fractions by run: " + ("; ".join(words) or "none measured") + ".",
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


def kept_rows(compared: Sequence[Compared]) -> pd.DataFrame:
    """A row a shared step and quantity, a column a run."""
    cells = {
        (str(row.step), str(row.quantity), item.label): _interval(row)
        for item in compared
        for row in item.analysis.kept[item.analysis.kept["step"].isin(KEPT_AGAINST_OTHERS)].itertuples()
    }
    names = names_of((row.step, row.mechanism) for item in compared for row in item.analysis.kept.itertuples())
    keys = [(step, name) for step in STEPS for name in ("gen", "embed", "aggregate_per_device")]
    rows = [
        (f"{capital(names[step])}: {quantity_in_words(name)}",
         *(cells.get((step, name, item.label), "—") for item in compared))
        for step, name in keys
        if any((step, name, item.label) in cells for item in compared)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Step and quantity", *(item.label for item in compared)])


def clause_rows(compared: Sequence[Compared]) -> pd.DataFrame:
    """A row a clause, a column a run: status and figure; a bound that differs between runs makes a row of its own."""
    cells: dict[str, dict[str, str]] = {}
    for item in compared:
        for row in item.analysis.verdict.clauses.itertuples():
            figure = _interval(row) if row.mean == row.mean else "no figure"
            cells.setdefault(str(row.clause), {})[item.label] = f"{row.status}: {figure}"
    rows = [(clause, *(by_run.get(item.label, "—") for item in compared)) for clause, by_run in cells.items()]
    return pd.DataFrame(rows, columns=["Clause", *(item.label for item in compared)])


def conditions(compared: Sequence[Compared]) -> pd.DataFrame:
    """Device, driver, models, weights, versions and every parameter, a column a run; `alike` says if all agree."""
    facts = [_conditions(item.run) for item in compared]
    names = list(dict.fromkeys(name for each in facts for name in each))
    rows = []
    for name in names:
        values = [each.get(name, "not told") for each in facts]
        rows.append((name, *values, len(set(values)) == 1))
    return pd.DataFrame(rows, columns=["Condition", *(item.label for item in compared), "alike"])


def _conditions(run: Run) -> dict[str, str]:
    machine = run.manifest.machine
    facts: dict[str, Any] = {f"machine: {name}": getattr(machine, name)
                             for name in ("device_name", "device_count", "driver", "cuda", "power_limit_w",
                                          "cpu", "git_commit")}  # fmt: skip
    facts |= {f"version: {name}": value for name, value in (machine.versions or {}).items()}
    facts |= {
        f"model of the {who}: {name}": getattr(run.manifest.model_of(workload), name)
        for workload, who in WORKLOADS.items()
        for name in ("name", "architecture", "parameters", "weights", "dtype")
    }
    mechanisms = dict(zip(run.trials["step"], run.trials["mechanism"], strict=True))
    facts |= {
        f"mechanism of {STEPS[step].name}": mechanism_in_words(mechanisms[step]) for step in STEPS if step in mechanisms
    }
    skipped = names_touching("storing", "reading")
    facts |= {f"parameter: {name}": value for name, value in run.manifest.params.items() if name not in skipped}
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
    compared = compare([open_run(folder) for folder in folders])
    target = output or reports_dir / NAME
    write_page(target, side_by_side_html(compared))
    if output is None:
        write_index(reports_dir)
    return target


def side_by_side_html(compared: Sequence[Compared]) -> str:
    """The page as HTML."""
    names = ", ".join(item.run.run_id for item in compared)
    about = {
        "run_id": names,
        "device": "; ".join(item.label for item in compared),
        "status": "side by side",
        "sentence": "; ".join(f"{item.label}: {item.analysis.verdict.status}" for item in compared),
        "created_utc": max(item.run.manifest.created_utc or "" for item in compared),
    }
    facts = conditions(compared)
    unlike, alike = (facts[facts["alike"] == value].drop(columns="alike") for value in (False, True))
    return page.document(
        "side_by_side.html",
        title=f"Co-location side by side: {names}",
        about=about,
        footer=f"Made by colo {__version__} from runs {names}. Every interval is 95 %.",
        skip=("kept", "Skip to the kept fractions"),
        titles=SIDE_BY_SIDE,
        labels=[f"{item.label}: {words}" for item in compared if (words := LABELS.get(_kind(item)))],
        verdicts=_verdicts(compared),
        picture=picture(compared),
        kept=table_part(kept_rows(compared), "Kept fraction or work per device [95 % interval]."),
        clauses=table_part(clause_rows(compared), "Each run is judged by the bounds of its own parameters."),
        unlike=table_part(unlike, f"{len(unlike)} conditions differ between these runs."),
        alike=table_part(alike, "Recorded, and the same in all."),
        runs=[_shown(item) for item in compared],
    )


def _verdicts(compared: Sequence[Compared]) -> dict[str, Any]:
    """A row a run, as a table part."""
    rows = [
        (item.label, item.analysis.verdict.status, _work(item), provenance.in_one_line(item.run)) for item in compared
    ]
    shown = pd.DataFrame(rows, columns=["Run", "Hypothesis", "Both at once: devices' worth per device", "On what"])
    return table_part(shown, "The verdict of each run on the hypothesis; dedicated devices do 1 each.")


def _shown(item: Compared) -> dict[str, Any]:
    """A run as the template takes it."""
    caption = f"{item.label}: means over blocks [95 % interval]; latencies pooled over trials."
    return {
        "label": item.label,
        "run_id": item.run.run_id,
        "sentence": item.analysis.headline,
        "warnings": page.merged(item.analysis.warnings),
        "steps": table_part(item.analysis.steps_shown, caption),
        "what_was_run": provenance.what_was_run(item.run),
    }


def _kind(item: Compared) -> str:
    return "simulated" if item.run.simulated else "stand-in" if item.run.stand_in else "measured"


def _work(item: Compared) -> str:
    kept = item.analysis.kept
    work = kept[(kept["step"] == "step2") & (kept["quantity"] == "aggregate_per_device")]
    return "not measured" if work.empty else _interval(next(work.itertuples()))
