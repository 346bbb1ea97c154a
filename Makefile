# Every target works from a bare clone with nothing but Python 3.11 or newer: it makes .venv first.
# Another Python: make test PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PYTHON ?=
ARGS ?=
MINUTES ?= 120

.PHONY: help audit test bench lint format tables prior

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

audit: $(STAMP) ## audit the embedded images with the embedded prior; options in ARGS="--batches 4"
	@$(BIN)/gradinv audit $(ARGS)

test: $(STAMP) ## the tests; options in ARGS="-n 2 -k matching"
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

bench: $(STAMP) ## the engine's ways against double backward, then the parts; ARGS="--repeats 3"
	@$(BIN)/python -m benchmarks.bench_engine $(ARGS)
	@$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only

lint: $(STAMP) ## ruff, pyright, the one-way imports, the dependencies
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/deptry src

format: $(STAMP) ## mend what ruff can mend by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

tables: $(STAMP) ## write the tables of README and docs from results/*.json
	@$(BIN)/python -m benchmarks.tables

prior: $(STAMP) ## train a 32x32 prior: make prior DATA=train-images-idx3-ubyte.gz OUT=my-prior
	@test -n "$(DATA)" || { echo "expected DATA=FOLDER_OR_IDX_FILE; name the images to train on" >&2; exit 2; }
	@test -n "$(OUT)" || { echo "expected OUT=FOLDER; name where the prior goes" >&2; exit 2; }
	@$(BIN)/gradinv prior train "$(DATA)" --arch dcgan --image-size 32 --minutes $(MINUTES) --out "$(OUT)" $(ARGS)

# Both variables: older versions of pip take the build's constraints from the first, newer from the
# second.
$(STAMP): export PIP_CONSTRAINT := constraints.txt
$(STAMP): export PIP_BUILD_CONSTRAINT := constraints.txt

# The first Python that is new enough and can make an environment. A name on the path may be a shim
# that fails, so each is run rather than looked up.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "expected Python 3.11 or newer with its venv module on the path, got none; install one or name it: make PYTHON=..." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$found" --version) (once; some minutes)"; \
	  "$$found" -m venv --clear .venv; \
	fi
	@$(PIP) install torch==2.13.0
	@$(PIP) install -e '.[dev,dp]'
	@touch $@
