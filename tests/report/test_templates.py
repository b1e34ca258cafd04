"""The templates: all that is put in is escaped, a forgotten value ends the page, an installed package has them."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest

from colo_lib import paths
from colo_lib.report import notebook_output, page

MARKUP = "<b onclick=x>\"'&\x07"
ESCAPED = "&lt;b onclick=x&gt;&#34;&#39;&amp;\\x07"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("items", [MARKUP]),
        ("definitions", [(MARKUP, MARKUP)]),
        ("contents", {MARKUP: MARKUP}),
        ("banner", MARKUP),
        ("cautions", [MARKUP]),
        ("verdict", MARKUP),
        ("cell", f"{MARKUP} [{MARKUP}]"),
        ("rows_of", {"columns": [MARKUP], "rows": [[MARKUP, MARKUP]], "caption": MARKUP}),
        ("rows_of", {"rows": [], "empty": MARKUP}),
        ("plain_table", {"columns": [MARKUP], "rows": [[MARKUP, MARKUP]]}),
        ("named", {"kind": "text", "text": MARKUP, "names": [MARKUP]}),
        ("named", {"kind": "figure", "name": MARKUP, "names": [], "png": "not one"}),
    ],
)
def test_whatever_is_put_in_is_escaped(name: str, value: object) -> None:
    html = notebook_output.render_block(name, value)
    assert ESCAPED in html
    assert "<b" not in html
    assert "\x07" not in html


def test_a_page_s_own_words_are_escaped_too() -> None:
    own = {"title": MARKUP, "about": {"x": MARKUP}, "footer": MARKUP, "skip": (MARKUP, MARKUP), "parts": []}
    html = page.document("page.html", **own)
    assert "<b " not in html
    assert html.count(ESCAPED) == 5  # title twice, footer, link twice


def test_nothing_but_style_and_script_goes_in_as_it_is() -> None:
    for file in (Path(notebook_output.__file__).parent / "templates").glob("*.html"):
        told = file.read_text(encoding="utf-8")
        assert "safe" not in told, file.name
        assert "autoescape" not in told, file.name
    taken = [
        line
        for file in (paths.REPOSITORY / "colo_lib").rglob("*.py")
        for line in file.read_text().splitlines()
        if "Markup(" in line
    ]
    assert taken
    assert all('"style": Markup(' in line and '"script": Markup(' in line for line in taken)


def test_a_value_that_is_lacking_makes_no_page() -> None:
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        notebook_output.render_template("page.html")


def test_an_installed_package_has_every_file_that_a_page_is_made_of() -> None:
    project = tomllib.loads((paths.REPOSITORY / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["colo_lib"]
    folder = Path(notebook_output.__file__).parent
    files = [file for file in folder.rglob("*") if file.suffix in (".html", ".css", ".js")]
    assert len(files) > 10
    for file in files:
        name = file.relative_to(folder.parent).as_posix()
        assert any(fnmatch.fnmatch(name, glob) for glob in globs), name


def test_comparing_pages_finds_a_changed_cell_and_a_lost_word(tmp_path: Path) -> None:
    told = []
    for number, words in (("1", "Stands here."), ("2", "Other.")):
        shown = {"columns": ["What", "Much"], "rows": [["rate", number]], "caption": "Rates.", "empty": ""}
        parts = [{**shown, "kind": "table", "names": ["rates"]}, {"kind": "text", "text": words, "names": ["words"]}]
        file = tmp_path / f"{number}.html"
        own = {"title": "T", "about": {}, "footer": "", "skip": ("t", "Skip")}
        file.write_text(page.document("page.html", parts=parts, **own), encoding="utf-8")
        told.append(str(file))
    script = str(paths.REPOSITORY / "scripts" / "compare_pages.py")
    found = subprocess.run([sys.executable, script, *told], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "table 'Rates.': '1' is '2' there" in found.stdout
    assert "words 'Stands here.'" in found.stdout
    assert subprocess.run([sys.executable, script, told[0], told[0]], capture_output=True, check=False).returncode == 0
