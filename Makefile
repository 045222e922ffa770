# `make demo` and `make test` need Python >= 3.11 and make; they set up everything else in VENV.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
# Rooms whose tests build models of every family, start many processes or draw pictures: `make test` runs them.
QUICK := $(addprefix --ignore=tests/,faults benchmarks sweep pages plots methods restoring runtimes)

STAMP := $(VENV)/.vlbench-installed
# What a run needs, and no more: `make demo` installs this alone.
SMALL := $(VENV)/.vlbench-run
BIN := $(VENV)/bin

.PHONY: help demo test quick lint rooms types board docs gpu-check clean

help:
	@echo "make demo    UPop's row beside the dense model's, on VQAv2 of the mini world"
	@echo "make test    the test suite (ARGS='tests/nn -x' passes words to pytest, JOBS=4 sets the workers)"
	@echo "make quick   the part of it that runs no command: under two minutes on two cores"
	@echo "make rooms   every room of vlbench/ imports only rooms below it"
	@echo "make lint    ruff, make types: mypy --strict, make board: leaderboards against their results"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make gpu-check  what only a machine with a GPU can tell: one table, some minutes (ARGS='--only oom,bf16')"
	@echo "make clean   remove .venv, build outputs and tool caches (runs/ stays)"
	@echo "PYTHON=python3.12 chooses the interpreter, VENV=DIR the environment that vlbench is installed into"

demo: $(SMALL)
	@$(BIN)/vlbench run method=upop task=vqav2

# One thread a worker: the models are tiny, and threads of two workers would fight for the cores.
test: $(STAMP)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

quick: $(STAMP)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not faults and not commands" $(QUICK) $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

rooms: $(STAMP)
	@$(BIN)/lint-imports

types: $(STAMP)
	@$(BIN)/mypy --strict

board: $(STAMP)
	@$(BIN)/vlbench leaderboard --check

# Strict: a link that leads nowhere is an error.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

gpu-check: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.gpu_check $(ARGS)

$(SMALL): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "vlbench needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) -m venv failed (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Installing vlbench and torch into $(VENV): a few minutes, about 6 GB (much less without CUDA: see docs/start.md)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(STAMP): $(SMALL)
	@echo "Installing what tests, types and the documentation need into $(VENV): a minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist vlbench.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
