"""What engines compile for themselves, kept from one start to the next and from one run to the next.

`$XDG_CACHE_HOME/colo/engines` (`~/.cache` without that variable), for its owner alone: what lies there is loaded and
run. vLLM keeps its compiled graphs below `VLLM_CACHE_ROOT`, Inductor its kernels below `TORCHINDUCTOR_CACHE_DIR`; both
lock what they write, so that runs side by side share it. Who sets one of these variables keeps that cache elsewhere.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

CACHES = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
KEY_FILE = "key"
KEY_BYTES = 24
# Inductor would have the compiler digest torch's headers once more in every start, in a folder that is not kept: 150
# MB and some 20 s of a core that buy a faster first compilation, which the kept kernels make rare.
NO_PRECOMPILED_HEADERS = {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}


def cache_folder() -> Path | None:
    """The folder, made if need be, of mode 0700; None where it cannot be had, or is another user's."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    folder = (given if given.is_absolute() else Path.home() / ".cache") / "colo" / "engines"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return None
        folder.chmod(0o700)
        return folder
    except OSError:
        return None


def cache_environment(instead: Path) -> dict[str, str]:
    """Variables that have an engine keep what it compiles; below `instead` where no folder can be kept."""
    folder = cache_folder() or instead
    kept = {name: os.environ.get(name) or str(folder / below) for name, below in CACHES.items()}
    switch = {name: os.environ.get(name, value) for name, value in NO_PRECOMPILED_HEADERS.items()}
    return kept | switch


def kept_key() -> str:
    """The API key of this user's servers, made once; a fresh one where none can be kept.

    Up to 0.24 at least, vLLM takes the key for a part of what its compiled graphs depend on: with another key in each
    run, the first start of each run would compile anew.
    """
    fresh, folder = secrets.token_urlsafe(KEY_BYTES), cache_folder()
    if folder is None:
        return fresh
    file, draft = folder / KEY_FILE, folder / f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
    with suppress(OSError):
        if not file.exists():
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(fresh)
            # Whole or not at all, and the first of several runs that begin together has made it for all.
            with suppress(FileExistsError):
                os.link(draft, file)
        if key := file.read_text().strip():
            fresh = key
    draft.unlink(missing_ok=True)
    return fresh
