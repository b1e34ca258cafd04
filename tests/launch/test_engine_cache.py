"""Where engines keep what they compile: for one user alone, the same for every run, also for runs side by side."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib.child_environment import package_environment
from colo_lib.launch.engine_cache import cache_environment, cache_folder, kept_key


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "colo" / "engines"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_later_run_finds_what_an_earlier_one_compiled(caches: Path, tmp_path: Path) -> None:
    first, second = cache_environment(tmp_path / "run-1"), cache_environment(tmp_path / "run-2")
    assert first == second
    assert first["VLLM_CACHE_ROOT"] == str(caches / "vllm")
    assert first["TORCHINDUCTOR_CACHE_DIR"] == str(caches / "inductor")


def test_a_cache_that_others_could_write_to_is_closed(caches: Path) -> None:
    caches.mkdir(mode=0o777, parents=True)
    caches.chmod(0o777)
    assert cache_folder() == caches
    assert mode(caches) == 0o700


def test_a_relative_cache_home_is_no_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "colo" / "engines"


def test_engines_start_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_environment(tmp_path / "run")["VLLM_CACHE_ROOT"] == str(tmp_path / "run" / "vllm")
    assert kept_key() != kept_key()


def test_a_users_own_settings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"TORCHINDUCTOR_CACHE_DIR": "/mine", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "1"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    assert mine.items() <= cache_environment(tmp_path).items()


def test_runs_that_begin_together_agree_on_a_key_that_nobody_else_can_read(caches: Path) -> None:
    command = [sys.executable, "-c", "from colo_lib.launch.engine_cache import kept_key; print(kept_key())"]
    together = [
        subprocess.Popen(command, env=package_environment({}), stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    keys = {running.communicate()[0].strip() for running in together} | {kept_key()}
    (key,) = keys
    assert len(key) >= 32
    assert [path.name for path in caches.iterdir()] == ["key"]
    assert mode(caches / "key") == 0o600
    assert mode(caches) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's folder")
def test_another_users_folder_is_not_trusted(caches: Path) -> None:
    caches.mkdir(parents=True)
    os.chown(caches, 12345, 12345)
    assert cache_folder() is None
