"""Keep the notebooks in sync: `python -m colo_lib.notebooks_sync` (`--check` only tells).

Writes the parameters cell of every notebook from `colo_lib.params`, strips outputs, execution counts and the traces
that papermill and editors leave, and gives the cells stable ids, so that a notebook changes only when its text does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from colo_lib import params, paths

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def synced(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook (nbformat 4) as it is to be tracked; the first code cell is the parameters cell."""
    cells = [_cell(cell, place) for place, cell in enumerate(notebook["cells"])]
    first = next((cell for cell in cells if cell["cell_type"] == "code"), None)
    if first is not None:
        first["metadata"] = {"tags": ["parameters"]}
        first["source"] = params.cell_source().splitlines(keepends=True)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def text_of(notebook: dict[str, Any]) -> str:
    """The notebook as the text of its file, always the same bytes for the same notebook."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def out_of_sync(folder: Path = paths.NOTEBOOKS) -> list[Path]:
    """Notebooks whose file is not what `synced` makes of it."""
    return [file for file in sorted(folder.glob("*.ipynb")) if _wanted(file) != file.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    """Bring every notebook in sync; with `--check` write nothing and give 1 if one is not."""
    changed = out_of_sync()
    for file in changed:
        print(f"{'out of sync' if '--check' in arguments else 'synced'}: {file.name}")
        if "--check" not in arguments:
            file.write_text(_wanted(file), encoding="utf-8")
    return 1 if changed and "--check" in arguments else 0


def _wanted(file: Path) -> str:
    return text_of(synced(json.loads(file.read_text(encoding="utf-8"))))


def _cell(cell: dict[str, Any], place: int) -> dict[str, Any]:
    source = "".join(cell["source"]).rstrip()
    tags = [tag for tag in cell.get("metadata", {}).get("tags", []) if tag != "injected-parameters"]
    made: dict[str, Any] = {
        "cell_type": cell["cell_type"],
        "id": f"cell-{place:02d}",
        "metadata": {"tags": tags} if tags else {},
        "source": source.splitlines(keepends=True),
    }
    return made | {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
