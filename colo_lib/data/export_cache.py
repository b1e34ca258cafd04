"""What is kept of large exports: their columns, and what `colo trace` said of them.

The cache is disposable: it lies under the user's cache folder, never beside the input. Its key is the file's size, time
and samples of its bytes, and the version of reading. `COLO_EXPORT_CACHE` names another folder, or turns it off when
empty. Nothing here imports numpy: an answer that is kept should be there before numpy would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from colo_lib import __version__, paths
from colo_lib.data.sqlite_file import check_file
from colo_lib.errors import InputError

VERSION = 5  # of what reading makes; raise it when that changes
KEPT_ENTRIES, KEPT_ANSWERS = 8, 64
SAMPLES, SAMPLE_BYTES = 32, 4096
ANSWER = ".answer"


def folder() -> Path | None:
    """Where to keep what was read; None where it is not wanted."""
    given = os.environ.get("COLO_EXPORT_CACHE")
    if given is not None:
        return Path(given) if given else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "colo" / "exports"


def key_of(file: Path) -> str:
    """What changes with the file and with the version of reading. Raises InputError where it cannot be read."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    try:
        status = file.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            for place in range(SAMPLES):
                stream.seek(status.st_size * place // SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:40]


def store(entry: Path, save: Callable[[Path], None]) -> None:
    """Keep what `save` writes into a folder under the name `entry`, and the newest of the others."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".new-"))
    try:
        save(made)
        if entry.exists():
            shutil.rmtree(entry)
        made.rename(entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    for old in _oldest([item for item in entry.parent.iterdir() if item.is_dir()], KEPT_ENTRIES):
        shutil.rmtree(old, ignore_errors=True)


def _oldest(items: list[Path], kept: int) -> list[Path]:
    return sorted(items, key=lambda item: item.stat().st_mtime)[:-kept]


def answer_key(files: Sequence[str], options: Sequence[object]) -> str | None:
    """What changes with all that an answer rests on; None where nothing is kept or a file is not fit to be read.

    That is: the exports, their names, the capture.json beside each, the options, and the program itself.
    """
    if folder() is None:
        return None
    digest = hashlib.sha256(repr((__version__, _program(), list(files), list(options))).encode("utf-8", "replace"))
    try:
        for file in map(Path, files):
            check_file(file)
            beside = file.parent / paths.CAPTURE
            told = beside.read_bytes() if beside.is_file() else None
            digest.update(repr((str(file.resolve()), key_of(file), told)).encode("utf-8", "replace"))
    except (InputError, OSError, ValueError, RuntimeError):
        return None
    return digest.hexdigest()[:40]


def _program() -> list[tuple[str, int, int]]:
    """Name, size and time of every module: who changes one wants no answers of the one before."""
    root = Path(paths.__file__).parent
    found = []
    for place, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                status = os.stat(os.path.join(place, name))
                found.append((os.path.join(place, name), status.st_size, status.st_mtime_ns))
    return sorted(found)


def kept_answer(key: str) -> str | None:
    """The answer that is kept under this key, as it was printed."""
    place = folder()
    if place is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        file = place / (key + ANSWER)
        first, _, text = file.read_bytes().partition(b"\n")
        if first.decode() == hashlib.sha256(text).hexdigest():
            os.utime(file)
            return text.decode()
    return None


def keep_answer(key: str, answer: str) -> None:
    """Keep an answer, and the newest of the others; a full disk costs the next reader some seconds, no more."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError, ValueError):
        text = answer.encode()
        place.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=place, prefix=".new-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        os.replace(made, place / (key + ANSWER))
        for old in _oldest(list(place.glob(f"*{ANSWER}")), KEPT_ANSWERS):
            old.unlink(missing_ok=True)
