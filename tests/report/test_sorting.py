"""Tables are sorted at their headings as a person would sort what they say; without scripts they are as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colo_lib.report import page
from tests.report import chromium
from tests.report.chromium import Press

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: install the chromium package"),
]
# What cells of one column say -> the order upwards, downwards. What is missing is last both ways.
COLUMNS = {
    "intervals": (["0.80 [0.76, 0.84]", "—", "0.095 [0.01, 0.2]", "1.51 [1.18, 1.83]"], [2, 0, 3, 1], [3, 0, 2, 1]),
    "thousands": (["9,876", "12,345.5", "98", ""], [2, 0, 1, 3], [1, 0, 2, 3]),
    "times": (["1.2 ms", "900 us", "0.5 s", "—"], [1, 0, 2, 3], [2, 0, 1, 3]),
    "sizes": (["1.5 GiB", "20 MiB", "1,023 KiB", "3 B"], [3, 2, 1, 0], [0, 1, 2, 3]),
    "signs": (["+4.3%", "-12.0%", "\u22120.5%", "0"], [3, 1, 2, 0], [3, 0, 2, 1]),
    "words beside": (["12.3 OVER (97% within)", "9.1 (100% within)", "not measured", "—"], [1, 0, 2, 3], [0, 1, 2, 3]),
    "names": (["step10", "step2", "Alpha", "beta"], [2, 3, 1, 0], [0, 1, 3, 2]),
    "dates and versions": (["2026-11-24", "2026-2-3", "2026-10-1", "2024.2.3"], [3, 1, 2, 0], [0, 2, 1, 3]),
}
ORDER = "[...document.querySelectorAll('tbody tr')].map(row => Number(row.cells[0].textContent))"
HEADS = "[...document.querySelectorAll('thead th')]"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [[str(place), *(said[place] for said, _, _ in COLUMNS.values())] for place in range(4)]
    part = {"columns": ["Row", *COLUMNS], "rows": rows, "caption": "Cells of all kinds."}
    target = tmp_path_factory.mktemp("page") / "page.html"
    own = {"title": "A table", "about": {}, "footer": "", "skip": ("t", "Skip")}
    shown = page.document("page.html", parts=[{**part, "kind": "table", "names": ["cells"]}], **own)
    target.write_text(shown, encoding="utf-8")
    return target


def seen(file: Path, asked: dict[str, str], **options: Any) -> dict[str, Any]:
    found = chromium.load(file, 1280, False, asked, **options)
    assert found["complaints"] == []
    return found


def test_a_click_sorts_upwards_the_next_downwards_the_third_as_it_was(file: Path) -> None:
    asked = {}
    for column, _ in enumerate(COLUMNS, start=1):
        for way in ("up", "down", "as it was"):
            asked[f"click {column} {way}"] = f"{HEADS}[{column}].querySelector('button').click()"
            asked[f"{column} {way}"] = ORDER
            asked[f"said {column} {way}"] = f"{HEADS}.map(head => head.getAttribute('aria-sort'))"
    told = seen(file, asked)
    for column, (name, (_, up, down)) in enumerate(COLUMNS.items(), start=1):
        assert (told[f"{column} up"], told[f"{column} down"]) == (up, down), name
        assert told[f"{column} as it was"] == [0, 1, 2, 3]
        said = [told[f"said {column} {way}"] for way in ("up", "down", "as it was")]
        assert [one.pop(column) for one in said] == ["ascending", "descending", None]
        assert not any(word for one in said for word in one), "one column at a time"


def test_enter_sorts_as_well(file: Path) -> None:
    focus = f"{HEADS}[2].querySelector('button').focus()"
    told = seen(file, {"focus": focus, "key": Press("Enter"), "order": ORDER, "head": f"{HEADS}[2].textContent"})
    assert told["order"] == COLUMNS["thousands"][1]
    assert told["head"] == "thousands", "the heading says what it said"


def test_without_scripts_a_table_is_as_any_other(file: Path) -> None:
    asked = {"order": ORDER, "buttons": "document.querySelectorAll('button').length", "head": f"{HEADS}[1].textContent"}
    told = seen(file, asked, scripts=False)
    assert (told["order"], told["buttons"], told["head"]) == ([0, 1, 2, 3], 0, "intervals")
