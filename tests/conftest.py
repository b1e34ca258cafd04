"""Shared by all tests: nothing may be left running by any of them."""

from __future__ import annotations

import fcntl
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
from colo_lib.paths import REPOSITORY
from tests.processes import MARK, pids, token_carriers, wait_until
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
# Files beside one another on several cores end together where the longest come first; those of engines by themselves.
LONGEST = (
    "test_jupyterlab.py", "analysis/test_planted_truth.py", "report/test_timeline.py", "report/test_page.py",
    "test_reading_notebooks.py", "report/test_accessible.py", "data/test_run_folder.py", "report/test_execute.py",
    "report/test_sections.py", "nsys/test_captures.py", "launch/mechanisms/test_mps.py", "record/test_on_ray.py",
    "data/test_redact.py", "test_contributing.py", "plot/test_trace_figures.py", "launch/test_embed_url.py",
)  # fmt: skip
LONGEST_WITH_ENGINES = (
    "test_run_command.py", "record/test_command.py", "launch/test_faults.py", "campaigns/test_random_kills.py",
    "test_jupyterlab.py", "launch/test_loopback.py", "record/test_on_ray.py", "launch/mechanisms/test_faults.py",
    "launch/test_embed_vllm.py", "nsys/test_separate_sessions.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; last those of tests without engines that wait for the engines' environment."""
    engines = all(item.get_closest_marker("engine") or item.get_closest_marker("gpu") for item in items)
    longest, here = LONGEST_WITH_ENGINES if engines else LONGEST, Path(__file__).parent
    waiting = {item.path for item in items if not engines and "engine_python" in getattr(item, "fixturenames", ())}

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.relative_to(here).as_posix()
        return item.path in waiting, longest.index(name) if name in longest else len(longest)

    if len({item.path for item in items}) > 1:
        items.sort(key=place)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that leaves a guarded process behind fails, whatever else it shows."""
    before = pids()
    yield
    assert wait_until(lambda: not token_carriers(before)), f"left running: {token_carriers(before)}"


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The interpreter that has vLLM and transformers; `make engine` makes it, and may be at it: it holds the lock."""
    if (lock := REPOSITORY / ".cache" / "engine.lock").is_file():
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH)
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
