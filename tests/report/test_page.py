"""The page is one inert, self-contained file whatever a run's strings hold; it is made only of finished notebooks."""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.cli import list as list_command
from colo_lib.cli import report as report_command
from colo_lib.data.run import find_runs, open_run
from colo_lib.data.sweep import find_sweeps, open_sweep
from colo_lib.errors import InputError, StepFailed
from colo_lib.report import notebook_output, page
from colo_lib.report.page import execute
from colo_lib.report.sweep_page import first_lever
from tests.report import chromium
from tests.run_folders import Plan, add_capture, change_manifest, reseal, write_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onmouseover=alert(3)>& \x07</style>"
ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction"}
NEVER = {
    "iframe",
    "object",
    "embed",
    "form",
    "link",
    "base",
    "svg",
    "template",
    "audio",
    "video",
}


class Reader(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    model = {"name": HOSTILE, "architecture": HOSTILE, "parameters": 5, "weights": HOSTILE, "dtype": HOSTILE}
    plan = Plan(
        blocks=2, window_s=2.0, params={"gen_extra_args": HOSTILE, "gen_model": HOSTILE},
        models={"gen": model}, machine={"device_name": HOSTILE, "simulated": False, "git_commit": HOSTILE},
        invalid={("step2", 2): HOSTILE}, stall_s={"step3": 1.2},
    )  # fmt: skip
    return page.make_report(write_run(folder / "runs", plan), folder / "{reports}")


@pytest.fixture(scope="module")
def read(hostile_page: Path) -> Reader:
    return Reader(hostile_page.read_text(encoding="utf-8"))


def only_own_script(html: str, zooming: bool = False) -> bool:
    """Whether what runs on a page is the package's script and nothing else."""
    tags = [tag for tag, _ in Reader(html).tags]
    return (
        tags.count("script") == 1
        and html.count(f"<script>{notebook_output.page_script(zooming)}</script>") == 1
        and not NEVER & {*tags}
    )


def test_nothing_is_fetched_and_nothing_but_our_script_runs(hostile_page: Path, read: Reader) -> None:
    assert only_own_script(hostile_page.read_text(encoding="utf-8"))
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ADDRESS_ATTRIBUTES & set(attributes):
            assert str(attributes[name]).startswith(("data:image/png;base64,", "#")), (tag, name)


@pytest.mark.parametrize("zooming", [False, True])
def test_our_script_fetches_nothing_and_makes_no_html_of_words(zooming: bool) -> None:
    text = notebook_output.page_script(zooming)
    for word in ("</script", "<!--", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(",
                 "fetch(", "XMLHttpRequest", "import(", "http:", "https:"):  # fmt: skip
        assert word not in text, word


def test_the_policy_lets_in_this_style_and_this_script_alone(hostile_page: Path, read: Reader) -> None:
    policy = next(attributes["content"] for tag, attributes in read.tags if attributes.get("http-equiv"))
    found = {
        tag: re.search(rf"<{tag}>(.*?)</{tag}>", hostile_page.read_text("utf-8"), re.DOTALL)[1]
        for tag in ("style", "script")
    }
    digest = {tag: base64.b64encode(hashlib.sha256(own.encode()).digest()).decode() for tag, own in found.items()}
    css = found["style"]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest['style']}'; "
        f"script-src 'sha256-{digest['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in css
    assert "@import" not in css


def test_hostile_words_are_shown_as_words(read: Reader) -> None:
    shown = HOSTILE.replace("\x07", "\\x07")
    assert read.words.count(shown) >= 6, "model, architecture, parameters, device, commit, reason"


def test_the_page_has_its_parts_in_order(read: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), "no heading level is skipped"
    names = [attributes["id"] for tag, attributes in read.tags if tag == "section"]
    assert names == list(notebook_output.RUN_PAGE)
    assert page.QUESTION in read.words
    assert "Cores stand in for GPUs" in read.words
    assert "This part is missing" not in read.words
    assert "capture_s above 0" in read.words, "what would fill the part on captures"


def test_every_image_is_a_png_with_words_for_it(read: Reader) -> None:
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(images) == 9
    for image in images:
        assert len(image["alt"] or "") > 40
        assert base64.b64decode(image["src"].split(",", 1)[1]).startswith(notebook_output.PNG)


def test_what_a_reader_must_see_first_is_there(read: Reader) -> None:
    first = read.words.split("Steps side by side")[0]
    for words in (
        "Hypothesis: ",
        "random weights",
        "both, alternating: LLM: longest time without a token",
        "What is missing",
    ):
        assert words in first or words == "random weights", words
    assert "no interval" in read.words or "95 % interval" in read.words


def test_the_page_is_small_and_holds_no_path_of_this_machine(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    assert len(text.encode()) < page.MAX_PAGE_BYTES
    assert str(hostile_page.parent) not in text
    assert str(paths.REPOSITORY) not in text


def test_the_executed_notebooks_lie_beside_the_page(hostile_page: Path) -> None:
    beside = hostile_page.parent / "simulated-run"
    assert {file.name for file in beside.iterdir()} == {f"{name}.ipynb" for name in page.NOTEBOOKS}


@pytest.mark.browser
@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: install the chromium package")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_a_real_browser_shows_it_offline(hostile_page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    asked = {
        "wide": "document.documentElement.scrollWidth",
        "room": "document.documentElement.clientWidth",
        "images": "[...document.images].every(image => image.complete && image.naturalWidth > 500)",
        "scripts": "document.scripts.length",
        "light": "getComputedStyle(document.body).backgroundColor == 'rgb(255, 255, 255)'",
    }
    found = chromium.load(hostile_page, width, dark, asked, tmp_path / "page.png")
    assert found["complaints"] == []
    assert found["wide"] <= found["room"], "the page scrolls sideways"
    assert (found["images"], found["scripts"], found["light"]) == (True, 1, not dark)


def _contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_pair_of_colours_has_contrast_enough() -> None:
    css = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    for theme in themes[:2]:
        pairs = [(ink, back) for ink in ("ink", "soft", "link", "good", "bad", "open") for back in ("page", "card")]
        pairs += [("good", "good-back"), ("bad", "bad-back"), ("open", "open-back"), ("ink", "open-back")]
        for ink, back in pairs:
            assert _contrast(theme[ink], theme[back]) >= 4.5, (ink, back)
    assert _contrast("#505863", "#ffffff") >= 4.5, "captions under figures"


# --- a notebook that did not reach its end -------------------------------------------------------------


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    shutil.copytree(paths.NOTEBOOKS, folder)
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    return folder


@pytest.mark.parametrize(
    "line", ["raise ValueError('broken here')", "import os; os._exit(0)", "import sys; sys.exit(0)", "run = None"]
)
def test_a_notebook_without_its_last_word_makes_no_page(notebooks: Path, tmp_path: Path, line: str) -> None:
    file = notebooks / "51-verdict.ipynb"
    notebook = json.loads(file.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if line == "run = None":
        code[-1]["source"] = ["pass"]
    else:
        code[2]["source"] = [line]
    file.write_text(json.dumps(notebook))
    run = write_run(tmp_path / "runs", Plan(blocks=1, window_s=1.0))
    with pytest.raises(StepFailed, match="51-verdict did not reach its end"):
        page.make_report(run, tmp_path / "reports")
    assert not (tmp_path / "reports" / "simulated-run.html").exists()


def test_a_hostile_kernel_name_is_shown_as_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", Plan(blocks=1, window_s=1.0, device="cuda"))
    file = add_capture(folder, "step2") / "trace.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as export, export:
        export.execute("UPDATE StringIds SET value = ? || value WHERE value LIKE 'nvjet%'", (HOSTILE[:70],))
    reseal(folder, file.relative_to(folder).as_posix())
    run = open_run(folder)
    names = (page.TRACE_NOTEBOOKS[0], page.TRACE_NOTEBOOKS[-1])
    found = [part for name in names for part in execute(name, run, tmp_path / f"{name}.ipynb")]
    html = page.run_html(run, found)
    reader = Reader(html)
    assert HOSTILE[:70] in reader.words
    assert only_own_script(html, zooming=True)


def test_html_found_in_a_notebook_is_never_taken() -> None:
    part = {"kind": "table", "name": "x", "caption": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}
    output = {"output_type": "display_data", "data": {"text/html": HOSTILE}, "metadata": {"colo": part}}
    lifted = notebook_output.lift({"cells": [{"outputs": [output]}]})
    reader = Reader(
        notebook_output.render_block("table", lifted[0])
        + notebook_output.render_block("figure", {"png": "PHN2Zz4=", "name": HOSTILE})
    )
    assert {tag for tag, _ in reader.tags} <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}


# --- the commands --------------------------------------------------------------------------------------


def carry_out(command: object, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)  # type: ignore[attr-defined]
    return command.carry_out(parser.parse_args(list(arguments)))  # type: ignore[attr-defined]


def test_colo_report_prints_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "preloaded", lambda folder: contextlib.nullcontext(lambda notebooks: []))
    write_run(tmp_path / "runs", Plan(blocks=1, window_s=1.0))
    places = ("--runs-dir", str(tmp_path / "runs"), "--reports-dir", str(tmp_path / "out"))
    assert carry_out(report_command, "simulated-run", *places) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "out" / "simulated-run.html"
    assert carry_out(report_command, "simulated-run", "-o", str(tmp_path / "p.html"), *places) == 0
    text = (tmp_path / "p.html").read_text()
    assert "This part is missing" in text, "a part that no notebook showed is told"


def test_colo_report_of_an_unfinished_run_says_how_to_complete_it(tmp_path: Path) -> None:
    write_run(tmp_path, Plan(blocks=1, window_s=1.0)).rename(tmp_path / "half.partial")
    with pytest.raises(InputError, match="colo run --resume"):
        carry_out(report_command, "half", "--runs-dir", str(tmp_path))


def test_colo_list_tells_finished_from_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(list_command, "--runs-dir", str(tmp_path)) == 0
    assert "no runs" in capsys.readouterr().out
    good = write_run(tmp_path, dataclasses.replace(Plan(blocks=1, window_s=1.0), invalid={("step2", 1): "x"}))
    write_run(tmp_path, Plan(run_id="half", blocks=1, window_s=1.0)).rename(tmp_path / "half.partial")
    bad = write_run(tmp_path, Plan(run_id="bad", blocks=1, window_s=1.0))
    (bad / "manifest.json").write_text("{")
    change_manifest(good, machine={"device_name": "A \x1b[31m name"})
    carry_out(list_command, "--runs-dir", str(tmp_path))
    out = capsys.readouterr().out
    assert re.search(r"simulated-run\s+finished\s+5/6 count", out)
    assert re.search(r"half.partial\s+unfinished", out)
    assert re.search(r"bad\s+unreadable", out)
    assert f"colo run --resume {tmp_path}/half.partial" in out
    assert "\x1b" not in out


def test_a_run_of_another_name_is_shown_under_its_own(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, Plan(run_id="named", blocks=1, window_s=1.0)))
    assert run.run_id in page.run_html(run, [])


def test_recorded_runs_of_different_settings_keep_figures_of_different_names() -> None:
    ends = [page.figures_end(open_run(folder)) for folder in find_runs(paths.RECORDED)]
    for folder in find_sweeps(paths.RECORDED):
        sweep = open_sweep(folder)
        ends.append(page.figures_end(next(iter(sweep.runs.values())), first_lever(sweep.names)))
    assert len(set(ends)) == len(ends) > 6, "one would overwrite the other's in figures/"
