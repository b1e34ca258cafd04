"""The notebooks as tracked: in sync with the parameters, without outputs, in small cells; and they run to the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colo_lib import notebooks_sync, params, paths
from colo_lib.report import notebook_output
from colo_lib.select import select_run
from tests.forked_notebooks import executed_in_forks

READING = ("46-telemetry", "47-memory", "51-verdict", "52-gen-loss", "53-published", "54-capacity-plan")
SWEEPS = (*(file.stem for file in sorted(paths.NOTEBOOKS.glob("3*.ipynb"))), "55-two-devices")
# What no recorded sweep varies.
SIMULATED = ("34-", "35-", "36-", "38-")
FILES = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


def test_the_notebooks_are_in_sync() -> None:
    changed = [file.name for file in notebooks_sync.out_of_sync()]
    assert not changed, f"run python -m colo_lib.notebooks_sync: {changed}"


def test_the_check_finds_what_is_out_of_sync(tmp_path: Path) -> None:
    notebook = json.loads(FILES[0].read_text(encoding="utf-8"))
    notebook["cells"][1]["source"] = ["old = 1"]
    notebook["cells"][2] |= {
        "execution_count": 4,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
    }
    notebook["metadata"]["papermill"] = {"input_path": "x"}
    copy = tmp_path / FILES[0].name
    copy.write_text(json.dumps(notebook))
    assert notebooks_sync.out_of_sync(tmp_path) == [copy]
    once = notebooks_sync.text_of(notebooks_sync.synced(notebook, FILES[0].stem))
    assert once == FILES[0].read_text(encoding="utf-8")
    assert notebooks_sync.text_of(notebooks_sync.synced(json.loads(once), FILES[0].stem)) == once


@pytest.mark.parametrize("name", [*READING, *SWEEPS])
def test_a_reading_notebook_keeps_the_house_form(name: str) -> None:
    notebook = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    opening = "".join(notebook["cells"][0]["source"])
    assert all(word in opening for word in ("**Question.**", "**Needs.**", "**Shows.**"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "".join(code[0]["source"]) == params.cell_source(notebooks_sync.names_of(name))
    assert "params = from_notebook(globals())" in "".join(code[1]["source"])
    assert all(1 <= len(cell["source"]) <= 6 for cell in code[1:])
    read = "sweep.sweep_id" if name in SWEEPS else "run.run_id"
    assert "".join(code[-1]["source"]) == f'out.finish("{name}", {read})'


def listed(file: Path) -> list[str]:
    """The names that a tracked notebook's parameters cell assigns."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    [cell] = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return [line.partition(" = ")[0].strip() for line in cell["source"] if not line.startswith("#")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_lists_what_it_reads_or_what_people_change(file: Path) -> None:
    most = 16 if file.stem.startswith(("1", "2")) else 4
    assert 1 <= len(listed(file)) <= most


def test_a_parameter_stands_in_few_notebooks() -> None:
    # A changed default or help text touches these alone.
    several = {name: sum(name in listed(file) for file in FILES) for name in params.Params.model_fields}
    assert sum(count == 0 for count in several.values()) > len(several) / 2
    assert max(several.values()) < len(FILES) / 2


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every notebook as papermill leaves it, where nothing was measured."""
    folder = tmp_path_factory.mktemp("executed")
    nothing = {"runs_dir": str(folder / "none"), "sweeps_dir": str(folder / "none")}
    example = select_run(params.Params(runs_dir=nothing["runs_dir"])).folder
    return executed_in_forks(folder, example, {name: (name, nothing) for name in (*READING, *SWEEPS)})


@pytest.mark.parametrize("name", [*READING, *SWEEPS])
def test_run_all_reaches_the_bottom_where_nothing_was_measured(name: str, executed: dict[str, dict[str, Any]]) -> None:
    found = notebook_output.lift(executed[name])
    last = found[-1]
    assert (last["kind"], last["notebook"]) == ("done", name)
    recorded = [folder.name for folder in paths.RECORDED.iterdir()]
    simulated = name.startswith(SIMULATED)
    assert last["run_id"].startswith("example-") if simulated else last["run_id"] in recorded
    assert ("SIMULATED" if simulated else "recorded on NVIDIA") in json.dumps(executed[name]["cells"][3])
    if name.startswith("3"):
        kinds = [part["kind"] for part in found]
        assert kinds[-3:] == ["figure", "text", "done"], "a sweep ends in one picture and one sentence"
        assert {*kinds[:-3]} == {"table"}
        assert found[-2]["text"].startswith("SIMULATED") is simulated
