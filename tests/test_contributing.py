"""CONTRIBUTING's examples run as they stand there; the checks before a commit find what they are for; help is whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from colo_lib import notebooks_sync
from colo_lib.cli import COMMANDS
from colo_lib.paths import NOTEBOOKS, REPOSITORY

GUIDE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]


SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
EXAMPLES = {title: text for title, text in SECTIONS if "**Touches:**" in text}
# Kind of change -> how many files of the package it touches, and how many others.
FEW = {
    "Add a metric": (1, 0), "Add a figure": (1, 1), "Add a kernel category": (1, 0), "Add a GPU": (1, 1),
    "Add a model": (2, 0), "Add a mechanism": (2, 1), "Add a step": (1, 1), "Add a parameter": (1, 2),
    "Add a sweep's notebook": (2, 1), "Read a new schema of Nsight Systems": (1, 0),
}  # fmt: skip
COPIED = ("colo_lib", "notebooks", "params", "docs", "pyproject.toml")


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a copy of the checkout, by its path, but for what running leaves."""
    found = (file for name in COPIED for file in [root / name, *(root / name).rglob("*")] if file.is_file())
    return {str(file.relative_to(root)): file.read_bytes() for file in found if "__pycache__" not in file.parts}


def inserted(text: str, line: str, block: str, before: bool) -> str:
    """`text` with `block` before or after the one line that begins with `line`."""
    lines = text.splitlines(keepends=True)
    places = [place for place, one in enumerate(lines) if one.startswith(line)]
    assert len(places) == 1, f"{line!r} begins {len(places)} lines"
    place = places[0] + (0 if before else 1)
    return "".join([*lines[:place], block, *lines[place:]])


def carried_out(root: Path, place: str, block: str) -> None:
    """What a block's first line says is done with it, in a copy of the checkout."""
    kind, _, told = place.partition(" ")
    name, _, line = told.partition(" ")
    file = root / name
    if kind == "file":
        assert not file.exists(), name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block, encoding="utf-8")
    elif kind in ("before", "after"):
        file.write_text(inserted(file.read_text(encoding="utf-8"), line, block, kind == "before"), encoding="utf-8")
    elif kind == "cell":
        notebook = json.loads(file.read_text(encoding="utf-8"))
        cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "id": "example"}
        notebook["cells"].insert(-1, cell | {"source": block.rstrip().splitlines(keepends=True)})
        file.write_text(notebooks_sync.text_of(notebook), encoding="utf-8")
    else:
        assert kind in ("run", "proof"), place
        where = root if kind == "run" else root / "elsewhere"
        where.mkdir(exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", block], cwd=where, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_there_is_an_example_for_every_kind_of_change() -> None:
    assert list(EXAMPLES) == list(FEW)


@pytest.mark.parametrize("title", FEW)
def test_an_example_works_and_touches_no_more_than_it_says(title: str, tmp_path: Path) -> None:
    for name in COPIED:
        source = REPOSITORY / name
        copy = shutil.copy if source.is_file() else shutil.copytree
        copy(source, tmp_path / name)
    (tmp_path / "recorded").symlink_to(REPOSITORY / "recorded")
    before = files_of(tmp_path)
    for place, block in re.findall(r"^```(?:python|yaml|json) (.+?)\n(.*?)^```", EXAMPLES[title], re.M | re.S):
        carried_out(tmp_path, place, block)
    after = files_of(tmp_path)
    changed = {name for name in after if before.get(name) != after[name]}
    touches = re.search(r"^\*\*Touches:\*\* (.+(?:\n.+)*)", EXAMPLES[title], re.M)
    assert touches is not None
    assert changed == set(re.findall(r"`([^`]+)`", touches[1]))
    package = {name for name in changed if name.startswith("colo_lib/")}
    assert (len(package), len(changed - package)) == FEW[title]


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md"])
def test_what_a_guide_links_to_is_there(file: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / file).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (REPOSITORY / link).exists()] == []


def test_every_hook_is_local_and_downloads_nothing() -> None:
    assert [repository["repo"] for repository in HOOKS] == ["local"]
    hooks = HOOKS[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    script = (REPOSITORY / "scripts" / "pre-commit.sh").read_text(encoding="utf-8")
    for hook in hooks:
        program, word = hook["entry"].split()[:2]
        assert f"{program} {word}" in script, "both ways to install the hooks run the same programs"


def test_a_notebook_with_outputs_is_refused_and_stripped(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "colo_lib", root / "colo_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    tracked = (NOTEBOOKS / "51-verdict.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(tracked)
    notebook["cells"][2] |= {"execution_count": 1, "metadata": {"papermill": {"duration": 1}}}
    notebook["metadata"]["papermill"] = {"duration": 2}
    file = root / "notebooks" / "51-verdict.ipynb"
    file.write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "colo_lib.notebooks_sync"]
    refused = subprocess.run([*command, "--check"], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True)
    assert refused.returncode != 0
    subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, check=True, capture_output=True)
    assert file.read_text(encoding="utf-8") == tracked


def test_no_tracked_notebook_holds_what_a_run_leaves() -> None:
    assert notebooks_sync.out_of_sync() == []
    for file in NOTEBOOKS.glob("*.ipynb"):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        assert "papermill" not in notebook["metadata"], file.name
        for cell in notebook["cells"]:
            assert not cell.get("outputs"), file.name
            assert cell.get("execution_count") is None, file.name
            assert set(cell["metadata"]) <= {"tags"}, file.name


def test_make_help_lists_every_target_and_the_readme_every_command() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())  # type: ignore[index]
    told = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in told.splitlines() if line.startswith("  make ")} == targets
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"colo {name}" not in readme] == []
