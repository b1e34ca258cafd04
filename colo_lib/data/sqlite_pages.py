"""Integer columns of a table straight from the pages of a SQLite file, without an object a value.

Source: the SQLite file format, https://www.sqlite.org/fileformat.html. Sections used: 1.3 the database header, 1.6
b-tree pages, 1.7 cell payload overflow pages, 2.1 record format, 2.3 representation of SQL tables.

Every page that is read is checked as `PRAGMA quick_check` checks it: cells inside their page that neither overlap nor
leave unexplained holes, rowids in order and within what the pages above say, no page used twice. What is not a plain
table of integers raises `Unusual`, and then SQLite has to read the file. Nothing here ever guesses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
LEAF, INTERIOR = 13, 5  # section 1.6: flag bytes of pages of a table b-tree
HEADER = {LEAF: 8, INTERIOR: 12}
FILE_HEADER = 100  # bytes, before the b-tree header of page 1
LOCK_BYTE = 2**30  # section 1.4: the page that holds it is never used
SPARE = 128  # bytes behind the pages, so that a word or a record's header may be read at every byte of theirs
BATCH_BYTES = 4 << 20
DEEPEST = 20
MOST_OVERFLOW = 10_000
LOWEST, HIGHEST = -(2**63), 2**63 - 1
CONTINUES = 0x80
REAL, ZERO, ONE, FIRST_BLOB = 7, 8, 9, 12
INTEGER, TEXT, ANY = "integer", "text", "any"
# Section 2.1: serial type -> bytes of its value. Types of two bytes and more are not read here.
SIZES = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0, *((kind - FIRST_BLOB) // 2 for kind in range(12, 128))], np.int64)
SHIFTS = np.where(SIZES[:FIRST_BLOB] == 0, 0, 64 - 8 * SIZES[:FIRST_BLOB])


class Unusual(Exception):
    """The file holds what is left to SQLite; the words say what."""


@dataclass(frozen=True)
class Column:
    """A declared column. `wanted`: its values are asked for; `null_is_zero`: where NULL may stand for 0."""

    name: str
    affinity: str
    not_null: bool = False
    wanted: bool = False
    null_is_zero: bool = False


@dataclass(frozen=True)
class Tree:
    """A table's b-tree: its leaf pages in order of rowid, with the bounds lower < rowid <= upper; all its pages."""

    leaves: Ints
    lower: Ints
    upper: Ints
    pages: Ints


@dataclass(frozen=True)
class Pages:
    """An open file of `count` pages; `header` is its first 100 bytes."""

    descriptor: int
    header: bytes
    page_bytes: int
    count: int

    def read(self, numbers: Ints) -> Bytes:
        """The pages of these numbers one behind the other, and `SPARE` bytes."""
        data = np.empty(len(numbers) * self.page_bytes + SPARE, np.uint8)
        data[-SPARE:] = 0
        view = data.data
        edges = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for start, stop in pairwise(edges):
            first, end = start * self.page_bytes, stop * self.page_bytes
            offset = (int(numbers[start]) - 1) * self.page_bytes
            if os.preadv(self.descriptor, [view[first:end]], offset) != end - first:
                raise Unusual("a page is not there")
        return data

    def batches(self, leaves: Ints) -> list[slice]:
        """Slices of so many pages as are read at a time."""
        step = max(1, BATCH_BYTES // self.page_bytes)
        return [slice(start, start + step) for start in range(0, len(leaves), step)]

    def stamp(self) -> tuple[Any, ...]:
        """What changes when somebody writes to the file: size, time, and the header with its change counter."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns, os.pread(self.descriptor, FILE_HEADER, 0)


@contextmanager
def opened_pages(file: Path) -> Iterator[Pages]:
    """The pages of a file; raises Unusual where its header asks for more than plain pages, OSError as opening does."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        header = os.pread(descriptor, FILE_HEADER, 0)
        pages = _pages(descriptor, header)
        before = pages.stamp()
        yield pages
        if pages.stamp() != before:
            raise Unusual("the file changed while it was read")
    finally:
        os.close(descriptor)


def _pages(descriptor: int, header: bytes) -> Pages:
    """Section 1.3, offset by offset."""
    if len(header) < FILE_HEADER or header[:16] != b"SQLite format 3\0":
        raise Unusual("no database, or an encrypted one")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    count = int.from_bytes(header[28:32], "big")
    plain = {
        "a write-ahead log": header[18:20] == b"\1\1",
        "reserved bytes": header[20] == 0,
        "payload fractions": header[21:24] == b"\x40\x20\x20",
        "a page count that was not kept up": header[24:28] == header[92:96],
        "free pages": header[32:40] == bytes(8),
        "a pointer map": header[52:56] == bytes(4) and header[64:68] == bytes(4),
        "an odd page size": 512 <= page_bytes <= 65536 and page_bytes & (page_bytes - 1) == 0,
        "another size than its header says": os.fstat(descriptor).st_size == page_bytes * count > 0,
    }
    for words, fine in plain.items():
        if not fine:
            raise Unusual(words)
    return Pages(descriptor, header, page_bytes, count)


def words_at(data: Bytes, at: Any) -> NDArray[np.uint64]:
    """The 8 bytes that start at each of the places, as big-endian numbers."""
    every = np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))
    return every[at].byteswap(inplace=True)  # a copy, so in place


def varints(data: Bytes, at: Ints) -> tuple[Ints, Any]:
    """The variable-length integers that start at each of the places, and their lengths (section 1.6)."""
    first = data[at]
    if not len(first) or int(first.max()) < CONTINUES:
        return first.astype(np.int64), 1
    word = words_at(data, at)
    value = (word >> np.uint64(56)) & np.uint64(0x7F)
    more = first >= CONTINUES
    length = np.ones(len(at), np.int64)
    for shift in range(48, -1, -8):
        byte = (word >> np.uint64(shift)) & np.uint64(0xFF)
        value = np.where(more, (value << np.uint64(7)) | (byte & np.uint64(0x7F)), value)
        length += more
        more &= byte >= CONTINUES
        if not more.any():
            return value.view(np.int64), length
    value = np.where(more, (value << np.uint64(8)) | data[at + 8], value)  # the ninth byte counts whole
    return value.view(np.int64), length + more


@dataclass(frozen=True)
class Cells:
    """Cells of several pages in order: where each starts in the data, and the first one of each page."""

    at: Ints
    counts: Ints
    heads: Bytes
    page_bytes: int
    offset: int  # of the pages' own header, 100 in page 1

    @property
    def firsts(self) -> Ints:
        """Place of the first cell of each page."""
        return np.cumsum(self.counts) - self.counts

    def check_tiles(self, data: Bytes, size: Ints) -> None:
        """Raise Unusual unless cells of these sizes and free blocks fill each page's content, but for its fragments."""
        bases = np.arange(len(self.counts)) * self.page_bytes
        content = _content_starts(self.heads)
        least = self.offset + HEADER[int(self.heads[0, 0])] + 2 * self.counts
        if np.any(content < least) or np.any(content > self.page_bytes):
            raise Unusual("a damaged page")
        owner, at = np.repeat(np.arange(len(self.counts)), self.counts), self.at
        free = [
            (page, *block) for page in np.flatnonzero(_shorts(self.heads, 1)) for block in self._free(data, int(page))
        ]
        if free:
            pages, starts, sizes = np.array(free, np.int64).T
            owner, at, size = np.append(owner, pages), np.append(at, starts), np.append(size, sizes)
        ends = at + size
        if np.any(at < (bases + content)[owner]) or np.any(ends > (bases + self.page_bytes)[owner]):
            raise Unusual("a cell outside its page's content")
        # Rows that were appended lie one before the other, from the end of the page down; others are sorted first.
        if free or not np.all((ends[1:] <= at[:-1]) | (owner[1:] != owner[:-1])):
            order = np.argsort(at, kind="stable")
            if np.any(ends[order][:-1] > at[order][1:]):
                raise Unusual("cells that overlap")
        filled = np.bincount(owner, size, len(self.counts)).astype(np.int64)
        if np.any(filled + self.heads[:, 7] != self.page_bytes - content):
            raise Unusual("a page with unexplained holes")

    def _free(self, data: Bytes, page: int) -> Iterator[tuple[int, int]]:
        """Start in the data and size of a page's free blocks, which are chained in order of place (section 1.6)."""
        base, block = page * self.page_bytes, int(_shorts(self.heads[page : page + 1], 1)[0])
        while block:
            if block > self.page_bytes - 4:
                raise Unusual("a damaged page")
            word = data[base + block : base + block + 4].tobytes()
            following, size = int.from_bytes(word[:2], "big"), int.from_bytes(word[2:], "big")
            if size < 4 or (following and following <= block + size + 3):
                raise Unusual("free blocks out of order")
            yield base + block, size
            block = following


def _shorts(heads: Bytes, at: int) -> Ints:
    return heads[:, at].astype(np.int64) << 8 | heads[:, at + 1]


def _content_starts(heads: Bytes) -> Ints:
    start = _shorts(heads, 5)
    return np.where(start == 0, 65536, start)


def cells_of(data: Bytes, pages: int, page_bytes: int, kind: int, offset: int = 0) -> Cells:
    """The cells of so many pages of one kind that lie behind each other (section 1.6)."""
    whole = data[: pages * page_bytes].reshape(pages, page_bytes)
    heads = whole[:, offset : offset + 12]
    counts = _shorts(heads, 3)
    most = int(counts.max(initial=0))
    first = offset + HEADER[kind]
    if np.any(heads[:, 0] != kind) or first + 2 * most > page_bytes:
        raise Unusual("a page of another kind")
    pointers = np.ascontiguousarray(whole[:, first : first + 2 * most]).view(">u2").astype(np.int64)
    pointers += (np.arange(pages) * page_bytes)[:, None]
    at = pointers.ravel() if np.all(counts == most) else pointers[np.arange(most) < counts[:, None]]
    return Cells(at, counts, heads, page_bytes, offset)


def walk(pages: Pages, root: int) -> Tree:
    """All pages of a table but those of its overflow chains; raises Unusual where the tree is damaged or an index's."""
    level = np.array([root], np.int64)
    lower, upper = np.array([LOWEST]), np.array([HIGHEST])
    seen = []
    for _ in range(DEEPEST):
        if np.any(level < 1) or np.any(level > pages.count):
            raise Unusual("a page number outside the file")
        seen.append(level)
        if sum(map(len, seen)) > pages.count:
            raise Unusual("more pages than the file has")
        offset = FILE_HEADER if level[0] == 1 else 0
        if pages.read(level[:1])[offset] == LEAF:
            return Tree(level, lower, upper, np.concatenate(seen))
        parts = [_below(pages, level[batch], lower[batch], upper[batch], offset) for batch in pages.batches(level)]
        level, lower, upper = (np.concatenate(column) for column in zip(*parts, strict=True))
    raise Unusual("a tree deeper than any")


def _below(pages: Pages, level: Ints, lower: Ints, upper: Ints, offset: int) -> tuple[Ints, Ints, Ints]:
    """The children of interior pages and the bounds of their rowids."""
    data = pages.read(level)
    cells = cells_of(data, len(level), pages.page_bytes, INTERIOR, offset)
    child = (words_at(data, cells.at) >> np.uint64(32)).astype(np.int64)
    key, length = varints(data, cells.at + 4)
    cells.check_tiles(data, np.zeros(len(child), np.int64) + length + 4)
    last = (words_at(data, np.arange(len(level)) * pages.page_bytes + offset + 8) >> np.uint64(32)).astype(np.int64)
    ends = cells.firsts + cells.counts
    lows, highs = np.insert(key, cells.firsts, lower), np.insert(key, ends, upper)
    if np.any(lows[1:] > highs[1:]) or np.any(np.diff(highs) < 0):
        raise Unusual("rowids out of order")
    return np.insert(child, ends, last), lows, highs


def overflow_pages(pages: Pages, tree: Tree) -> list[int]:
    """Section 1.7: the pages on which long rows of a table go on."""
    usable = pages.page_bytes
    found: list[int] = []
    offset = FILE_HEADER if tree.leaves[0] == 1 else 0
    for batch in pages.batches(tree.leaves):
        numbers = tree.leaves[batch]
        data = pages.read(numbers)
        cells = cells_of(data, len(numbers), pages.page_bytes, LEAF, offset)
        payload, length = varints(data, cells.at)
        _, rowid_length = varints(data, cells.at + length)
        body = cells.at + length + rowid_length
        for place in np.flatnonzero((payload > usable - 35) | (payload < 0)).tolist():
            total, least = int(payload[place]), (usable - 12) * 32 // 255 - 23
            kept = least + (total - least) % (usable - 4)
            kept = kept if kept <= usable - 35 else least
            at, left = int(body[place]) + kept, -(-(total - kept) // (usable - 4))
            if not 0 < left <= MOST_OVERFLOW - len(found) or at + 4 > len(numbers) * usable:
                raise Unusual("much that goes on elsewhere")
            number = int.from_bytes(data[at : at + 4].tobytes(), "big")
            for _ in range(left):
                if not 1 <= number <= pages.count:
                    raise Unusual("a page number outside the file")
                found.append(number)
                number = int.from_bytes(os.pread(pages.descriptor, 4, (number - 1) * usable), "big")
    return found


def check_every_page_is_used_once(pages: Pages, used: list[Ints]) -> None:
    """Raise Unusual where a page is part of two trees, or of none."""
    times = np.bincount(np.concatenate(used), minlength=pages.count + 1)
    lock_page = LOCK_BYTE // pages.page_bytes + 1
    if lock_page <= pages.count:
        times[lock_page] += 1
    if len(times) != pages.count + 1 or times[0] or np.any(times[1:] != 1):
        raise Unusual("a page that is used twice, or not at all")


def decoded(pages: Pages, tree: Tree, batch: slice, columns: list[Column]) -> tuple[int, dict[str, Any]]:
    """The number of rows on some leaf pages, and their wanted columns: int64 each, one number where all are the same.

    Raises Unusual where a page, a row or a value is not as it should be in a table of integers.
    """
    numbers = tree.leaves[batch]
    data = pages.read(numbers)
    cells = cells_of(data, len(numbers), pages.page_bytes, LEAF)
    if np.any(cells.counts == 0):
        raise Unusual("a page without rows")
    payload, length = varints(data, cells.at)
    rowid, rowid_length = varints(data, cells.at + length)
    body = cells.at + (length + rowid_length)
    if int(payload.max()) > pages.page_bytes - 35 or int(payload.min()) < 1:
        raise Unusual("rows that go on elsewhere")
    end = body + payload
    cells.check_tiles(data, np.maximum(end - cells.at, 4))
    lasts = cells.firsts + cells.counts - 1
    if (
        np.any(rowid[1:] <= rowid[:-1])
        or np.any(rowid[cells.firsts] <= tree.lower[batch])
        or np.any(rowid[lasts] > tree.upper[batch])
    ):
        raise Unusual("rowids out of order")
    return len(rowid), _values(data, body, end, columns)


def _values(data: Bytes, body: Ints, end: Ints, columns: list[Column]) -> dict[str, Any]:
    """Section 2.1: a record is the size of its header, a serial type a column, and the values in turn."""
    width = len(columns) + 1
    if width >= CONTINUES:
        raise Unusual("very many columns")
    every = np.ndarray((len(data) - width + 1,), np.dtype((np.void, width)), data, strides=(1,))
    types = np.ascontiguousarray(every[body].view(np.uint8).reshape(-1, width).T)
    lowest, highest = types.min(axis=1).tolist(), types.max(axis=1).tolist()
    if lowest[0] != width or highest[0] != width:
        raise Unusual("rows with other columns than declared, or long texts")
    values: dict[str, Any] = {}
    at, past = body + width, 0  # where a row's next value is, but for `past` bytes that are the same in all rows
    for column, kinds, low, high in zip(columns, types[1:], lowest[1:], highest[1:], strict=True):
        _check_kinds(column, kinds, low, high)
        same = low == high
        if column.wanted:
            values[column.name] = _constant(low) if same and low in (0, ZERO, ONE) else _numbers(data, at, past, kinds)
        if same:
            past += int(SIZES[low])
        else:
            at = at + SIZES[kinds]
    if np.any(at + past != end):
        raise Unusual("rows of another length than their values")
    return values


def _check_kinds(column: Column, kinds: Bytes, low: int, high: int) -> None:
    if high >= CONTINUES or (low < FIRST_BLOB and high > ONE and np.any((kinds == 10) | (kinds == 11))):
        raise Unusual("long texts, or serial types that nobody uses")
    if low == 0 and (column.not_null or (column.wanted and not column.null_is_zero)):
        raise Unusual(f"NULL in {column.name}")
    if column.wanted or column.affinity == INTEGER:
        if high > ONE or (high >= REAL and low <= REAL and np.any(kinds == REAL)):
            raise Unusual(f"what is no integer in {column.name}")
    elif column.affinity == TEXT and np.any((kinds != 0) & ((kinds < FIRST_BLOB) | (kinds & 1 == 0))):
        raise Unusual(f"what is no text in {column.name}")


def _constant(kind: int) -> int:
    return int(kind == ONE)


def _numbers(data: Bytes, at: Ints, past: int, kinds: Bytes) -> Ints:
    """Big-endian integers of 0 to 8 bytes, from the word that ends where each of them ends."""
    low, high = int(kinds.min()), int(kinds.max())
    if low == high:
        size = int(SIZES[low])
        shift: Any = SHIFTS[low]
        number = words_at(data, at + (past + size - 8)).view(np.int64)
    else:
        shift = SHIFTS[kinds]
        number = words_at(data, at + (SIZES[kinds] + (past - 8))).view(np.int64)
    number <<= shift
    number >>= shift
    if low != high and (low == 0 or high >= ZERO):
        number[(kinds == 0) | (kinds == ZERO)] = 0
        number[kinds == ONE] = 1
    return number
