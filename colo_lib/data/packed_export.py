"""Exports that are kept packed: `trace.sqlite.xz` where a capture's record says `trace.sqlite`.

Rows of kernels repeat themselves, so that xz makes an eighth of them. SQLite cannot read it in place: the first reader
unpacks it into the cache of exports, under a name made of the packed bytes, and the next one finds it there. Any tool
unpacks it too: `xz -dk trace.sqlite.xz`.
"""

from __future__ import annotations

import atexit
import lzma
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from colo_lib.data.export_cache import folder as cache_folder
from colo_lib.data.export_cache import key_of
from colo_lib.errors import InputError

PACKED = ".xz"
MOST_KEPT = 60  # unpacked exports, a few MB each as `colo share` cuts them


def packed_name(file: Path) -> Path:
    """Where the packed form of an export lies."""
    return file.with_name(file.name + PACKED)


def lies_at(file: Path) -> Path:
    """Where an export lies: the packed form where only that is there."""
    packed = packed_name(file)
    return packed if not file.exists() and packed.is_file() else file


def pack(file: Path) -> None:
    """Put the packed form in the place of an export."""
    with file.open("rb") as source, lzma.open(packed_name(file), "wb", preset=6) as target:
        shutil.copyfileobj(source, target)
    file.unlink()


def unpacked(file: Path) -> Path:
    """The export itself, or the unpacked copy of a packed one. Raises InputError where that is damaged."""
    return _unpack(file) if file.suffix == PACKED and file.is_file() else file


def _unpack(packed: Path) -> Path:
    name = packed.name.removesuffix(PACKED)
    kept = cache_folder()
    entry = (kept.with_name(f"{kept.name}-unpacked") if kept else _for_this_process()) / key_of(packed)
    if not (entry / name).is_file():
        entry.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".new-"))
        try:
            _write(packed, made / name)
            with suppress(OSError):  # another reader was first, and its copy is the same
                made.rename(entry)
            _keep_newest(entry.parent)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return entry / name


def _keep_newest(place: Path) -> None:
    with suppress(OSError):
        found = sorted((item for item in place.iterdir()), key=lambda item: item.stat().st_mtime)
        for old in found[:-MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _write(packed: Path, into: Path) -> None:
    try:
        with lzma.open(packed, "rb") as source, into.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (lzma.LZMAError, EOFError) as error:
        raise InputError(f"{packed} is damaged ({error}): copy it again") from None
    except OSError as error:
        raise InputError(f"{packed}: cannot be unpacked into {into.parent}: {error.strerror or error}") from None


@cache
def _for_this_process() -> Path:
    place = Path(tempfile.mkdtemp(prefix="colo-unpacked-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
