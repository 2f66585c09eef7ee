# The verbs. Each sets up what it needs in .venv by itself, with the Python >= 3.11 that it finds,
# or with the one that is named: make PYTHON=/path/to/python3 serve
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
VENV := .venv
BIN := $(VENV)/bin
# By files, for those share a daemon; in the order of tests/conftest.py.
SUITE := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What the tests were last run with: a release of somebody else's changes nothing here by itself.
TESTED := packaging/tested.txt
export HF_HUB_OFFLINE := 1
# Else each process that a test starts would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

# On Linux the backend is an extra; for an NVIDIA GPU: make EXTRA=[cuda13] serve
ifeq ($(shell uname -s),Linux)
EXTRA := [cpu]
endif

# The clients that people use, each as its registry has it, apart from what mlxd runs on.
CLIENTS := .venv-clients
PINNED := tests/clients_real/environments
CLIENT_PYTHONS := newest llama_index instructor

.PHONY: help serve test test-clients test-system long check format upgrade bench build tap clean

help:
	@echo "make serve        serve on http://127.0.0.1:11435 with policies/ and .state/"
	@echo "make test         check, then the tests"
	@echo "make test-clients the clients' own packages against running daemons (needs PyPI and npm, the first time)"
	@echo "make test-system  the tests that start systemd, alone (root, Linux)"
	@echo "make long         the tests with their long forms"
	@echo "make check        format, lint, types, import contracts"
	@echo "make format       rewrite the code as make check wants it"
	@echo "make upgrade      name the newest versions of what mlxd and its tests run on in $(TESTED)"
	@echo "make bench        the throughput table of benchmarks/"
	@echo "make build        the wheel and the source archive, in dist/"
	@echo "make tap          a tap that Homebrew installs this checkout from, in dist/tap"
	@echo "make clean        remove what these have made"

serve: $(VENV)/.serve
	exec $(BIN)/mlxd serve --policies policies --state .state

test: check
	$(SUITE) -m "not slow"

test-clients: $(VENV)/.dev $(CLIENT_PYTHONS:%=$(CLIENTS)/%/.made) $(CLIENTS)/node/.made
	$(BIN)/python -m tests.clients_real.run

test-system: $(VENV)/.dev
	$(BIN)/python -m pytest -m system tests/system

# Properties are held to more cases here (tests/support/examples.py).
long: export MLXD_HYPOTHESIS ?= long
long: check
	$(SUITE)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# In an environment of its own: .venv may hold what was put there by hand.
upgrade:
	@packaging/make-venv $(VENV).new
	@$(VENV).new/bin/python -m pip --disable-pip-version-check --quiet install --editable '.$(EXTRA)' --group dev
	@echo "# Written by make upgrade: what the tests were last run with." >$(TESTED)
	@$(VENV).new/bin/python -m pip --disable-pip-version-check freeze --exclude-editable >>$(TESTED)
	@rm -rf $(VENV).new

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/throughput.py

build: $(VENV)/.dev
	$(BIN)/hatchling build -d dist

# Needs the build backend and git, nothing that mlxd runs on.
tap: $(BIN)/python
	@$(PIP) install 'hatchling>=1.27'
	@$(BIN)/python packaging/homebrew/tap.py dist

clean:
	rm -rf $(VENV) $(VENV).new $(CLIENTS) .state dist

# A link to a Python that is gone counts as absent: then the environment is made anew.
$(BIN)/python:
	@packaging/make-venv $(VENV)

$(VENV)/.serve: $(BIN)/python pyproject.toml $(TESTED)
	@echo "Installing mlxd into $(VENV)"
	@$(PIP) install --constraint $(TESTED) --editable '.$(EXTRA)'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@echo "Installing the development tools into $(VENV)"
	@$(PIP) install --constraint $(TESTED) --group dev
	@touch $@

# All that an environment has is pinned: nothing is resolved here.
$(CLIENTS)/%/.made: $(PINNED)/%.txt | $(BIN)/python
	@echo "Installing clients into $(CLIENTS)/$*"
	@rm -rf $(@D)
	@$(BIN)/python -m venv --without-pip $(@D)
	@$(PIP) --python $(@D) install --no-deps --requirement $<
	@touch $@

$(CLIENTS)/node/.made: $(PINNED)/node/package-lock.json $(PINNED)/node/package.json $(CLIENTS)/newest/.made
	@echo "Installing clients into $(CLIENTS)/node"
	@mkdir -p $(@D)
	@cp $(PINNED)/node/*.json $(@D)
	@$(PINNED)/node/install $(CLIENTS)/newest $(@D)
	@touch $@
