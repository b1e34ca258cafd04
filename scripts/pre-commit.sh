#!/usr/bin/env bash
# The hooks of .pre-commit-config.yaml for git alone: `make hooks` puts this in .git/hooks.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
.venv/bin/python -m colo_lib.notebooks_sync --check || {
    echo "notebooks: python -m colo_lib.notebooks_sync strips outputs and writes the parameters cell" >&2
    exit 1
}
.venv/bin/mypy colo_lib
.venv/bin/lint-imports --no-cache
