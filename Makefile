# `make demo` on a machine with Python 3.11, git and make; `make help` lists the rest.
# Everything runs from .venv, which `make install` makes once and again when a pin changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)

# Tests wait for servers and processes, so there is one more than cores; three take up to 12 GB.
TESTERS ?= 3

LINT_IMPORTS := $(BIN)/lint-imports --no-logo --no-cache

# After the install nothing needs the network, and nothing may try.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export DO_NOT_TRACK := 1
export VLLM_NO_USAGE_STATS := 1

# Hundreds of processes import the same modules: compiled once.
test test-all quick: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: install
install: $(STAMP)  ## make .venv and install the pinned packages (once; about 3 minutes)

$(STAMP): requirements-cpu.txt pyproject.toml $(wildcard build_backend/videoopd_*)
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	then echo "make: no Python 3.11 found; install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@echo "installing $$(grep -c == requirements-cpu.txt) packages into $(VENV), about 3 minutes"
	@"$(PYTHON)" -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-deps -r requirements-cpu.txt
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "installed"

.PHONY: demo
demo: $(STAMP)  ## the tiny world, three Video-OPD rounds, and a table of what they brought
	@$(BIN)/videoopd demo

.PHONY: view
view: $(STAMP)  ## the demo's run in a browser: curves, rollouts, video beside tokens
	@$(BIN)/videoopd view runs/tiny

.PHONY: test
test: IN_TURN := --in-turn
test: all-tests  ## lint, and pytest, with a fifth of the long tests: each change has another fifth

.PHONY: test-all
test-all: all-tests  ## lint, and pytest with all of them

.PHONY: all-tests
all-tests: style
	@failed=0; $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(IN_TURN) || failed=$$?; \
	wait $$types || { echo "make: mypy found what stands above" >&2; failed=1; }; \
	command -v chromium chromium-browser google-chrome > /dev/null || echo "make: no Chromium here:" \
	  "the tests in a browser (tests/flows/view) were skipped; apt-get install chromium"; \
	exit $$failed

.PHONY: quick
quick: style  ## lint, and the tests without servers, kills and whole rounds (5 minutes)
	@failed=0; $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -q -n $(TESTERS) --dist loadfile \
	  -m "not server and not kill and not slow and not world" || failed=1; \
	wait $$types || failed=1; exit $$failed

.PHONY: lint
lint: style  ## ruff, the order of the imports, mypy
	@$(BIN)/mypy

.PHONY: style
style: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(LINT_IMPORTS)

.PHONY: up
up: $(STAMP)  ## a Prefect server on loopback that serves the deployments
	@$(BIN)/videoopd up

.PHONY: down
down: $(STAMP)  ## stop what `make up` started
	@$(BIN)/videoopd down

.PHONY: bench
bench: $(STAMP)  ## the numbers the project is measured by (long)
	@$(BIN)/videoopd bench

.PHONY: docs
docs: $(STAMP)  ## the documentation: its reference from the code, and the site in site/, warnings as errors
	@$(BIN)/python docs/generate.py
	@$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.PHONY: wheel
wheel: $(STAMP)  ## dist/videoopd-*.whl, with the demo's configs and models in it
	@rm -rf build  # setuptools would bring along what it finds there of former builds
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@ls dist/videoopd-*.whl

.PHONY: same-as
same-as: $(STAMP)  ## do rounds still compute what they did? make same-as REV=main~3 (3 minutes)
	@$(BIN)/python -m tests.same_as $(or $(REV),HEAD)

.PHONY: clean
clean:  ## remove the environment and caches; runs/ and worlds/ stay
	@if [ -x $(BIN)/videoopd ]; then $(BIN)/videoopd down || true; fi
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find flows opd_core storage tests -name __pycache__ -prune -exec rm -rf {} +
