"""Shared by all tests: nothing may be left running by any of them."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from colo_lib.errors import InputError
from colo_lib.hardware.engine_python import ENGINE_PYTHON, resolve_python
from tests.processes import MARK, token_carriers, wait_until
from tests.standins import forked_vllm

# jsonschema, which nbformat imports, compiles grammars of addresses that no notebook has: 1.3 s of a core in every
# process of the tests. It does without where the package is not there.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
# A run in a shell's background inherits an ignored Ctrl-C, and would hand it down to what it tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests of another checkout on this machine are not ours.
os.environ[MARK] = secrets.token_hex(8)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
MODELS = Path(__file__).with_name("models")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a guarded process behind fails, whatever else it shows."""
    before = set(token_carriers())
    yield
    left = lambda: {pid: words for pid, words in token_carriers().items() if pid not in before}  # noqa: E731
    assert wait_until(lambda: not left()), f"left running: {left()}"


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The interpreter that has vLLM and transformers; `make engine` makes it."""
    try:
        python = resolve_python("auto")
    except InputError as error:
        pytest.skip(str(error))
    if not list(python.parents[1].glob("lib/python3*/site-packages/vllm")):
        pytest.skip(f"{python} has no vLLM: make engine")
    return python


@pytest.fixture(scope="session")
def forked_python(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose vLLM forks its processes instead of starting interpreters: half the time of a start."""
    return forked_vllm.make(tmp_path_factory.mktemp("forked"), engine_python)


@pytest.fixture
def quick_engines(forked_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what asks not how engines start. Plain starts have the six configurations, and faults of the server."""
    monkeypatch.setenv(ENGINE_PYTHON, str(forked_python))
