"""The one table of steps: a row is enough, and a step that some part leaves out is an error here, never silence."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from colo_lib import paths
from colo_lib.analysis.capacity import units
from colo_lib.analysis.loss import gen_loss
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.steps_table import shown
from colo_lib.analysis.sweep import collect
from colo_lib.analysis.two_devices import ORDER, over_config_a
from colo_lib.data.run import open_run
from colo_lib.examples.simulated_run import write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.launch.mechanisms import module_of
from colo_lib.params import check
from colo_lib.placement import placement_of
from colo_lib.plot import run as plot_run
from colo_lib.plot import telemetry as plot_telemetry
from colo_lib.plot.decisions import two_devices
from colo_lib.plot.style import MECHANISM_HATCHES, MECHANISM_MARKERS
from colo_lib.report import across_tables, run_tables
from colo_lib.report.side_by_side import compare, kept_rows
from colo_lib.select import SIMULATED, select_trace
from colo_lib.steps import (
    CO_LOCATED,
    GEN_CAN_LOSE,
    KEPT_AGAINST_OTHERS,
    MECHANISMS,
    STEPS,
    TABLE,
    TWO_DEVICES,
    Step,
    names_of,
)
from tests.run_folders import add_capture

ROOT = Path(paths.REPOSITORY)
ROWS = [pytest.param(row, id=row.id) for row in TABLE]


@pytest.fixture(scope="module", params=["cuda", "cpu"])
def every_step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunAnalysis:
    """A simulated run that holds every step of the table, as GPUs or as cores would record it."""
    plan = Plan(
        run_id="every-step", blocks=3, window_s=2.0, device=request.param,
        gen_kept={row.id: 1.0 for row in TABLE if row.runs_gen},
        embed_kept={row.id: 1.0 for row in TABLE if row.runs_embed},
    )  # fmt: skip
    run = open_run(write_run(tmp_path_factory.mktemp(request.param), plan))
    analysis = RunAnalysis(run)
    assert set(analysis.counted["step"]) == set(STEPS)
    return analysis


def names(analysis: RunAnalysis) -> dict[str, str]:
    return names_of(analysis.mechanisms.items())


def words_in(figure: plt.Figure) -> str:
    """Every text of a figure, lines joined."""
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    return " | ".join(re.sub(r"\s+", " ", text) for text in texts)


@pytest.mark.parametrize("row", ROWS)
def test_a_step_has_a_notebook_that_records_it(row: Step) -> None:
    text = (paths.NOTEBOOKS / f"{row.notebook}.ipynb").read_text(encoding="utf-8")
    assert f'record_step(params, \\"{row.id}\\")' in text


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_can_be_placed(row: Step, device: str) -> None:
    placed = placement_of(row.id, check({"device": device, "devices": "0,1"}, "test"))
    assert (placed.runs_gen, placed.runs_embed) == (row.runs_gen, row.runs_embed)
    assert len(placed.all_devices) == 2 if row.needs_two else placed.gen_devices == placed.embed_devices[0]
    assert placed.engine_key()
    assert MECHANISMS[placed.mechanism]


@pytest.mark.parametrize("name", [row.id for row in MECHANISMS.values() if not row.cores])
def test_a_mechanism_has_its_module_and_its_look(name: str) -> None:
    module = module_of(name)
    assert callable(module.start)
    # A partition is proved as MPS is.
    assert hasattr(module, "prove") or MECHANISMS[name].mps
    assert name in MECHANISM_HATCHES
    assert name in MECHANISM_MARKERS


def test_every_step_is_in_the_tables_of_a_page(every_step: RunAnalysis) -> None:
    called = names(every_step)
    heads = " ".join(shown(every_step.steps_table).columns).lower()
    assert [step for step in STEPS if f"{called[step]} ({step})".lower() not in heads] == []
    bounds = {name.lower() for name in run_tables.bounds(every_step.against_bounds).columns}
    assert [step for step in STEPS if called[step].lower() not in bounds] == []
    kept = set(run_tables.kept(every_step.kept)["Step and quantity"].str.lower())
    assert [step for step in KEPT_AGAINST_OTHERS if f"{called[step]}: the llm".lower() not in kept] == []
    paying = set(run_tables.paying(every_step.pays)["Step"].str.lower())
    assert paying == {called[step].lower() for step in CO_LOCATED}
    beside = set(kept_rows(compare([every_step.run]))["Step and quantity"].str.lower())
    assert [step for step in KEPT_AGAINST_OTHERS if f"{called[step]}: the llm".lower() not in beside] == []


def test_every_step_is_in_the_figures_of_a_page(every_step: RunAnalysis) -> None:
    called = names(every_step)
    drawn = {
        "latency": (plot_run.distributions(every_step.measured.samples), STEPS),
        "stalls": (plot_run.stalls(every_step.against_bounds, every_step.mechanisms), STEPS),
        "kept": (plot_run.kept_fractions(every_step.kept, every_step.ratios), KEPT_AGAINST_OTHERS),
        "telemetry": (plot_telemetry.telemetry_over_time(every_step.samples, {"utilization": ("x", "%", 1.0)}), STEPS),
        "memory": (plot_telemetry.budget_and_use(every_step.memory.budget, every_step.memory.used), STEPS),
        "two devices": (
            two_devices(over_config_a(every_step.counted).assign(concurrency=1), every_step.mechanisms, {}),
            TWO_DEVICES,
        ),
    }
    for name, (figure, steps) in drawn.items():
        words = words_in(figure)
        assert [step for step in steps if called[step] not in words] == [], name
        bare = re.compile(r"\b(step[1-4]|mps-alone|config[AB]\S*|tp2-\S+)\b")
        assert not bare.search(words), f"{name}: a figure is labelled with an id"


def test_every_step_is_in_what_follows_from_a_run(every_step: RunAnalysis) -> None:
    lost = gen_loss(every_step.counted, every_step.telemetry, every_step.run.frame, {}, 0.8)
    assert set(lost.losses) == set(GEN_CAN_LOSE)
    made = units(every_step.counted, every_step.kept, every_step.against_bounds, 1000.0)
    assert {unit.step for unit in made[2:]} == set(CO_LOCATED)
    assert set(ORDER) == set(TWO_DEVICES)


def test_every_step_is_in_the_cells_of_a_sweep(every_step: RunAnalysis) -> None:
    class Cell:
        name, changes, status, reason, run = "cell-001", {"gen_concurrency": 1}, "done", None, every_step.run

    table = across_tables.cells(collect([Cell()], ("gen_concurrency",)))
    assert set(table["Step"]) == set(names(every_step).values())


@pytest.mark.parametrize("row", ROWS)
def test_a_capture_of_a_step_can_be_read_and_an_example_made(row: Step, tmp_path: Path) -> None:
    plan = {"gen_kept": {row.id: 1.0} if row.runs_gen else {}, "embed_kept": {row.id: 1.0} if row.runs_embed else {}}
    run = write_run(tmp_path, Plan(run_id="captured", blocks=1, window_s=1.0, device="cuda", **plan))
    add_capture(run, row.id)
    trace = select_trace(check({"run": str(run)}, "test"))
    assert row.name in trace.source
    assert trace.captured.step == row.id
    nothing = {"runs_dir": str(tmp_path / "none"), "trace_step": row.id}
    assert row.name in select_trace(check(nothing, "test"), SIMULATED).source


def test_pages_for_people_list_every_step() -> None:
    readme, folder = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/run-folder.md"))
    mechanisms = (ROOT / "docs" / "mechanisms.md").read_text(encoding="utf-8")
    for row in TABLE:
        assert f"`{row.id}` {row.name}" in readme, row.id
        assert f"`{row.notebook[:2]}`" in readme, row.notebook
        assert row.id in folder, row.id
    assert [row.id for row in MECHANISMS.values() if not row.cores and f"`{row.id}`" not in mechanisms] == []
