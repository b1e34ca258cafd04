"""Whether a file is a whole SQLite database that nobody writes to; asked before anything is read, and quickly."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

from colo_lib.errors import InputError

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
WAL_VERSION = 2
# Python raises the second where a message of SQLite's quotes bytes of a damaged file that are no UTF-8.
DAMAGE = (sqlite3.Error, UnicodeDecodeError)
MOST_SAID = 300  # characters of a message of SQLite's


def check_file(file: Path) -> None:
    """Raise InputError, with the remedy, unless `file` is a whole SQLite database that nobody is writing to."""
    give = "give the .sqlite file that `nsys export --type sqlite` writes"
    try:
        kind_of_file = file.stat().st_mode
        if stat.S_ISDIR(kind_of_file):
            raise InputError(f"{file} is a folder; {give}")
        if not stat.S_ISREG(kind_of_file):  # opening a pipe would wait for its writer
            raise InputError(f"{file} is a pipe, a socket or a device, no file; {give}")
        with file.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
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
        raise InputError(f"{file}: not a readable SQLite database: {plain(error)}") from None
    except DAMAGE as error:
        raise InputError(f"{file}: not a readable SQLite database: {plain(error)}") from None
    finally:
        if connection is not None:
            connection.close()


def plain(said: object) -> str:
    """What SQLite says as part of a sentence: its messages quote a damaged file, line breaks and all."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(said)[:MOST_SAID]).split())
