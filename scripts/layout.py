"""The size of the package: modules, their lines, long functions, functions without a docstring.

python scripts/layout.py [--most-lines 60]
"""

from __future__ import annotations

import argparse
import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print what stands in `colo_lib` now."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most-lines", type=int, default=60, help="functions above this are listed")
    most = parser.parse_args().most_lines
    files = [
        file for file in sorted((ROOT / "colo_lib").rglob("*.py")) if file.name not in ("__init__.py", "__main__.py")
    ]
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    print(f"{len(files)} modules, median {statistics.median(lines.values()):.0f} lines, most {max(lines.values())}")
    for bound, told in ((50, "below 50"), (400, "above 400")):
        listed = [file for file in files if (lines[file] < bound) == (bound == 50) and lines[file] != bound]
        print(f"{told} lines: {len(listed)}: {', '.join(str(file.relative_to(ROOT)) for file in listed)}")
    longest, without = (0, ""), []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in [*tree.body, *(member for one in classes for member in one.body)]:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{file.relative_to(ROOT)}:{node.name}"
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, (length, name))
                if length > most:
                    print(f"{length} lines: {name}")
                if not node.name.startswith("_") and ast.get_docstring(node) is None:
                    without.append(name)
    print(f"longest function: {longest[0]} lines, {longest[1]}")
    print(f"public functions without a docstring: {len(without)} {', '.join(without)}")


if __name__ == "__main__":
    main()
