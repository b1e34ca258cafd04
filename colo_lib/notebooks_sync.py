"""Keep the notebooks in sync: `python -m colo_lib.notebooks_sync` (`--check` only tells).

Writes the parameters cell of every notebook, with the parameters that it reads or that people change in it, strips
outputs, execution counts and the traces that papermill and editors leave, and gives the cells stable ids, so that a
notebook changes only when its text does, or the default of a parameter that it lists. All parameters stand in
docs/parameters.md, which is written as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from colo_lib import params, paths
from colo_lib.placement import placement_of
from colo_lib.purpose import GROUPS, TOUCHES, Purpose
from colo_lib.steps import DEVICES, STEPS

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


PAGE_OPENING = """# Parameters

Written by `python -m colo_lib.notebooks_sync` from `colo_lib/params.py`; change it there. A params file is plain YAML
with these names, in these groups (`params/`). `colo run --set NAME=VALUE` changes one, `colo sweep --over` varies them.

A notebook's first cell lists the names that it reads, or that people change in it; any other may be added there.
`papermill NOTEBOOK OUT -f params/h100.yaml` takes every name in every notebook. It warns of an 'unknown parameter'
where the cell does not list a name: the value counts all the same. A wrong name or value stops the notebook.

What a parameter touches decides what can be shared: a trial of a joint sweep counts for every cell with the same values
of all that touches the engine, the load or the trial ([sweeps.md](sweeps.md)).

| touches | what it decides |
| --- | --- |"""

PARAMETERS = paths.REPOSITORY / "docs" / "parameters.md"

# The GPUs of the notebooks' steps as they are on a machine that has what every step needs.
ANY_MACHINE = params.Params(devices="0,1")


def names_of(notebook: str) -> list[str]:
    """The parameters that the cell of a notebook lists, by its name without suffix.

    Of a step's notebook those are left out that have no effect on its step, on cores as on GPUs.
    """
    listed = [name for name, purpose in params.PURPOSES.items() if notebook.startswith(purpose.notebooks)]
    step = next((step for step, row in STEPS.items() if row.notebook == notebook), None)
    if step is None:
        return listed
    place = placement_of(step, ANY_MACHINE)
    sharing = place.runs_gen and place.runs_embed
    works = {"": True, "gen": place.runs_gen, "embed": place.runs_embed, "both": sharing}
    return [
        name
        for name in listed
        if works[params.PURPOSES[name].at_work]
        and any(params.PURPOSES[name].under(mechanism) for mechanism in map(STEPS[step].mechanism_on, DEVICES))
    ]


def parameters_page() -> str:
    """docs/parameters.md: every parameter, by group."""
    lines = [PAGE_OPENING, *(f"| {name} | {words} |" for name, words in TOUCHES.items())]
    for group, heading in GROUPS.items():
        lines += [
            "",
            f"## {heading[0].upper()}{heading[1:]}",
            "",
            "| parameter | default | meaning | touches |",
            "| --- | --- | --- | --- |",
        ]
        for name, field in params.Params.model_fields.items():
            purpose = params.PURPOSES[name]
            if purpose.group == group:
                default = f"`{json.dumps(field.default)}`"
                lines.append(f"| `{name}` | {default} | {field.description} | {_effect(purpose)} |")
    return "\n".join(lines) + "\n"


def _effect(purpose: Purpose) -> str:
    """What a parameter touches, and where."""
    parts = [", ".join(touch for touch in TOUCHES if touch in purpose.touches)]
    parts += [f"while {purpose.at_work} at work"] if purpose.at_work in ("gen", "embed") else []
    parts += ["while both share"] if purpose.at_work == "both" else []
    return "; ".join(parts + ([f"under {', '.join(purpose.mechanisms)}"] if purpose.mechanisms else []))


def synced(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook (nbformat 4) called `name` as it is to be tracked; the first code cell is the parameters cell."""
    cells = [_cell(cell, place) for place, cell in enumerate(notebook["cells"])]
    first = next((cell for cell in cells if cell["cell_type"] == "code"), None)
    if first is not None:
        first["metadata"] = {"tags": ["parameters"]}
        first["source"] = params.cell_source(names_of(name)).splitlines(keepends=True)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def text_of(notebook: dict[str, Any]) -> str:
    """The notebook as the text of its file, always the same bytes for the same notebook."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def out_of_sync(folder: Path = paths.NOTEBOOKS) -> list[Path]:
    """Notebooks whose file is not what `synced` makes of it, and the page of parameters when it is not as it should."""
    files = [*sorted(folder.glob("*.ipynb")), *([PARAMETERS] if folder == paths.NOTEBOOKS else [])]
    return [file for file in files if not file.is_file() or _wanted(file) != file.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    """Bring every notebook in sync; with `--check` write nothing and give 1 if one is not."""
    changed = out_of_sync()
    for file in changed:
        print(f"{'out of sync' if '--check' in arguments else 'synced'}: {file.name}")
        if "--check" not in arguments:
            file.parent.mkdir(exist_ok=True)
            file.write_text(_wanted(file), encoding="utf-8")
    return 1 if changed and "--check" in arguments else 0


def _wanted(file: Path) -> str:
    if file == PARAMETERS:
        return parameters_page()
    return text_of(synced(json.loads(file.read_text(encoding="utf-8")), file.stem))


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
