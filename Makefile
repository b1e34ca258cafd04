# `make run` measures on this machine, `make test` proves the workbook; both make their environments first.
PARAMS ?= params/cpu.yaml
BIN := .venv/bin
export PYTHON
SIDE_BY_SIDE := -n logical --dist loadfile --no-loadscope-reorder
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run figures test test-fast test-gpu lint hooks notebooks doctor env engine clean-env

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

run: env  ## run PARAMS (params/cpu.yaml) through the notebooks and print the report's path; of a folder, redraw its figures
	@if [ -d "$(PARAMS)" ]; then $(BIN)/colo report "$(PARAMS)" --figures figures && rm -f figures/capacity--* figures/published-loss--*; \
	else $(MAKE) engine && $(BIN)/colo run $(PARAMS); fi

figures: env  ## redraw figures/ and the pages in recorded/ from what was recorded, without a GPU
	@for each in $(wildcard recorded/h*-*[0-9]); do \
		$(BIN)/colo report $$each --figures figures --reports-dir .cache/reports -o $$each.html || exit; done
	@rm -f figures/capacity--* figures/published-loss--*

doctor: env  ## what this machine can run, with the remedy for what it cannot
	@$(BIN)/colo doctor $(PARAMS)

# While those that start no engine run, the engines' environment is made, where it is not there. Last come those that
# want all cores, or the GPU, for themselves.
test: env  ## all tests, real engines included
	@$(MAKE) engine & made=$$!; failed=0; \
		$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not engine and not gpu" || failed=1; \
		wait $$made || exit 1; \
		$(BIN)/python -m pytest $(SIDE_BY_SIDE) --durations=20 -m "engine and not gpu and not alone" || failed=1; \
		$(BIN)/python -m pytest --durations=20 -m "gpu or alone" || failed=1; \
		exit $$failed

test-fast: env  ## the tests that start no engine, browser or GPU
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not engine and not browser and not gpu"

test-gpu: env  ## the tests that need an NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu

lint: env  ## ruff, mypy, and the ways that modules may import
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy colo_lib
	@$(BIN)/lint-imports --no-cache

hooks: env  ## have git run the checks before each commit
	@install -m 755 scripts/pre-commit.sh "$$(git rev-parse --git-path hooks)/pre-commit"

notebooks: env  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

env:  ## .venv: notebooks, analysis, tests (no torch)
	@bash scripts/make-environment.sh workbook

engine:  ## .venv-engine: vLLM's CPU build, torch, transformers
	@bash scripts/make-environment.sh engine

clean-env:  ## remove both environments
	rm -rf .venv .venv-engine
