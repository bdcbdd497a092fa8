# Everything a checkout can do. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo check test bench packages wheel docs fix venv clean

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: $(VENV)/.has-lab  ## Gateway, node agent and two real models, answering (ONCE=1: ask, print, end)
	$(BIN)/python -m tests.lab.demo $(if $(ONCE),--once)

check: $(VENV)/.has-test  ## The quick part: format, lint, types, layers, unit and flow tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy rolemesh tests
	$(BIN)/lint-imports
	$(PYTEST) -q -n 6 -m "not fuzz and not llama and not clients and not system and not packaging" $(ARGS)

test: $(VENV)/.has-test  ## Every test (ARGS='-k name' and the like go to pytest)
	$(PYTEST) $(ARGS)

bench: $(VENV)/.has-test  ## RoleMesh beside nginx and vllm-router: one run, one table (ARGS='--help')
	@tests/bench/prepare.sh
	$(BIN)/python -m tests.bench $(ARGS)

packages:  ## Debian packages of this checkout, in dist/ (packaging/build.sh rpm: those for Fedora and EL)
	packaging/build.sh

wheel:  ## A wheel of this checkout whose hot path is compiled, in dist/ (PYTHON names for which)
	packaging/build-wheel.sh

docs: $(VENV)/.has-test  ## Write the tables of docs/ that follow from the schemas
	$(BIN)/python -m tests.lab.reference

fix: $(VENV)/.has-test  ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(VENV)/.has-test  ## .venv with all that the tests and tools need

clean:  ## Remove what was made here (downloads and models in the user's cache stay)
	rm -rf $(VENV) .venv.lock build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find rolemesh tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.has-%: pyproject.toml rolemesh/__init__.py
	@tests/lab/prepare.sh $*
