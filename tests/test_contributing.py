"""CONTRIBUTING's examples run as they stand there; the checks before a commit find what they are for; help is whole."""

from __future__ import annotations

import json
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


def test_every_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
    titles = re.findall(r"^## Add a (\w+)", GUIDE, re.M)
    assert titles == ["metric", "figure", "GPU", "mechanism"]
    assert len(blocks) >= len(titles)
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)


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
