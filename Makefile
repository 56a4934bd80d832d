# make quickstart   set up, then distil a small model on embedded data: no GPU, no hub
# make test         set up, then all tests
# make quick        the unit tests, under a minute
# make lint         ruff, mypy and the layers of imports
# make faults       puts faults into a copy, one by one: which test fails? (ten minutes)

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup quickstart test quick lint faults

setup: .venv/ready

# torch first and pinned, so that nothing else chooses another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

quickstart: setup
	$(BIN)/kdcore run quickstart

test: setup
	$(BIN)/python -m pytest -n 2 --durations=25

quick: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

faults: setup
	$(BIN)/python benchmarks/robustness/faults.py
