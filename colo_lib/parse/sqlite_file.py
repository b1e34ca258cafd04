"""Open a SQLite file of somebody else's: read-only and immutable, so that nothing appears beside it.

Immutable means that SQLite looks neither at locks nor at journals; both are therefore looked at here first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colo_lib.errors import InputError

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
WAL_VERSION = 2
GUARDS = ("PRAGMA query_only=ON", "PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON")


def check_file(file: Path) -> None:
    """Raise InputError, with the remedy, unless `file` is a whole SQLite database that nobody is writing to."""
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the .sqlite file that `nsys export --type sqlite` writes")
    try:
        with file.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not header:
        raise InputError(f"{file} is empty; export the report again: nsys export --type sqlite REPORT.nsys-rep")
    if not header.startswith(MAGIC) or len(header) < HEADER_BYTES:
        kind = "an Nsight Systems report, not its export" if file.suffix in (".nsys-rep", ".qdrep") else "not SQLite"
        raise InputError(f"{file} is {kind}; make one: nsys export --type sqlite REPORT.nsys-rep")
    _check_whole(file, header)
    for suffix in ("-journal", "-wal"):
        beside = file.with_name(file.name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise InputError(f"{file}: {beside.name} holds changes not yet written; wait for its writer to end")
    if WAL_VERSION not in header[18:20]:  # looking for a lock there would itself make files beside the input
        _check_lock(file)


def _check_whole(file: Path, header: bytes) -> None:
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    counted = header[24:28] == header[92:96]  # else the page count was not kept up
    expected = page_bytes * int.from_bytes(header[28:32], "big") if counted else 0
    size = file.stat().st_size
    if size < expected:
        raise InputError(f"{file} is cut off: {size} of {expected} bytes; copy or export it again")


def _check_lock(file: Path) -> None:
    connection = None
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=0)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise InputError(f"{file} is locked: another process writes to it; wait until that ends") from None
        raise InputError(f"{file}: not a readable SQLite database: {error}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"{file}: not a readable SQLite database: {error}") from None
    finally:
        if connection is not None:
            connection.close()


@contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A guarded, immutable connection to a file that `check_file` passed; SQLite's errors become InputError."""
    connection = None
    try:
        connection = sqlite3.connect(address(file), uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for guard in GUARDS:
            connection.execute(guard)
        yield connection
    except sqlite3.Error as error:
        raise InputError(f"{file}: damaged or not an export: {error}; export it again") from None
    finally:
        if connection is not None:
            connection.close()


def address(file: Path) -> str:
    """The URI that opens `file` without locks, journals or anything written beside it."""
    return f"{file.resolve().as_uri()}?mode=ro&immutable=1"


def tables_of(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Real tables (no views, no virtual ones) and their columns."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type='table'").fetchall()
    names = [str(name) for name, sql in rows if not str(sql or "").upper().startswith("CREATE VIRTUAL")]
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
    return {name: tuple(row[1] for row in connection.execute(f"PRAGMA table_info({quoted[name]})")) for name in names}
