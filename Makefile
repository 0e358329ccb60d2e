# Everything a person runs. Each target sets up .venv by itself; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Without their compiled code the tests and the package take ten seconds more of every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install pilot gallery bench-fit test test-all check format clean

help: ## what there is to run
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foreword needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,compare,parquet,sign,tensorboard,dev]'
	@touch $(STAMP)

install: $(STAMP) ## .venv with everything in it, and nothing run

pilot: $(STAMP) ## the main job: the pilot of examples/docs-routing, with its report
	$(BIN)/python examples/docs-routing/build.py
	$(BIN)/foreword pilot examples/docs-routing/task.toml --out runs/docs-routing

gallery: $(STAMP) ## the compiler's pictures, with captions from the runs (docs/gallery)
	$(BIN)/python docs/gallery/build.py

bench-fit: $(STAMP) ## prefixes beside PEFT's and LoRA on the same batches (hours; what is there is not run again)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuning/peft_prefix/run.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuning/peft_prefix/writing.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuning/peft_prefix/texts.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tuning/peft_prefix/similar.py
	$(BIN)/python benchmarks/tuning/peft_prefix/summary.py
	$(BIN)/python benchmarks/tuning/peft_prefix/summary.py --file written
	$(BIN)/python benchmarks/tuning/peft_prefix/summary.py --file texts
	$(BIN)/python benchmarks/tuning/peft_prefix/summary.py --file similar

test: $(STAMP) ## the tests that every change must pass (under six minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2

test-all: $(STAMP) ## all tests, the slow ones included
	$(BIN)/python -m pytest

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was made: environment, caches, runs, example data
	rm -rf $(VENV) runs build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf examples/*/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
