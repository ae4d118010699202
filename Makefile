# Needs GNU make, a POSIX shell and Python >= 3.11; everything else goes into .venv.
#   make demo    set up, make a drafter for the shipped model, measure it
#   make test    set up, run all tests
#   make check   set up, run lint, types, import contracts, and check every shipped recipe
#   make bench   set up, make two better drafters, measure the decoder's goals on an idle machine (about 20 minutes)
#   make setup   only set up        make clean   remove .venv, caches and what the demo made
#   make wheels     what a GPU machine without a network lacks, as wheels for its Python 3.12, into .wheels/
#   make wheel-check  the wheel in an empty environment outside the clone: init, check, build, eval, report, publish --dry-run
#   make gpu-check  everything that waits for a GPU, on a machine that has one; sets nothing up, needs no network
#                   SIZE=small on a CPU; ONLY="steps rounds", OUT=folder, BUDGET=seconds, DRAFTER=artifact, GPT_FAST=checkout

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check bench wheels wheel-check gpu-check clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 or later, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is `$(PYTHON) --version 2>&1`, too old: name Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv or ensurepip: install it (Debian, Ubuntu: apt install python3-venv), then try again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python recipes/demo/run.py

# A process for each core, up to four: each holds torch and a test's models, 2 GB at most. A file's tests stay together.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/factory check recipes

bench: setup
	$(BIN)/factory build recipes/demo/patient.yaml --out artifacts/demo
	$(BIN)/python docs/benchmarks/decoder.py --drafter artifacts/demo/patient--keep1 artifacts/demo/patient--keep2

wheels:
	@$(PYTHON) docs/wheels.py $(if $(PYTHON312),--python312 $(PYTHON312))

wheel-check: setup
	$(BIN)/python docs/wheel_check.py

# A PYTHON that was named comes first, then what `make setup` left, then the machine's own.
gpu-check:
	@$(if $(filter file,$(origin PYTHON)),$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)),$(PYTHON)) \
		docs/benchmarks/gpu_check.py $(if $(SIZE),--size $(SIZE)) $(if $(OUT),--to $(OUT)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(BUDGET),--budget $(BUDGET)) $(if $(DRAFTER),--drafter $(DRAFTER)) $(if $(GPT_FAST),--gpt-fast $(GPT_FAST))

clean:
	rm -rf $(VENV) build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache artifacts/demo .wheels work/gpu-check
