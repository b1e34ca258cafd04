"""The pages for people who do not see them, or not well: axe-core in a real browser finds nothing, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.data.capture import captured_steps
from colo_lib.data.run import find_runs, open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.report import page, side_by_side, sweep_page
from colo_lib.report.execute import execute_alone
from colo_lib.report.page import execute
from tests.report import chromium
from tests.run_folders import Plan, write_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: install the chromium package"),
]
AXE = Path(__file__).parents[1] / "vendor" / "axe-core" / "axe.min.js"
# Folded parts are opened: what a reader can unfold is the page too.
ASKED = {
    "drawn": """new Promise(done => { const look = () => document.querySelector('.colo-timeline[data-state=reading]')
        ? setTimeout(look, 20) : done(document.querySelectorAll('.colo-stage canvas').length); look(); })""",
    "opened": "[...document.querySelectorAll('details')].forEach(part => part.open = true)",
    "axe": "{source}; 'loaded'",
    "found": """axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})
        .then(told => told.violations.map(rule => rule.id + ': ' + rule.nodes.slice(0, 3).map(node =>
            node.html.slice(0, 200) + ' ' + node.failureSummary).join(' | ')))""",
    "checked": """axe.run(document, {runOnly: ['color-contrast', 'heading-order', 'html-has-lang', 'landmark-one-main'],
        resultTypes: ['passes']}).then(told => told.passes.map(rule => rule.id))""",
    "scopes": "[...document.querySelectorAll('th')].every(cell => ['col', 'row'].includes(cell.scope))",
    "wide": """[...document.querySelectorAll('.scroll, .picture')].every(box => box.scrollWidth <= box.clientWidth
        || (box.tabIndex === 0 && box.getAttribute('aria-label')))""",
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    recorded = next(folder for folder in find_runs(paths.RECORDED) if captured_steps(folder))
    plan = Plan(run_id="other", blocks=2, window_s=2.0, stall_s={"step3": 1.2}, invalid={("step2", 2): "strangers"})
    both = side_by_side.make_side_by_side([recorded, write_run(root, plan)], root)
    run = open_run(recorded)
    names = ("51-verdict", "47-memory", "41-kernel-overlap")
    found = [part for name in names for part in execute(name, run, root / f"{name}.ipynb")]
    levers = open_sweep(next(paths.RECORDED.glob("h100-llama-*[0-9]")))
    name = "37-operating-point"
    shown = execute_alone(sweep_page.to_execute(name, levers, root / f"{name}.ipynb"))
    first = next(iter(levers.runs.values()))
    (root / "sweep.html").write_text(sweep_page.sweep_html(levers, first, shown), encoding="utf-8")
    (root / "run.html").write_text(page.run_html(run, found), encoding="utf-8")
    names = {"run": root / "run.html", "sweep": root / "sweep.html", "side by side": both}
    return names | {"index": page.write_index(root)}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("name", ["run", "sweep", "side by side", "index"])
def test_nothing_stands_in_a_reader_s_way(pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    source = AXE.read_text(encoding="utf-8")
    asked = {key: expression.replace("{source}", source) for key, expression in ASKED.items()}
    told = chromium.load(pages[name], width, dark, asked)
    assert told["found"] == []
    assert {"color-contrast", "html-has-lang", "landmark-one-main", "heading-order"} <= set(told["checked"])
    assert (told["scopes"], told["wide"], told["drawn"]) == (True, True, int(name == "run"))


def test_the_check_finds_what_it_is_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    body = "<main><h1>Title</h1><h3>Part</h3><p style='color:#aaa'>Words too pale to read</p><img src=''></main>"
    bad.write_text(f"<!DOCTYPE html><title>Bad</title>{body}")
    source = AXE.read_text(encoding="utf-8")
    asked = {key: expression.replace("{source}", source) for key, expression in ASKED.items()}
    found = " ".join(chromium.load(bad, 1280, False, asked)["found"])
    for rule in ("color-contrast", "image-alt", "heading-order", "html-has-lang"):
        assert rule in found
