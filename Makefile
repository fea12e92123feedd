PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# One thread for each process, or the processes would get into each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: docs demo test test-fast test-slow test-pasted test-oldest lint wheel gpu-check faults clean help

help:  ## Lists the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

# Installed once; again only when the dependencies change.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## Trains an agent on the bundled supernet and shows what it saves (2 to 4 minutes).
	$(BIN)/prance demo --out $(OUT)

test: test-fast test-slow  ## The test-suite but for test-pasted, what is fast first (10 to 25 minutes on two cores).

test-fast: $(VENV)/.installed  ## Without the slow tests (2 to 10 minutes).
	$(PYTEST) --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed  ## The slow tests alone: trainings, exports, examples, a soak.
	$(PYTEST) --dist worksteal -m "slow and not pasted"

test-pasted: $(VENV)/.installed  ## Runs all that pages and help texts say, pasted (half an hour).
	$(PYTEST) --dist worksteal -m pasted

test-oldest:  ## The fast tests with the oldest versions that pyproject.toml allows, in .oldest (a quarter of an hour).
	test -x .oldest/bin/python || $(PYTHON) -m venv .oldest
	.oldest/bin/python -m pip install --quiet -e ".[dev]" -c requirements/oldest.txt
	OMP_NUM_THREADS=1 .oldest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

lint: $(VENV)/.installed  ## Style and types.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

wheel: $(VENV)/.installed  ## Builds a wheel and compares its contents with the packages.
	$(BIN)/python -m tools.check_wheel

gpu-check:  ## On a machine with a GPU: its tests, then what it must reach (5 minutes; PYTHON names the interpreter).
	$(PYTHON) -m tools.gpu_check

faults: $(VENV)/.installed  ## Kills, torn writes and full disks at file events of every long command, and damaged files (15 minutes).
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults --every 8
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.malformed

docs: $(VENV)/.installed  ## The documentation's site in site/: a dead link or a missing docstring fails.
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## Removes the environment and caches.
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
