# Everything a fresh clone needs: `make demo` and `make test` set themselves up first.
#
# All targets work in a virtual environment of their own, $(VENV). It is made once and made again
# when pyproject.toml changes. Another interpreter:  make test PYTHON=python3.12 VENV=.venv-3.12
# Arguments for pytest:  make test TESTS="tests/decoding -x"

PYTHON ?= python3
VENV   ?= .venv
TESTS  ?=
SUITE  ?= train
GPU    ?=

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format check benchmark gpu-check clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make the virtual environment and install the package with all extras

# The stamp is written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

demo: $(INSTALLED) ## Train on drawn scenes, then show captions and scores (minutes on two cores)
	$(BIN)/python scripts/demo.py

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest $(TESTS)

lint: $(INSTALLED) ## Check style, types and formatting; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(INSTALLED) ## Format all sources and apply the safe corrections
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

check: lint test ## Lint and test: what must pass before a commit

benchmark: $(INSTALLED) ## Measure on this machine: SUITE=features, train, beam or lstm
	$(BIN)/python scripts/benchmark.py suite=$(SUITE)

# Needs no environment: PyTorch, numpy and pytest beside $(PYTHON), CUDA's compiler and a GPU.
gpu-check: ## Build, test and measure the kernels on a GPU; GPU="--minutes 4" shortens it
	PYTHONPATH=src $(PYTHON) scripts/gpu_check.py $(GPU)

clean: ## Remove what builds, tests and tools leave behind (not outputs/, not the environment)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src scripts tests -name __pycache__ -type d -exec rm -rf {} +
	find src -maxdepth 1 -name '*.egg-info' -exec rm -rf {} +

distclean: clean ## Also remove the virtual environment and the cached pictures and features
	rm -rf $(VENV) .cache
