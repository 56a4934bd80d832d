# make quickstart   set up, then distil a small model on embedded data: no GPU, no hub
# make test         set up, then all tests
# make quick        the fast unit and plugin tests, in a minute
# make lint         ruff, mypy and the layers of imports
# make site         docs/ as a site in site/
# make gpu          measures a GPU in 25 minutes, without network; typed again, it measures what is missing
# make faults       plants bugs in a copy, one by one: which test fails? (ten minutes)

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
# Tests start hundreds of processes, which would each compile kdcore's source.
unexport PYTHONDONTWRITEBYTECODE

# On a bare machine whose python3 has torch and transformers: make gpu GPU_PYTHON=python3, with what
# else kdcore needs on PYTHONPATH.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: setup quickstart test quick lint site gpu faults

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
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=25

quick: setup
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/unit tests/plugins

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

site: setup
	$(BIN)/zensical build --strict

gpu:
	env -u OMP_NUM_THREADS $(GPU_PYTHON) benchmarks/gpu/day.py $(GPU_DAY)

faults: setup
	$(BIN)/python benchmarks/robustness/faults.py
