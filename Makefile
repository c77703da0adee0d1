# Everything runs from a virtual environment in .venv, made on the first call and renewed when its inputs change.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test lint format mini

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Make .venv with the pinned versions.

# torch goes first and exactly pinned: resolved together with the rest, a dependency could pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	command -v node >/dev/null || $(BIN)/python -m pip install -q -c constraints.txt "pyright[nodejs]"
	touch $@

demo: $(STAMP)  ## Write out/demo.mp4 with the bundled miniature.
	@mkdir -p out
	$(BIN)/rforce generate "a red ball bounces over a blue floor" --seconds 5 --out out/demo.mp4 --overwrite
	@test -s out/demo.mp4 && echo "$(CURDIR)/out/demo.mp4"

test: $(STAMP)  ## Run all tests in two processes.
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)  ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## Apply the format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mini: $(STAMP)  ## Retrain the bundled miniature, stage by stage; the same command resumes.
	RFORCE=$(BIN)/rforce scripts/mini.sh
