# `make run` measures on this machine, `make test` proves the workbook; both make their environments first.
PARAMS ?= params/cpu.yaml
BIN := .venv/bin
export PYTHON
SIDE_BY_SIDE := -n logical --dist loadfile
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

# Those that start no engine share the cores; engines want them alone, for how long they take is looked at.
test: env engine  ## all tests, real engines included
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not engine and not gpu"; light=$$?; \
		$(BIN)/python -m pytest --durations=20 -m "engine or gpu" && exit $$light

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
