"""The page of a sweep: what its notebooks show, the sentences first, as one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colo_lib import __version__
from colo_lib.analysis.drift import apart
from colo_lib.analysis.operating_point import LEVERS, STEPS
from colo_lib.data.run import Run
from colo_lib.data.sweep import Sweep, open_sweep
from colo_lib.errors import InputError
from colo_lib.params import PURPOSES
from colo_lib.report import page, provenance
from colo_lib.report.across_tables import states
from colo_lib.report.execute import Notebook, preloaded
from colo_lib.report.notebook_output import SWEEP_PAGE, by_section, table_part
from colo_lib.report.page import keep_figures, write_index, write_page

# notebook -> (parameters of which the sweep varies one, steps of which it has one); the most telling first
NOTEBOOKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "37-operating-point": (tuple(LEVERS), STEPS),
    "55-two-devices": (("gen_concurrency",), ("configB",)),
    "38-demand": (("embed_rate",), ("step2",)),
    "31-thread-percentage": (("mps_embed_thread_percentage", "mps_gen_thread_percentage"), ("step2",)),
    "32-concurrency": (("gen_concurrency",), ("step2",)),
    "33-batch-more": (("gen_concurrency",), ("step2",)),
    "34-eager-vs-graphs": (("gen_enforce_eager",), ("step2",)),
    "35-prefill-share": (("gen_prompt_tokens", "gen_output_tokens"), ("step2",)),
    "36-memory-pressure": (("gen_kv_cache_gib", "embed_batch_size"), ("step2",)),
}


def make_sweep_report(folder: Path, reports_dir: Path, output: Path | None = None, figures: Path | None = None) -> Path:
    """Execute the notebooks that a sweep has something for, write its page and give its path.

    `output` and `figures` as in `make_report`. Raises InputError for a sweep that cannot be read, or of which no
    notebook has anything to show.
    """
    with preloaded(folder) as execute_all:
        sweep = open_sweep(folder)
        wanted = notebooks_of(sweep)
        if not wanted:
            few = "fewer than two cells of this sweep were measured in a step that a notebook reads"
            raise InputError(f"{folder}: {few}")
        first = next(iter(sweep.runs.values()))
        if figures is not None:
            keep_figures(first, figures, first_lever(sweep.names))
        executed = reports_dir / sweep.sweep_id
        executed.mkdir(parents=True, exist_ok=True)
        parts = execute_all([to_execute(name, sweep, executed / f"{name}.ipynb") for name in wanted])
    target = output or reports_dir / f"{sweep.sweep_id}.html"
    write_page(target, sweep_html(sweep, first, parts))
    if output is None:
        write_index(reports_dir)
    return target


def to_execute(name: str, sweep: Sweep, target: Path) -> Notebook:
    """A notebook on a sweep: its folder, and as long as its own parameters allow."""
    timeout_s = int(max(1, sweep.params.cell_timeout_s))
    return Notebook(name, sweep.sweep_id, {"sweep": str(sweep.folder.resolve())}, timeout_s, target)


def first_lever(names: Sequence[str]) -> str:
    """The first varied parameter that says how the device is shared, else the first."""
    return next((name for name in names if PURPOSES[name].group == "mechanism"), names[0])


def notebooks_of(sweep: Sweep) -> list[str]:
    """The notebooks that this sweep has something for."""
    return [
        name
        for name, (names, steps) in NOTEBOOKS.items()
        if set(names) & set(sweep.names) and set(steps) & sweep.steps and len(sweep.along(names).runs) > 1
    ]


def sweep_html(sweep: Sweep, first: Run, parts: list[dict[str, Any]]) -> str:
    """The page as HTML; `first`: a run of it; `parts`: what was lifted from the executed notebooks.

    The first section that has any gives its sentences and its picture to the first screen.
    Raises InputError for a part of a section that the page of a sweep has not.
    """
    sections = by_section(parts, SWEEP_PAGE)
    opening = next((name for name in SWEEP_PAGE if sections[name]), "cells")
    lead = [part for part in sections[opening] if part["kind"] in ("text", "figure")]
    sections[opening] = [part for part in sections[opening] if part not in lead]
    about = page.page_summary(first, {}) | {
        "run_id": sweep.sweep_id,
        "status": "sweep",
        "sentence": " ".join(part["text"] for part in lead if part["kind"] == "text"),
    }
    always = {"cells", "provenance", opening}
    return page.document(
        "sweep.html",
        title=f"Co-location: {sweep.sweep_id}",
        about=about,
        footer=f"Made by colo {__version__} from sweep {sweep.sweep_id}. Every interval is 95 %.",
        skip=(opening, "Skip to the first answer"),
        zooming=any(part["kind"] == "timeline" for shown in sections.values() for part in shown),
        banner=page.SIMULATED if sweep.simulated else page.STAND_IN if sweep.stand_in else "",
        lead=lead,
        one_line=provenance.in_one_line(first),
        warnings=page.merged(_doubts(sweep)),
        cells=_cells(sweep),
        what_was_run=provenance.what_was_run(first),
        titles={name: title for name, title in SWEEP_PAGE.items() if sections[name] or name in always},
        sections={name: _answer_first(shown) for name, shown in sections.items()},
        states=table_part(states(sweep), "What each cell varies, and what became of it."),
        provenance=provenance.facts_of(first),
    )


def _cells(sweep: Sweep) -> list[tuple[str, object]]:
    trials = [run.trials for run in sweep.runs.values()]
    counted = sum(int((rows["status"] == "done").sum()) for rows in trials)
    whole = f"{len(sweep.runs)} of {len(sweep.cells)} cells, {counted} of {sum(map(len, trials))} trials count"
    measured = len({(row.step, row.window_start_ns) for rows in trials for row in rows.itertuples()})
    if measured < sum(map(len, trials)):
        whole += f"; {measured} were measured, cells share those that are the same for them"
    return [("Sweep", whole), ("Varied", ", ".join(sweep.names))]


def _doubts(sweep: Sweep) -> list[str]:
    """What `drift.apart` says of the cells, each sentence once."""
    lines = [line for run in sweep.runs.values() for line in apart(run.trials[run.trials["status"] == "done"])]
    return list(dict.fromkeys(lines))


def _answer_first(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures, then sentences, then tables: a notebook of a sweep ends in its answer, a section begins with it."""
    order = {"figure": 0, "timeline": 0, "text": 1}
    return sorted(parts, key=lambda part: order.get(part["kind"], 2))
