# `make demo` and `make test` do all set-up on a fresh checkout; nothing is needed but Python 3.11 to 3.13.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
CPP := $(wildcard kernels/*.[ch]pp kernels/*/*.[ch]pp)

# Real data beside the checkout is used unless the caller names other data.
ifeq ($(SCISPARSE_DATA_DIR),)
ifneq ($(wildcard ../shared/data),)
export SCISPARSE_DATA_DIR := $(abspath ../shared/data)
endif
endif

.PHONY: help setup demo test lint format types coverage ci clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP) ## virtual environment with pinned packages and the compiled kernels

$(STAMP): pyproject.toml setup.py constraints.txt $(CPP)
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then break; fi; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then echo "make: no Python 3.11 to 3.13 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	  echo "$$python -m venv $(VENV)"; \
	  $$python -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: $(STAMP) ## correct a real rainfall ensemble, score it, draw it (1 to 2 minutes)
	$(BIN)/scisparse demo

# Threads that spin while they wait take the cores from the other processes.
test: export OMP_WAIT_POLICY := passive
test: $(STAMP) ## all tests, in JOBS=2 processes
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(STAMP) ## ruff, with the formatter's check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite files as the formatter wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## strict mypy over every file
	$(BIN)/python .ci/check_types.py

coverage: $(STAMP) ## lines and branches that no test runs
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

ci: ## everything that must hold before a change goes in
	.ci/run

clean: ## remove all that make and the tests have made
	rm -rf $(VENV) .typecheck .ci-work build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find kernels -name '_cpu*.so' -delete
