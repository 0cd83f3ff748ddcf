# Every target works on a fresh checkout and makes its own .venv; `make gpu` uses the interpreter that is there.

PYTHON ?= python3
TORCH  := torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
CSRC   := $(shell find csrc -type f)
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup
# The oldest transformers that is supported, in a folder that goes in front of the newest one in .venv.
OLDEST := build/transformers-4.57.6
TEST_OLDEST := PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) tests/integrations/test_transformers_*.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench bench-compare gpu lint mypy docs sanitize races valgrind clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=...          the interpreter to make .venv with, 3.10 or later (now: $(PYTHON))"

demo: $(READY)  ## train a small language model with LLA and with softmax, about three minutes
	$(BIN)/flashlla demo $(ARGS)

test: $(READY) $(OLDEST)/.ready lint  ## lint and tests, without the slow ones and those for a GPU
	$(ONE_THREAD) $(PYTEST) -m "not slow and not gpu" $(ARGS)
	$(ONE_THREAD) $(TEST_OLDEST) -m "not slow and not gpu"

test-all: $(READY) $(OLDEST)/.ready lint  ## lint and all tests but those for a GPU
	$(ONE_THREAD) $(PYTEST) -m "not gpu" $(ARGS)
	$(ONE_THREAD) $(TEST_OLDEST) -m "not gpu"

bench: $(READY)  ## benchmarks of bench/ on the CPU
	$(BIN)/python -m pytest bench --benchmark-only -m "not gpu" $(ARGS)

bench-compare: $(READY)  ## the same, against the committed results of this machine: fails if something got slower
	$(BIN)/python -m pytest bench --benchmark-only -m "not gpu" --compare $(ARGS)

lint: $(READY)  ## ruff, mypy, clang-format and clang-tidy
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CSRC) tests/kernels/calls.cpp
	@$(MAKE) --no-print-directory -j 2 mypy build/.tidy  # the two that take long, side by side

mypy: $(READY)
	$(BIN)/mypy

# Twenty seconds, and so only where csrc has changed since. The instruction sets that are left out compile the same
# headers as the baseline does.
build/.tidy: $(CSRC) .clang-tidy | $(READY)
	$(BIN)/clang-tidy --quiet $(filter-out %_avx2.cpp %_avx512.cpp, $(filter %.cpp, $(CSRC))) -- -std=c++17 \
	    $$($(BIN)/python -m pybind11 --includes | sed 's/-I/-isystem /g')
	@mkdir -p $(@D) && touch $@

docs: $(READY)  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv, builds and caches; results in runs/ stay
	rm -rf $(VENV) build dist *.egg-info flashlla/_C.*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- kernels under watch ---------------------------------------------------------------------------------

# Builds of their own beside the installed one, compiled where csrc has changed: the extension, and a program that
# calls the kernels of every instruction set without Python.
FLAGS_sanitized := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
FLAGS_races := -O1 -g1 -fno-omit-frame-pointer -fsanitize=thread
FLAGS_plain := -O1 -g1

build/%/calls: tests/kernels/calls.cpp $(CSRC) | $(READY)
	CFLAGS="$(FLAGS_$*)" CXXFLAGS="$(FLAGS_$*)" LDFLAGS="$(FLAGS_$*)" \
	    $(BIN)/python setup.py --quiet build_ext -t $(@D)/temp -b $(@D)/lib
	$(CXX) -std=c++17 -pthread $(FLAGS_$*) -Icsrc/cpu $< $(@D)/temp/csrc/cpu/*.o -o $@

# Python itself is not built with the sanitizers, so that they are preloaded, and what it leaks is not looked at.
PRELOADED := $(wildcard $(foreach name,asan ubsan,$(shell gcc -print-file-name=lib$(name).so 2> /dev/null)))
# Sequences of 500 rows are left to the program.
SANITIZED_TESTS := $(addprefix $(CURDIR)/tests/ops/test_,budget.py equalities.py kvcache.py nonfinite.py stats.py) \
    --deselect tests/ops/test_budget.py::test_long

ifeq ($(words $(PRELOADED)),2)
sanitize: build/sanitized/calls  ## the CPU kernels under the address and undefined-behaviour sanitizers
	$<
	$(BIN)/python setup.py --quiet build_py --build-lib $(<D)/lib
	cd $(<D)/lib && $(ONE_THREAD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    LD_PRELOAD="$(PRELOADED)" \
	    $(CURDIR)/$(PYTEST) -p no:cacheprovider $(SANITIZED_TESTS) -k "not blockwise" -m "not slow and not gpu" $(ARGS)
else
sanitize:
	@echo "make: gcc has no libasan or no libubsan here, so the kernels are not watched"
endif

races: build/races/calls  ## the CPU kernels under the thread sanitizer, which wants fixed addresses
	setarch -R $<

valgrind: build/plain/calls  ## the CPU kernels under valgrind, which knows no AVX-512
	valgrind --quiet --leak-check=full --error-exitcode=1 $<

# ---- the virtual environment ---------------------------------------------------------------------------

# The build requirements are installed first, so that a changed kernel is rebuilt without a download.
$(READY): pyproject.toml setup.py $(CSRC)
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no $(PYTHON); name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but flashlla needs Python 3.10 or later: make PYTHON=..."; exit 1; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || \
	    { echo "make: $(VENV) is broken, its Python or pip does not start; remove it with: rm -rf $(VENV)"; exit 1; }
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" wheel "pybind11>=2.13"
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	@touch $@

# Of what the oldest transformers needs, only what .venv lacks or has too new: all else stays the same.
$(OLDEST)/.ready: | $(READY)
	@rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) transformers==4.57.6 tokenizers==0.22.2 \
	    huggingface-hub==0.36.2 requests urllib3 certifi charset-normalizer
	@touch $@

# ---- a machine with a GPU, offline ---------------------------------------------------------------------

# Most of the time goes into compiling kernels, so that several processes pay where pytest-xdist is there.
GPU_TESTS = -m gpu $(shell $(PYTHON) -c 'import xdist' 2> /dev/null && echo '-n 8 --dist loadgroup')

# Such a machine brings its own torch and triton. With pybind11 there, flashlla is built and installed as it is;
# without it the compiled CPU kernels are left out: build/tree joins the folders as the packages they are.
gpu:  ## tests that need a GPU, with the interpreter and the packages of this machine
	@$(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null || \
	    { echo "make: $(PYTHON) has no torch that finds a GPU; name another interpreter with PYTHON=..."; exit 1; }
	@if $(PYTHON) -c 'import pybind11, setuptools' 2> /dev/null; then \
	    $(PYTHON) -m pip install --quiet --no-index --no-build-isolation --no-deps -e . && \
	    $(PYTHON) -m pytest $(GPU_TESTS) $(ARGS); \
	else \
	    echo "make: no pybind11 here, so the compiled CPU kernels are left out"; \
	    rm -rf build/tree && mkdir -p build/tree/flashlla && \
	    ln -s $(CURDIR)/flashlla/* $(CURDIR)/models $(CURDIR)/experiments build/tree/flashlla && \
	    cd build/tree && $(PYTHON) -m pytest $(GPU_TESTS) $(CURDIR)/tests $(ARGS); \
	fi
