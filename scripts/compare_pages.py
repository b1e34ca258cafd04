"""Compare two pages of one run or sweep as a reader would: `python scripts/compare_pages.py BEFORE.html AFTER.html`.

Tables cell by cell, the words outside of tables, and the images by their bytes. Prints what one page has and the other
has not, and exits with 1 where the first page tells something that the second does not.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

Table = tuple[str, tuple[tuple[str, ...], ...]]  # caption, rows; the heads are the first row
SILENT = ("style", "script")
WORDS = ("p", "li", "dt", "dd", "h1", "h2", "h3", "summary", "figcaption", "title")
SHOWN_CHARACTERS = 200


class Page(HTMLParser):
    """`tables`, `words` (one entry a paragraph, heading, list item ...) and `images` (digest of the source, words)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.words: Counter[str] = Counter()
        self.images: Counter[tuple[str, str]] = Counter()
        self._rows: list[list[str]] | None = None
        self._open: list[str] = []  # words of the innermost element that holds any
        self._tag = self._last = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag == "table":
            self._rows = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("th", "td") and self._rows is not None:
            self._rows[-1].append("")
        elif tag in WORDS:
            self._open.append("")
        elif tag == "img":
            told = dict(attrs)
            self.images[hashlib.sha256(str(told["src"]).encode()).hexdigest(), str(told["alt"])] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and self._rows is not None:
            self.tables.append((self._last, tuple(tuple(_plain(cell) for cell in row) for row in self._rows)))
            self._rows = None
        elif tag in WORDS and self._open:
            self._last = _plain(self._open.pop())
            self.words[self._last] += 1
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in SILENT:
            return
        if self._rows:
            if self._rows[-1]:
                self._rows[-1][-1] += data
        elif self._open:
            self._open[-1] += data


def compare(before: Page, after: Page) -> list[str]:
    """What the first page tells and the second does not, a line each."""
    lost = [f"table {caption!r}{_difference(rows, caption, after)}" for caption, rows in before.tables
            if (caption, rows) not in after.tables]  # fmt: skip
    lost += [f"words {words[:SHOWN_CHARACTERS]!r}" for words in before.words - after.words]
    return lost + [f"image {words[:SHOWN_CHARACTERS]!r}" for _, words in before.images - after.images]


def _difference(rows: tuple[tuple[str, ...], ...], caption: str, other: Page) -> str:
    """The first cell that differs from the table of the same caption and heads."""
    for told, theirs in other.tables:
        if told == caption and theirs[:1] == rows[:1]:
            pairs = [pair for one, two in zip(rows, theirs, strict=False) for pair in zip(one, two, strict=False)]
            unlike = next((f": {one!r} is {two!r} there" for one, two in pairs if one != two), "")
            return unlike or f": {len(rows)} rows, {len(theirs)} there"
    return " is not there"


def _plain(words: str) -> str:
    return " ".join(words.split())


def main(before: str, after: str) -> int:
    """Print both differences; 1 where the second page lacks something that the first has."""
    pages = [Page(Path(name).read_text(encoding="utf-8")) for name in (before, after)]
    for page, name in zip(pages, (before, after), strict=True):
        cells = sum(len(row) for _, rows in page.tables for row in rows)
        print(f"{name}: {len(page.tables)} tables of {cells} cells, {page.images.total()} images")
    lost, new = compare(*pages), compare(*reversed(pages))
    for title, lines in ((f"only in {before}", lost), (f"only in {after}", new)):
        print(f"{title}: {len(lines) or 'nothing'}", *(f"  {line}" for line in lines), sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
