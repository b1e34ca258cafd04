"""Every notebook as a person opens it: a real JupyterLab in a real browser, 'Run All', no error.

Those that record do so with real engines on models small enough for a test. Engines take most of a minute to start, so
one for each workload, and those that a CPU skips, are run; the rest are opened, and have the same cells.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_lib.analysis.trace.window import Asked
from colo_lib.launch.vllm_server import free_port
from colo_lib.params import STEPS
from colo_lib.paths import NOTEBOOKS, REPOSITORY
from tests.processes import wait_until
from tests.test_run_command import NANO

pytestmark = pytest.mark.browser
NAMES = [file.name for file in sorted(NOTEBOOKS.glob("*.ipynb"))]
RECORDING = [name for name in NAMES if name[0] in "12"]
RUN_HERE = ["12-both-shared.ipynb", "14-embed-alone.ipynb", "15-mig.ipynb", "16-sm-partition.ipynb"]
READING = [name for name in NAMES if name not in RECORDING]
CELLS_SETTLED = """
const panel = window.jupyterapp.shell.currentWidget;
const cells = [...panel.content.widgets].filter(cell => cell.model.type === 'code' && cell.model.sharedModel.source);
return cells.map(cell => cell.promptNode.textContent);
"""
STARTED = "return !!(window.jupyterapp && window.jupyterapp.commands.hasCommand('docmanager:open'))"
RUN_ALL = """
const done = arguments[0];
window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => done(null), error => done(String(error)));
"""
# A notebook after the other in one page, as a person opens them; what was open is left with its kernel ended.
OPEN = """
const [path, done] = arguments, app = window.jupyterapp;
(async () => {
    await app.restored;
    for (const old of [...app.shell.widgets('main')]) {
        if (old.sessionContext) await old.sessionContext.shutdown();
        old.dispose();
    }
    const opened = await app.commands.execute('docmanager:open', {path, factory: 'Notebook'});
    app.shell.activateById(opened.id);
})().then(() => done(null), error => done(String(error)));
"""
READY = """
const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
return !!(widget && widget.context && widget.context.path === arguments[0]
          && widget.content && widget.content.widgets && widget.sessionContext
          && widget.sessionContext.session && widget.sessionContext.session.kernel
          && widget.sessionContext.session.kernel.status === 'idle');
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for word in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1280,1000",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(word)
        made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        made.set_script_timeout(180)
        yield made
        made.quit()


@pytest.fixture(scope="module")
def lab_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(lab_root: Path) -> Iterator[str]:
    """A JupyterLab over a copy of the notebooks beside the package; gives its address."""
    root = lab_root
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    for name in RECORDING:
        _shrink(root / "notebooks" / name, {**NANO, "runs_dir": str(root / "runs")})
    token, port = secrets.token_hex(16), free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--LabApp.check_for_updates_class="
                "jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    kinds = ("CONFIG", "DATA", "RUNTIME")
    folders = {f"JUPYTER_{kind}_DIR": str(root / kind.lower()) for kind in kinds}
    environment = os.environ | folders | {"PYTHONPATH": str(REPOSITORY)}
    with open(root / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        assert wait_until(lambda: _up(port, token), 120), (root / "lab.log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/lab?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)  # it ends a kernel a notebook
        except subprocess.TimeoutExpired:  # an idle worker thread of AnyIO can keep a server that has ended all else
            server.kill()
            server.wait()


def _shrink(file: Path, values: dict[str, Any]) -> None:
    """Change values in a notebook's parameters cell, as a person would before 'Run All'."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["parameters"])
    cell["source"] = [
        f"{name} = {values[name]!r}\n" if (name := line.partition(" = ")[0]) in values else line
        for line in cell["source"]
    ]
    file.write_text(json.dumps(notebook), encoding="utf-8")


def _up(port: int, token: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("name", READING)
def test_run_all_reaches_the_bottom(browser: Any, lab: str, name: str) -> None:
    _run_all(browser, lab, name, 180)


@pytest.mark.engine
@pytest.mark.parametrize("name", RUN_HERE)
def test_a_notebook_that_records_reaches_the_bottom(browser: Any, lab: str, engine_python: Path, name: str) -> None:
    _run_all(browser, lab, name, 300)


@pytest.mark.parametrize("name", [name for name in RECORDING if name not in RUN_HERE])
def test_the_other_notebooks_that_record_open_and_have_the_same_cells(browser: Any, lab: str, name: str) -> None:
    _open(browser, lab, name)
    assert _cells(name) == _cells(RUN_HERE[0])


def _cells(name: str) -> list[str]:
    """Its code but for the cell of parameters, which lists those of its own step; one word for every step's name."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]) for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]
    return [re.sub(f'"({"|".join(STEPS)})"', '"STEP"', source) for source in code]


def test_a_timeline_takes_its_keys_before_jupyterlab_does_and_a_table_is_sorted(browser: Any, lab: str) -> None:
    """In a notebook the letter b is a new cell; with the timeline it is nothing."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _run_all(browser, lab, "41-kernel-overlap.ipynb", 180)
    box = browser.find_element(By.CSS_SELECTOR, ".colo-timeline")
    assert wait_until(lambda: box.get_attribute("data-state") == "ready")
    stage = box.find_element(By.CSS_SELECTOR, ".colo-stage")
    span = lambda: [float(box.get_attribute(f"data-{edge}-ns")) for edge in ("from", "to")]  # noqa: E731
    whole = span()
    stage.send_keys("++++")
    assert span()[1] - span()[0] == pytest.approx(whole[1] / 16)
    stage.send_keys("nn")
    assert "us, lasts " in box.find_element(By.CSS_SELECTOR, ".colo-status").text
    count = "return window.jupyterapp.shell.currentWidget.content.widgets.length"
    cells = browser.execute_script(count)
    stage.send_keys("b00")
    box.find_element(By.CSS_SELECTOR, ".colo-tools button").send_keys("b" + Keys.ENTER + "0")
    assert span() == whole
    value = next(head for head in browser.find_elements(By.CSS_SELECTOR, ".colo-table button") if head.text == "Value")
    value.send_keys(Keys.ENTER)
    assert value.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    assert browser.execute_script(count) == cells


def test_a_notebook_that_is_not_trusted_has_words_where_the_timeline_would_be(
    browser: Any, lab: str, lab_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colo_lib.report import notebook_output

    shown: list[Any] = []
    monkeypatch.setattr(notebook_output, "_publish", lambda data, part: shown.append(data))
    notebook_output.show_timeline(_packed(), "kernel-zoom", "A caption.", "It in words.", section="traces")
    output = {"output_type": "display_data", "data": shown[0], "metadata": {}}
    cell = {"cell_type": "code", "id": "a", "source": "", "metadata": {}, "execution_count": 1, "outputs": [output]}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (lab_root / "notebooks" / "sent.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    _open(browser, lab, "sent.ipynb")
    told = "const area = document.querySelector('.jp-OutputArea-output'); return area ? area.innerText : '';"
    assert wait_until(lambda: "It in words." in browser.execute_script(told))
    assert "no script ran: in JupyterLab, trust the notebook" in browser.execute_script(told)
    assert not browser.execute_script("return document.querySelector('.jp-OutputArea-output canvas')")


def _packed() -> dict[str, Any]:
    """A timeline of the built-in example."""
    from colo_lib.analysis.trace.window import view_of
    from colo_lib.params import Params
    from colo_lib.report import timeline
    from colo_lib.select import select_trace

    captured = select_trace(Params(runs_dir="none")).captured
    view = view_of(captured.capture, captured.facts, Asked())
    return timeline.timeline_of(view, sum(view.window) // 2)


def _open(browser: Any, address: str, name: str) -> None:
    """Have the notebook in front, with a kernel that waits for work."""
    if not browser.execute_script(STARTED):
        browser.get(address)
        assert wait_until(lambda: browser.execute_script(STARTED), 120), "JupyterLab did not start"
    path = f"notebooks/{name}"
    assert browser.execute_async_script(OPEN, path) is None
    assert wait_until(lambda: browser.execute_script(READY, path), 120), "the notebook did not open with a kernel"


def _run_all(browser: Any, address: str, name: str, allowed_s: float) -> None:
    """Open the notebook, 'Run All', wait until every cell has its number, and look for errors."""
    from selenium.webdriver.common.by import By

    _open(browser, address, name)
    assert browser.execute_async_script(RUN_ALL) is None
    deadline = time.monotonic() + allowed_s
    prompts: list[str] = []
    while time.monotonic() < deadline:
        prompts = browser.execute_script(CELLS_SETTLED)
        if prompts and all(prompt.strip("[]: ").isdigit() for prompt in prompts):
            break
        time.sleep(0.3)
    assert prompts
    assert all(prompt.strip("[]: ").isdigit() for prompt in prompts), prompts
    errors = browser.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.error']")
    assert [error.text[:500] for error in errors] == []
