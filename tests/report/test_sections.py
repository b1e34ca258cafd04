"""What a notebook shows stands on the page, in the section that the notebook names: nothing is dropped on the way."""

from __future__ import annotations

import ast
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.report import notebook_output, page
from colo_lib.report.notebook_output import FIRST, RUN_PAGE, SWEEP_PAGE
from tests.run_folders import Plan, add_capture, write_run

SHOWS = ("show_figure", "show_table", "show_text", "show_timeline")


class Parts(HTMLParser):
    """The words and images inside each element that says which parts it holds, by part; and those of the whole page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: dict[str, str] = {}
        self.section: dict[str, str] = {}
        self.images: dict[str, str] = {}
        self.all = ""
        self._open: list[list[str]] = []
        self._section = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag in ("header", "section"):
            self._section = FIRST if tag == "header" else str(told["id"])
        if tag == "div":
            self._open.append((told.get("data-part") or "").split())
            for name in self._open[-1]:
                assert name not in self.words, f"{name} stands twice"
                self.words[name], self.section[name] = "", self._section
        if tag == "img":
            for name in self._names():
                self.images[name] = str(told["src"]).partition(",")[2]

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.all += data
        for name in self._names():
            self.words[name] += data

    def _names(self) -> list[str]:
        return [name for names in self._open for name in names]


def parts_of(folder: Path) -> list[dict[str, Any]]:
    """What the executed notebooks of a page have shown, from their files."""
    files = sorted(folder.glob("*.ipynb"))
    assert files
    return [part for file in files for part in notebook_output.lift(json.loads(file.read_text(encoding="utf-8")))]


def run_folder(kind: str, root: Path) -> Path:
    if kind == "recorded":
        return next(iter(paths.RECORDED.glob("h200-qwen3b-*[0-9]")))
    folder = write_run(root / "runs", Plan(blocks=2, window_s=1.0, device="cuda", params={"embed_pacing": "slo"}))
    for step in ("step1", "step2", "step4"):
        add_capture(folder, step)
    return folder


@pytest.mark.parametrize("kind", ["recorded", "simulated"])
def test_every_part_that_a_notebook_shows_stands_on_the_page(kind: str, tmp_path: Path) -> None:
    run = run_folder(kind, tmp_path)
    made = Parts(page.make_report(run, tmp_path / "reports").read_text(encoding="utf-8"))
    parts = parts_of(tmp_path / "reports" / run.name)
    assert {part["notebook"] for part in parts if part["kind"] == "done"} == {*page.NOTEBOOKS, *page.TRACE_NOTEBOOKS}
    for part in parts:
        name = part["name"]
        if part["kind"] == "done":
            continue
        if part["kind"] == "verdict":
            assert all(words in made.all for words in (part["status"], part["sentence"], *part["missing"]))
            continue
        assert made.section[name] == part["section"], name
        shown = [part.get("caption", ""), part.get("text", "")]
        if part["kind"] == "figure":
            assert made.images[name] == part["png"], name
        if part["kind"] == "table":
            shown = [*part["columns"], *(cell for row in part["rows"] for cell in row)] if part["rows"] else ["None"]
        for words in shown:
            assert " ".join(words.split()) in " ".join(made.words[name].split()), f"{name}: {words}"
    assert {"memory-parts", "recomputed", "published-loss", "published-explanations", "gen-loss-words",
            "sm-occupancy-basis", "sm-occupancy-notes", "categories-notes"} <= made.words.keys()  # fmt: skip


def calls(file: Path) -> list[ast.Call]:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if isinstance(call.func, ast.Attribute) and call.func.attr in SHOWS]


@pytest.mark.parametrize("file", sorted(paths.NOTEBOOKS.glob("[345]*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_names_the_section_of_all_that_it_shows(file: Path) -> None:
    found = calls(file)
    assert found
    known = SWEEP_PAGE if file.stem.startswith(("3", "55")) else (FIRST, *RUN_PAGE)
    for call in found:
        named = [keyword.value for keyword in call.keywords if keyword.arg == "section"]
        assert named, f"{ast.unparse(call)} names no section"
        assert ast.literal_eval(named[0]) in known, ast.unparse(call)


def test_an_unknown_section_is_refused_at_once_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(notebook_output, "_publish", lambda data, part: shown.append(part))
    with pytest.raises(InputError, match="'telemetri' is on no page: name one of first, steps, latency"):
        notebook_output.show_text("x", "words", section="telemetri")
    with pytest.raises(TypeError, match="section"):
        notebook_output.show_table(pd.DataFrame(), "x", "words")  # type: ignore[call-arg]
    assert shown == []


def test_a_part_for_another_page_is_refused_not_dropped() -> None:
    part = {"kind": "text", "name": "said", "section": "concurrency", "text": "words"}
    with pytest.raises(InputError, match="said is for section 'concurrency', which this page has not"):
        notebook_output.by_section([part], RUN_PAGE)


def test_what_is_told_twice_stands_once_under_both_names() -> None:
    notes = [{"kind": "text", "name": name, "section": "traces", "text": "words"} for name in ("one", "two")]
    other = {**notes[0], "name": "three", "text": "other words"}
    found = notebook_output.by_section([*notes, other], RUN_PAGE)["traces"]
    assert [part["names"] for part in found] == [["one", "two"], ["three"]]
