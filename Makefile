# Everything a fresh clone needs: `make demo` and `make test` set themselves up first.
#
# All targets work in a virtual environment of their own, $(VENV). It is made once and made again
# when pyproject.toml changes; the extension in csrc/ is built when its sources change.
# Another interpreter:  make test PYTHON=python3.12 VENV=.venv-3.12
# Arguments for pytest:  make test TESTS="tests/decoding -x"
# Arguments for a script:  make train ARGS="experiment=nic_flickr8k data.root=data/flickr8k"

PYTHON ?= python3
VENV   ?= .venv
TESTS  ?=
SUITE  ?= epoch
FUZZ   ?= 12
GPU    ?=
KILLS  ?= 200
ARGS   ?=

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY     := $(VENV)/.ready
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.inl' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SANITIZED := build/sanitized/captioner/ops/_extension.abi3.so
SANITIZED_SCORING := build/sanitized/captioner/evaluation/_scoring.abi3.so

.DEFAULT_GOAL := help
SCRIPTS_RUN := train evaluate caption sample compare
.PHONY: help setup demo $(SCRIPTS_RUN) sweep leaderboard flickr8k flickr8k-best release-model test fuzz kills test-sanitized test-cuda-build lint format check benchmark gpu-check clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment, install the package with all extras, build csrc/

# The stamp is written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

# Without a compiler this says so and leaves the extension out.
$(READY): $(INSTALLED) setup.py $(CXX_FILES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: $(READY) ## Train on drawn scenes, then show captions and scores (minutes on two cores)
	$(BIN)/python scripts/quickstart.py

flickr8k: $(READY) ## Download Flickr8k into data/flickr8k, or check it
	$(BIN)/python scripts/prepare_flickr8k.py root=data/flickr8k $(ARGS)

flickr8k-best: $(READY) ## Train and score the best captioner in stages: ARGS="data.root=data/flickr8k stages=[grid]"
	$(BIN)/python scripts/recipe.py out=outputs/flickr8k_best $(ARGS)

release-model: $(READY) ## Export a captioner as one file to publish: ARGS="checkpoint=outputs/reward/best.pt"
	$(BIN)/python scripts/export.py out=outputs/release/captioner-flickr8k include_encoder=true include_frequencies=true archive_mb=60 $(ARGS)

# Each of them says with ARGS=--help what it takes.
train: ## Train a captioner or language model: ARGS="experiment=..."
evaluate: ## Score a checkpoint or a results file: ARGS="checkpoint=... split=dev"
caption: ## Caption photos: ARGS="checkpoint=... images=photo.jpg"
sample: ## Let a language model write: ARGS='checkpoint=... prompt="ROMEO:"'
compare: ## Compare scored runs: ARGS="a/scores b/scores"
$(SCRIPTS_RUN): $(READY)
	$(BIN)/python scripts/$@.py $(ARGS)

sweep: $(READY) ## Train many: ARGS="optimizer.lr=1e-3,3e-3 sweep_dir=outputs/first"
	$(BIN)/python scripts/train.py -m $(ARGS)

leaderboard: $(READY) ## Rank the runs in outputs/, in the terminal and in outputs/leaderboard.html
	$(BIN)/python scripts/leaderboard.py outputs $(ARGS)

# The files of tests are given to processes of one thread each, in the order of tests/conftest.py.
# Compiled tests and modules are kept: the many processes would each compile them again.
test: $(READY) ## Run the tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=5 --dist loadfile --no-loadscope-reorder \
	    -m "not nvcc and not sanitized" $(TESTS)

# Other cases each time; a case that fails is printed, and becomes a test of its own.
fuzz: $(READY) ## Read hostile files and overrides: FUZZ times as many cases as the tests have
	CAPTIONER_FUZZ=$(FUZZ) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz
kills: $(READY) ## SIGKILL tiny runs of the commands KILLS times at random moments: what they end with must be the same
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py $(KILLS)

test-cuda-build: $(INSTALLED) ## Compile the CUDA kernels with nvcc, if it is there: no warnings, no spills
	$(BIN)/python -m pytest -n auto --maxprocesses=4 -m nvcc tests/ops/test_cuda_build.py

$(SANITIZED): $(INSTALLED) setup.py $(CXX_FILES)
	CAPTIONER_SANITIZE=1 CAPTIONER_CUDA=0 $(BIN)/python setup.py --quiet build_ext \
	    --build-lib build/sanitized --build-temp build/sanitized/objects

# First the two libraries, which need the sanitizers' own preloaded, then the CUDA kernels as programs.
test-sanitized: $(SANITIZED) ## Run the tests of csrc/ under AddressSanitizer and UndefinedBehaviorSanitizer
	CAPTIONER_EXTENSION=$(SANITIZED) CAPTIONER_SCORING=$(SANITIZED_SCORING) ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	    LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	    $(BIN)/python -m pytest -p no:cacheprovider -n auto --maxprocesses=4 --dist loadfile \
	    -k "fused or ragged or row or linear or scores or library or gru" tests/evaluation/test_compiled.py tests/models/test_lstm.py tests/ops/test_lstm_packed.py \
	    tests/ops/test_fused_cpu.py tests/ops/test_lstm_step.py tests/ops/test_linear_cross_entropy.py \
	    tests/ops/test_additive_scores.py tests/ops/test_gru_packed.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 -m sanitized tests/ops

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

benchmark: $(READY) ## Measure on this machine: SUITE=features, epoch, scale, beam, attention, lstm, windows, kinds, replicas or metrics
	$(BIN)/python scripts/benchmark.py suite=$(SUITE)

# Needs no environment: PyTorch, numpy and pytest beside $(PYTHON), CUDA's compiler and a GPU.
gpu-check: ## Build, test and measure the kernels on a GPU; GPU="--minutes 4" shortens it
	PYTHONPATH=src $(PYTHON) scripts/gpu_check.py $(GPU)

clean: ## Remove what builds, tests and tools leave behind (not outputs/, not the environment)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src scripts benchmarks tests -name __pycache__ -type d -exec rm -rf {} +
	find src -maxdepth 1 -name '*.egg-info' -exec rm -rf {} +

distclean: clean ## Also remove the virtual environment and the cached pictures and features
	rm -rf $(VENV) .cache
