"""Read one rowid range of a SQLite table as int64 to standard output: run as a file, with the standard library alone.

Standard input holds one JSON object: address, query, low, high. A row becomes as many int64 as the query has columns,
in the machine's byte order. `MISSING` stands for NULL and for anything that is not a number.
"""

from __future__ import annotations

import gc
import json
import sqlite3
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

MISSING = -(2**63)
LARGEST = 2**62
ROWS = 1024


def blocks(connection: sqlite3.Connection, query: str, low: int, high: int) -> Iterator[array[int]]:
    """Blocks of int64, row after row, of the rows with low <= rowid <= high."""
    cursor = connection.execute(query, (low, high))
    while rows := cursor.fetchmany(ROWS):
        block = array("q")
        try:
            block.extend(chain.from_iterable(rows))
        except (TypeError, OverflowError):
            block = array("q", _careful(chain.from_iterable(rows)))
        yield block


def _careful(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, float) and value == value:
            # SQLite turns an integer product that does not fit into a float.
            yield int(min(max(value, -LARGEST), LARGEST))
        else:
            yield MISSING


def main() -> int:
    """Serve the one request on standard input."""
    gc.disable()  # rows hold no cycles, and looking for them costs a tenth of the reading
    request = json.load(sys.stdin)
    connection = sqlite3.connect(request["address"], uri=True)
    connection.text_factory = bytes  # text is no number whatever its bytes are: not decoded, it cannot fail to be
    try:
        for block in blocks(connection, request["query"], request["low"], request["high"]):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the second where SQLite's message is no UTF-8
        print(error, file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
