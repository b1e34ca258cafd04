"""A page's notebooks run in forks: what they show, and what is told of their failures, is as in a kernel of Jupyter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from colo_lib import paths
from colo_lib.data.run import open_run
from colo_lib.errors import StepFailed
from colo_lib.report import execute, page
from colo_lib.report.execute import Notebook, execute_alone, preloaded
from tests.run_folders import Plan, write_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no forks here: every notebook has its own kernel")

FINISH = "from colo_lib.report.notebook_output import finish\nfinish({!r}, 'r')"
SHOWN = """
import os, sys
import pandas as pd
from IPython.display import HTML, clear_output, display
print("one"); print("two", file=sys.stderr); print("three")
display(HTML("<b>four</b>"), metadata={"a": 1})
5
---
handle = display("six", display_id="x")
pd.DataFrame({"seven": [7]})
---
handle.update("eight")
print("gone"); clear_output(); print("stays")
---
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.show()
---
await_me = 9
import asyncio
await asyncio.sleep(0, await_me)
---
!echo ten
[__name__, os.path.basename(os.getcwd()) == os.path.basename(PLACE), run]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"), Plan(blocks=2, window_s=1.0))


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    return folder


def write(folder: Path, name: str, *cells: str) -> Notebook:
    """A notebook of these cells that ends as those of a report do."""
    told = nbformat.v4.new_code_cell("run = ''", metadata={"tags": ["parameters"]})
    made = [nbformat.v4.new_code_cell(cell) for cell in (*cells, FINISH.format(name))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[told, *made], metadata={"kernelspec": kernel}),
                   folder / f"{name}.ipynb")  # fmt: skip
    return Notebook(name, "r", {"run": "here"}, 120, folder.parent / f"out-{name}.ipynb")


def outputs(file: Path) -> list[list[dict[str, Any]]]:
    """Outputs by cell; streams joined, for a kernel cuts them by the clock, and without colours of code."""
    cells = []
    for cell in json.loads(re.sub(r"\\u001b\[[0-9;]*m", "", file.read_text().replace("\x1b", "\\u001b")))["cells"]:
        joined: dict[str, str] = {}
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                joined[output["name"]] = joined.get(output["name"], "") + "".join(output["text"])
        rest = [output for output in cell.get("outputs", []) if output["output_type"] != "stream"]
        cells.append([joined, cell.get("execution_count"), *rest])
    return cells


def test_every_kind_of_output_is_as_a_kernel_gives_it(notebooks: Path, run: Path) -> None:
    cells = [cell.strip() for cell in SHOWN.replace("PLACE", repr(str(paths.REPOSITORY))).split("---")]
    notebook = write(notebooks, "all", *cells)
    alone = execute_alone(notebook)
    expected = outputs(notebook.target)
    with preloaded(run) as execute_all:
        assert execute_all([notebook]) == alone
    shown = outputs(notebook.target)
    assert shown == expected
    words = json.dumps(shown)
    for number in ("one", "two", "three", "four", "eight", "stays", "9", "ten", "__main__", "image/png"):
        assert number in words
    assert "gone" not in words


def test_what_programs_and_libraries_print_is_shown(notebooks: Path, run: Path) -> None:
    notebook = write(
        notebooks, "below", "import os, subprocess\nos.write(2, b'deep')\n_ = subprocess.run(['echo', 'low'])"
    )
    with preloaded(run) as execute_all:
        execute_all([notebook])
    assert outputs(notebook.target)[2][0] == {"stdout": "low\n", "stderr": "deep"}


@pytest.mark.parametrize("name", ["51-verdict", "46-telemetry"])
def test_the_parts_of_a_page_are_those_of_a_kernel(run: Path, tmp_path: Path, name: str) -> None:
    opened = open_run(run)
    alone = page.execute(name, opened, tmp_path / "alone.ipynb")
    with preloaded(run) as execute_all:
        forked = execute_all([page.to_execute(name, opened, tmp_path / "forked.ipynb")])
    assert forked == alone
    assert outputs(tmp_path / "forked.ipynb") == outputs(tmp_path / "alone.ipynb")
    nbformat.validate(nbformat.read(tmp_path / "forked.ipynb", as_version=4))


FAILURES = {
    "raise ValueError('broken here')": "ValueError: broken here",
    "from colo_lib.errors import InputError\nraise InputError('say this')": "say this",
    "import os\nos._exit(0)": "Kernel died",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": "Kernel died",
    "import sys\nsys.exit(0)": "no record of its last cell",
    "import time\ntime.sleep(60)": "A cell timed out while it was being executed, after 5 seconds",
    "def": "SyntaxError",
}


def shown_before(file: Path) -> list[list[dict[str, Any]]]:
    """Outputs without errors; a kernel that ends may or may not tell the number of its cell, or an interruption."""
    return [[cell[0], *(each for each in cell[2:] if each["output_type"] != "error")] for cell in outputs(file)]


@pytest.mark.parametrize("source", FAILURES)
def test_a_failure_is_told_in_the_same_words(notebooks: Path, run: Path, source: str) -> None:
    made = write(notebooks, "n", "print('before')", source, "print('after')")
    notebook = Notebook("n", "r", {"run": "here"}, 5, made.target)
    with pytest.raises(StepFailed, match="notebook n did not reach its end for r: ") as alone:
        execute_alone(notebook)
    kept = shown_before(notebook.target)
    with pytest.raises(StepFailed) as forked, preloaded(run) as execute_all:
        execute_all([notebook])
    assert FAILURES[source] in str(forked.value)
    assert str(forked.value) == str(alone.value)
    assert shown_before(notebook.target) == kept, "it can be opened"
    assert "before" in json.dumps(kept)
    assert "after" not in json.dumps(kept)


def test_notebooks_do_not_see_each_other_and_come_in_their_order(notebooks: Path, run: Path) -> None:
    change = "import colo_lib.steps, os, time\ntime.sleep({})\nassert not hasattr(colo_lib.steps, 'mark')\n"
    change += "assert 'MARK' not in os.environ\ncolo_lib.steps.mark = os.environ['MARK'] = '1'"
    made = [write(notebooks, f"n{place}", change.format(2 - place)) for place in range(3)]
    with preloaded(run) as execute_all:
        parts = execute_all(made)
    assert [part["notebook"] for part in parts] == ["n0", "n1", "n2"]


def test_nothing_has_threads_before_the_fork(run: Path) -> None:
    with execute._forking(run) as process:
        assert process is not None
        assert process.stdout.readline() == execute.READY
        assert psutil.Process(process.pid).num_threads() == 1


def test_where_it_refuses_to_fork_kernels_do_it(
    notebooks: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execute, "ONE_THREAD", {"JE_ARROW_MALLOC_CONF": "background_thread:true"})
    notebook = write(notebooks, "n", "1 + 1")
    with preloaded(run) as execute_all:
        assert [part["kind"] for part in execute_all([notebook])] == ["done"]
    assert "threads: a fork would not be safe" in capfd.readouterr().err


def test_the_first_failure_ends_the_others(notebooks: Path, run: Path) -> None:
    slow = write(notebooks, "slow", f"open({str(notebooks / 'pid')!r}, 'w').write(str(__import__('os').getpid()))",
                 "import time; time.sleep(600)")  # fmt: skip
    bad = write(notebooks, "bad", "import time; time.sleep(1)", "raise KeyError('x')")
    began = time.monotonic()
    with pytest.raises(StepFailed, match="bad did not reach its end"), preloaded(run) as execute_all:
        execute_all([slow, bad] if os.cpu_count() != 1 else [bad, slow])
    assert time.monotonic() - began < 300
    if (notebooks / "pid").exists():
        wait_gone([int((notebooks / "pid").read_text())])
    assert not list(notebooks.parent.glob(".new-*"))


@pytest.mark.parametrize("victim", ["owner", "preloaded", "notebook"])
def test_who_is_killed_leaves_nothing_running(notebooks: Path, run: Path, victim: str) -> None:
    write(notebooks, "51-verdict", "import time; open('{}', 'w').close(); time.sleep(600)".format(notebooks / "there"))
    code = (
        "import sys; from pathlib import Path; from colo_lib import paths; from colo_lib.report import page\n"
        "paths.NOTEBOOKS = Path(sys.argv[1]); page.notebooks_of = lambda run: ('51-verdict',)\n"
        "page.make_report(Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(notebooks), str(run), str(notebooks.parent / "reports")]
    owner = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (notebooks / "there").exists())
    below = psutil.Process(owner.pid).children(recursive=True)
    assert len(below) == 3, "the preloaded process, the notebook's, its cells'"
    {"owner": owner, "preloaded": below[0], "notebook": below[1]}[victim].send_signal(signal.SIGKILL)
    _, complaint = owner.communicate(timeout=60)
    if victim != "owner":
        assert "51-verdict did not reach its end" in complaint
        assert "died" in complaint
    wait_gone([process.pid for process in below])
    assert not list((notebooks.parent / "reports").glob("*.html"))


def wait_for(true: Any) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_gone(pids: list[int]) -> None:
    def gone() -> bool:
        living = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        return all(process.status() == psutil.STATUS_ZOMBIE for process in living)

    wait_for(gone)
