"""Papermill's word is not trusted: what it calls success, and what our own record then says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from colo_lib.launch.rpc import call, runtime_folder
from colo_lib.params import check
from colo_lib.record import notebook_host as record_notebook_host
from colo_lib.record.notebook_host import NotebookHost, notebook_host
from tests.processes import token_carriers, wait_until


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotebookHost]:
    monkeypatch.setattr(record_notebook_host, "NOTEBOOKS", tmp_path)
    with runtime_folder() as runtime, notebook_host(runtime, tmp_path / "host.log", {}) as running:
        yield running


def notebook(tmp_path: Path, *cells: str) -> str:
    made = new_notebook(cells=[new_code_cell(text) for text in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, tmp_path / "one.ipynb")
    return "one"


def test_a_notebook_is_executed_with_its_parameters(host: NotebookHost, tmp_path: Path) -> None:
    name = notebook(tmp_path, "window_s = 1.0", f"open({str(tmp_path / 'seen')!r}, 'w').write(str(window_s))")
    assert host.execute(name, tmp_path / "out.ipynb", check({"window_s": 7.5}, "test").model_dump(), 60.0) is None
    assert (tmp_path / "seen").read_text() == "7.5"
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells


def test_a_notebook_sees_nothing_of_the_one_before_it(host: NotebookHost, tmp_path: Path) -> None:
    seen, params = tmp_path / "seen", check({}, "test").model_dump()
    look = (
        f"import os; open({str(seen)!r}, 'a').write("
        "f\"{os.getpid()} {os.getcwd()} {'mine' in globals()} {len(In)} {'window_s = 1.0' in In}\\n\")"
    )
    for _ in range(2):
        name = notebook(tmp_path, "window_s = 1.0", look, "mine = 1; os.chdir('/')")
        assert host.execute(name, tmp_path / "out.ipynb", params, 60.0) is None
    first, second = seen.read_text().splitlines()
    assert first == second  # the kernel as well
    assert first.split()[2] == "False"
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    # A kernel in which a notebook failed is not used again.
    assert host.execute(notebook(tmp_path, "window_s = 1.0", "1 / 0"), tmp_path / "out.ipynb", params, 60.0) is not None
    assert host.execute(notebook(tmp_path, "window_s = 1.0", look), tmp_path / "out.ipynb", params, 60.0) is None
    assert seen.read_text().splitlines()[2].split()[0] != first.split()[0]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("raise ValueError('the cause')", "the cause"),
        ("import os, time; os.kill(os.getpid(), 2); time.sleep(5)", "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 9)", "kernel died"),
        ("import time; time.sleep(60)", "cell_timeout_s"),
    ],
)
def test_failures_are_told(host: NotebookHost, tmp_path: Path, cell: str, told: str) -> None:
    name = notebook(tmp_path, "window_s = 1.0", cell)
    complaint = host.execute(name, tmp_path / "out.ipynb", check({}, "test").model_dump(), 3.0)
    assert complaint is not None
    assert told in complaint
    assert "Traceback" not in complaint
    # The host is fit for the next one.
    assert (
        host.execute(
            notebook(tmp_path, "window_s = 1.0"), tmp_path / "next.ipynb", check({}, "test").model_dump(), 60.0
        )
        is None
    )


def test_a_damaged_run_is_a_sentence_in_a_notebook_too(host: NotebookHost, tmp_path: Path) -> None:
    cell = "from colo_lib.data.run import open_run; open_run('no-such-run')"
    complaint = host.execute(
        notebook(tmp_path, "window_s = 1.0", cell), tmp_path / "out.ipynb", check({}, "test").model_dump(), 60.0
    )
    assert complaint == "no run folder no-such-run; `colo list` names the runs"
    shown = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    (error,) = [output for output in shown if output["output_type"] == "error"]
    assert error["traceback"] == [f"colo: {complaint}"]


def test_a_quiet_exit_looks_like_success_to_papermill_alone(host: NotebookHost, tmp_path: Path) -> None:
    """Why a step is done only when its own record says so: nothing is complained of here."""
    name = notebook(tmp_path, "window_s = 1.0", "get_ipython().system('false')", "never = 'recorded'")
    assert host.execute(name, tmp_path / "out.ipynb", check({}, "test").model_dump(), 60.0) is None


def test_children_of_a_kernel_end_with_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_notebook_host, "NOTEBOOKS", tmp_path)
    before = set(token_carriers())
    name = notebook(tmp_path, "window_s = 1.0", "import subprocess; subprocess.Popen(['sleep', '300'])")
    with runtime_folder() as runtime, notebook_host(runtime, tmp_path / "host.log", {}) as running:
        assert running.execute(name, tmp_path / "out.ipynb", check({}, "test").model_dump(), 60.0) is None
    assert wait_until(lambda: set(token_carriers()) <= before)


def test_a_lost_host_is_told(host: NotebookHost, tmp_path: Path) -> None:
    import os
    import signal

    from colo_lib.errors import StepFailed

    os.kill(host.child.pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(StepFailed, match="host is lost"):
        host.execute(notebook(tmp_path, "window_s = 1.0"), tmp_path / "out.ipynb", check({}, "test").model_dump(), 5.0)
    with pytest.raises(OSError):
        call(host.handle, "status", timeout_s=1.0)
