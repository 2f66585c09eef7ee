# The verbs. Each sets up what it needs in .venv by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

ifeq ($(shell uname -s),Linux)
EXTRA := [cpu]
endif

.PHONY: help serve test check format bench build clean

help:
	@echo "make serve   serve on http://127.0.0.1:11435 with policies/ and .state/"
	@echo "make test    check, then every test"
	@echo "make check   format, lint, types, import contracts"
	@echo "make format  rewrite the code as make check wants it"
	@echo "make bench   the throughput table of benchmarks/"
	@echo "make build   the wheel, in dist/"

serve: $(VENV)/.serve
	exec $(BIN)/mlxd serve --policies policies --state .state

test: check
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/throughput.py

build: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .state dist

$(VENV)/.made:
	packaging/make-venv $(VENV)
	@touch $@

$(VENV)/.serve: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRA)'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
